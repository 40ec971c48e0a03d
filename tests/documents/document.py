"""What documents show, for tests that do what a reader would: code blocks, and diffs to apply."""

import pathlib
import re


def blocks(path: pathlib.Path, language: str) -> list[str]:
    """The fenced code blocks of a document in one language, from the top."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def apply_diff(diff: str, text: str) -> str:
    """The text after a unified diff whose hunks are separated by lines that begin with `@@`, without line numbers.

    Raises:
        ValueError: the lines of a hunk that are there before (context and `-`) are not in exactly one place of the
            text, in the order of the hunks; or a hunk changes nothing, or is no diff.
    """
    lines, result, done = text.splitlines(), [], 0
    for hunk in re.split(r"^@@.*\n", diff.removeprefix("@@\n"), flags=re.MULTILINE):
        marked = hunk.splitlines()
        if strange := [line for line in marked if line[:1] not in {"", " ", "+", "-"}]:
            raise ValueError(f"neither context nor + nor -: {strange[0]!r}")
        old = [line[1:] for line in marked if line[:1] != "+"]
        new = [line[1:] for line in marked if line[:1] != "-"]
        places = [i for i in range(len(lines)) if lines[i : i + len(old)] == old]
        if len(places) != 1 or places[0] < done or old == new:
            raise ValueError(f"to be changed in one place after line {done}, found before lines {places}:\n{hunk}")
        result += lines[done : places[0]] + new
        done = places[0] + len(old)
    return "\n".join([*result, *lines[done:], ""])
