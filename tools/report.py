"""What came out of runs: a page with curves, tables and a verdict, or the table alone.

    python -m tools.report runs/digits
    python -m tools.report runs/seed0 runs/seed1 runs/seed2
    python -m tools.report runs/constant runs/cosine --format=markdown
    python -m tools.report runs/sgd0 runs/sgd1 --against runs/adamw0 runs/adamw1

Every run writes its own page at its end. Given several, runs whose configs differ only in the seed are pooled: their
mean, their spread, and the difference of averaged and raw weights paired over the seeds, which is what a claim that
averaging helps can rest on. Of the others, the page says what differs. It is a single file that loads nothing, and
reads the files of workdirs only, also of runs that are still running.

With --against, the runs before it are compared with those after it: the difference of each metric, for each curve of
both, between runs with the same seed, with its 95 % interval over the seeds. --format=csv then has these differences
only, and an average that the runs after it lack is compared with their raw weights.

    python -m tools.report runs/lr

The folder of a sweep gives its verdict: which setting is best by the validation images.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from reporting import against, page, runs, sweep, tables
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
        "--against",
        nargs="+",
        type=local_path,
        default=[],
        metavar="WORKDIR",
        help="runs that differ in nothing but the seed, to compare the others with, paired by seed",
    )
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
    parser.add_argument("--metric", default="", help="of a sweep, what it is judged by; default: config.best_metric")
    parser.add_argument(
        "--judge", choices=("validation", "test"), default="validation", help="of a sweep, the images it is judged on"
    )
    args = parser.parse_args()
    try:
        # Seeds alone leave nothing to choose between: they are reported like any others.
        out = args.out or next((folder for folder in args.workdirs if sweep.seeds(folder)), None)
        args.workdirs, args.against = (
            [workdir for folder in given for workdir in sweep.seeds(folder) or [folder]]
            for given in (args.workdirs, args.against)
        )
        if sweeps := [folder for folder in (*args.workdirs, *args.against) if (folder / "sweep.json").is_file()]:
            if len(args.workdirs) + len(args.against) > 1:
                raise UserError(f"{sweeps[0]} is the folder of a sweep; give it alone, or some of the runs in it")
            found = sweep.read(sweeps[0], args.metric, args.judge)
            if args.format in ("csv", "json"):
                output(tables.to_csv(found.to_rows()) if args.format == "csv" else found.to_json())
            else:
                output(found.to_text(args.format == "markdown"))
            if args.format == "html":
                output(sweep.write_page(args.out or sweeps[0], found))
            return
        if args.metric or args.judge != "validation":
            raise UserError(
                f"--metric and --judge are for the folder of a sweep; {args.workdirs[0]} holds no sweep.json"
            )
        workdirs, others = _without_repeats(args.workdirs), _without_repeats(args.against)
        if twice := [str(workdir) for path, workdir in workdirs.items() if path in others]:
            raise UserError(f"--against: {', '.join(twice)} cannot be compared with itself; give it on one side only")
        groups, remarks = runs.read(list(workdirs.values()))
        compared = None
        if others:
            others_groups, others_remarks = runs.read(list(others.values()))
            everything = runs.labelled([*groups, *others_groups])
            groups, others_groups = everything[: len(groups)], everything[len(groups) :]
            compared = against.compare(groups, others_groups)
            groups, remarks = [*groups, *others_groups], [*remarks, *others_remarks, *compared.remarks]
        if args.format == "csv":
            output(tables.to_csv(compared.rows if compared else tables.to_rows(groups)))
        elif args.format == "json":
            output(tables.to_json(groups, remarks, compared.rows if compared else []))
        else:
            markdown = args.format == "markdown"
            parts = [tables.to_text(groups, markdown), *([compared.to_text(markdown)] if compared else []), *remarks]
            output("\n\n".join(parts))
        if args.format == "html":
            several = len(workdirs) + len(others) > 1
            first = groups[0].runs[0].workdir
            output(page.write_to(out or (first.parent / "report" if several else first), groups, remarks, compared))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Files that are valid and hold what no run writes. There is no end to what that may be.
        names = ", ".join(map(str, [*args.workdirs, *args.against]))
        sys.exit(f"error: a file of {names} is not what a run writes ({type(error).__name__}: {error}). Restore it.")


def _without_repeats(workdirs: Sequence[pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """Workdirs as they were given, by the folders that they are."""
    return {workdir.resolve(): workdir for workdir in workdirs}


if __name__ == "__main__":
    main()
