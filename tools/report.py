"""What came out of runs: a page with curves, tables and a verdict, or the table alone.

    python -m tools.report runs/digits
    python -m tools.report runs/seed0 runs/seed1 runs/seed2
    python -m tools.report runs/constant runs/cosine --format=markdown

Every run writes its own page at its end. Given several, runs whose configs differ only in the seed are pooled: their
mean, their spread, and the difference of averaged and raw weights paired over the seeds, which is what a claim that
averaging helps can rest on. Of the others, the page says what differs. It is a single file that loads nothing, and
reads the files of workdirs only, also of runs that are still running.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from reporting import page, runs, tables
from reporting.runs import Run
from runtime.errors import UserError
from runtime.files import local_path
from runtime.progress import output


def main() -> None:
    """Writes the page of the workdirs on the command line, or prints their table."""
    parser = argparse.ArgumentParser(
        "python -m tools.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", type=local_path, metavar="WORKDIR", help="folder of a run")
    parser.add_argument(
        "--format",
        choices=("html", "table", "markdown", "csv", "json"),
        default="html",
        help="html, the default, writes the page and the pictures and prints the table; the others only print",
    )
    parser.add_argument(
        "--out",
        type=local_path,
        help="folder of the page; default: the workdir, or of several, `report` beside the first",
    )
    args = parser.parse_args()
    try:
        workdirs = list({workdir.resolve(): workdir for workdir in args.workdirs}.values())
        found, left_out = _read(workdirs)
        groups, remarks = runs.group(found)
        remarks = [*left_out, *remarks]
        if args.format == "csv":
            output(tables.to_csv(groups))
        elif args.format == "json":
            output(tables.to_json(groups, remarks))
        else:
            output("\n\n".join([tables.to_text(groups, args.format == "markdown"), *remarks]))
        if args.format == "html":
            folder = args.out or (workdirs[0] if len(workdirs) == 1 else found[0].workdir.parent / "report")
            output(page.write_to(folder, groups, remarks))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Files that are valid and hold what no run writes. There is no end to what that may be.
        names = ", ".join(map(str, args.workdirs))
        sys.exit(f"error: a file of {names} is not what a run writes ({type(error).__name__}: {error}). Restore it.")


def _read(workdirs: Sequence[pathlib.Path]) -> tuple[list[Run], list[str]]:
    """The runs in these folders, and why the other folders are left out.

    Raises:
        UserError: none holds a run.
    """
    found, problems = [], []
    for workdir in workdirs:
        try:
            found.append(Run.read(workdir))
        except UserError as error:
            problems.append(str(error))
    if not found:
        raise UserError("\n".join(problems))
    return found, [f"Left out: {problem}" for problem in problems]


if __name__ == "__main__":
    main()
