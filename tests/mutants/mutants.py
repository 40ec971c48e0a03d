"""Seeds the faults of the pages beside this file, one after another, and sees whether the tests catch each of them.

python tests/mutants/mutants.py             # all of them
python tests/mutants/mutants.py interval    # those with the word in their title
python tests/mutants/mutants.py --sample    # those of files that changed since the last release, a tenth of the others
"""

import argparse
import dataclasses
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

PAGES = pathlib.Path(__file__).resolve().parent
ROOT = PAGES.parent.parent


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A fault of a page: one place in one file that is changed, and the tests that are to fail for it."""

    page: str
    title: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str

    def apply(self, root: pathlib.Path) -> None:
        """Changes the file in a copy of the working tree."""
        path = root / self.file
        source = path.read_text()
        if source.count(self.old) != 1:
            raise ValueError(f"{self.title}: {self.file} has its lines {source.count(self.old)} times; must be once")
        path.write_text(source.replace(self.old, self.new))


def read() -> list[Mutant]:
    """The mutants of all pages, each a section with its title, its file, the tests that catch it, and a diff."""
    mutants = []
    for page in sorted(PAGES.glob("*.md")):
        for section in re.split(r"^### ", page.read_text(), flags=re.MULTILINE)[1:]:
            about, diff = section.split("```diff\n")
            file, *tests = re.findall(r"`(.+?)`", about)
            lines = diff.partition("```")[0].splitlines(keepends=True)
            old, new = ("".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
            name = page.relative_to(ROOT).as_posix()
            mutants.append(Mutant(name, about.splitlines()[0], file, tuple(tests), old, new))
    return mutants


def git(root: pathlib.Path, *arguments: str) -> str:
    """What a git command in a repository prints; nothing if it fails."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout.strip()


def changed_files(root: pathlib.Path) -> set[str]:
    """Files that a repository's commits changed since its last tag; without any tag, those of the latest commit."""
    if tag := git(root, "describe", "--tags", "--abbrev=0"):
        return set(git(root, "diff", "--name-only", tag, "HEAD").splitlines())
    return set(git(root, "log", "-1", "-m", "--first-parent", "--name-only", "--format=").splitlines())


def sample(mutants: list[Mutant], commit: str, changed: set[str]) -> list[Mutant]:
    """Chooses those of which the file, a test or the page changed, and a tenth of the others, another for each commit.

    Args:
        mutants: to choose from.
        commit: its hash.
        changed: files, as paths from the root.

    Returns:
        The chosen ones in their order; always the same for a commit.
    """

    def is_chosen(mutant: Mutant) -> bool:
        files = {mutant.page, mutant.file, *(test.partition("::")[0] for test in mutant.tests)}
        digest = hashlib.sha256(f"{commit} {mutant.title}".encode()).digest()
        return bool(files & changed) or int.from_bytes(digest) % 10 == 0

    return list(filter(is_chosen, mutants))


def catch(mutant: Mutant) -> str:
    """Runs a mutant's tests against it: "caught by" the first test that fails, or else what happened."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder, "tree")
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in files.splitlines():
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes((ROOT / name).read_bytes())
        mutant.apply(root)
        # Temporary folders of its own: two processes that clean up the same ones at once fail with a warning.
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow"]
        command.append(f"--basetemp={folder}/tests")
        result = subprocess.run([*command, *mutant.tests], cwd=root, env=os.environ, capture_output=True, text=True)
    failed = re.search(r"^(FAILED|ERROR) \S*?::(\S+)", result.stdout, re.MULTILINE)
    if result.returncode == 1 and failed:
        return f"caught by {failed[2]}"
    return "SURVIVED" if result.returncode == 0 else f"BROKEN: {result.stdout[-500:]}{result.stderr[-500:]}"


def main() -> None:
    """Prints a line for each mutant; exits with 1 if one was not caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of the title")
    parser.add_argument("--sample", action="store_true", help="leave out most of those of files that did not change")
    args = parser.parse_args()
    seeded = read()
    chosen = [mutant for mutant in seeded if all(word.lower() in mutant.title.lower() for word in args.words)]
    if args.sample:
        chosen = sample(chosen, git(ROOT, "rev-parse", "HEAD"), changed_files(ROOT))
        print(f"{len(chosen)} of {len(seeded)} mutants", flush=True)
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(os.cpu_count()) as pool:
        os.environ.setdefault("TESTS_CACHE", cache)  # most of what they compile is the same
        outcomes = []
        for mutant, outcome in zip(chosen, pool.map(catch, chosen), strict=True):
            print(f"{mutant.title}: {outcome}", flush=True)
            outcomes.append(outcome)
    caught = sum(outcome.startswith("caught") for outcome in outcomes)
    print(f"{caught} of {len(chosen)} caught")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
