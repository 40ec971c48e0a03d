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

import pathlib
import sys
from collections.abc import Sequence

import tools
from reporting import against, page, runs, sweep, tables
from runtime.errors import UserError
from runtime.files import local_path
from runtime.progress import output


def report_sweep(folder: pathlib.Path, format_: str, out: pathlib.Path) -> None:
    """Prints the verdict of a sweep and, as html, writes its page."""
    found = sweep.read(folder)
    if format_ in ("csv", "json"):
        output(tables.to_csv(found.to_rows()) if format_ == "csv" else found.to_json())
        return
    output(found.to_text(format_ == "markdown"))
    if format_ == "html":
        from reporting import sweep_page

        output(sweep_page.write(out, found))


def report_runs(
    workdirs: Sequence[pathlib.Path], others: Sequence[pathlib.Path], format_: str, out: pathlib.Path | None
) -> None:
    """Prints the table of runs and, as html, writes their page; see `against.compare` of `others`."""
    groups, remarks = runs.read(workdirs)
    compared = None
    if others:
        others_groups, others_remarks = runs.read(others)
        everything = runs.labelled([*groups, *others_groups])
        compared = against.compare(everything[: len(groups)], everything[len(groups) :])
        groups, remarks = everything, [*remarks, *others_remarks, *compared.remarks]
    if format_ == "csv":
        output(tables.to_csv(compared.rows if compared else tables.to_rows(groups)))
    elif format_ == "json":
        output(tables.to_json(groups, remarks, compared.rows if compared else []))
    else:
        markdown = format_ == "markdown"
        parts = [tables.to_text(groups, markdown), *([compared.to_text(markdown)] if compared else []), *remarks]
        output("\n\n".join(parts))
    if format_ == "html":
        first, several = groups[0].runs[0].workdir, len(workdirs) + len(others) > 1
        output(page.write_to(out or (first.parent / "report" if several else first), groups, remarks, compared))


def main() -> None:
    """Writes the page of the workdirs on the command line, or prints their table."""
    parser = tools.parser("report", __doc__)
    parser.add_argument("workdirs", nargs="+", type=local_path, metavar="WORKDIR", help="folder of a run")
    against_help = "runs that differ in nothing but the seed, to compare the others with, paired by seed"
    parser.add_argument("--against", nargs="+", type=local_path, default=[], metavar="WORKDIR", help=against_help)
    format_help = "html, the default, writes the page and the pictures and prints the table; the others only print"
    formats = ("html", "table", "markdown", "csv", "json")
    parser.add_argument("--format", choices=formats, default="html", help=format_help)
    out_help = "folder of the page; default: the workdir, or of several, `report` beside the first"
    parser.add_argument("--out", type=local_path, help=out_help)
    args = parser.parse_args()
    given = [*args.workdirs, *args.against]
    try:
        # One of seeds alone leaves nothing to choose between: it is reported as its runs are.
        swept = [folder for folder in given if (folder / "sweep.json").is_file() and not sweep.seeds(folder)]
        if swept and len(given) > 1:
            raise UserError(f"{swept[0]} is the folder of a sweep; give it alone, or some of the runs in it")
        if swept:
            report_sweep(swept[0], args.format, args.out or swept[0])
            return
        workdirs, others = _runs_in(args.workdirs), _runs_in(args.against)
        if twice := [str(workdir) for path, workdir in workdirs.items() if path in others]:
            raise UserError(f"--against: {', '.join(twice)} cannot be compared with itself; give it on one side only")
        out = args.out or next((folder for folder in args.workdirs if sweep.seeds(folder)), None)
        report_runs([*workdirs.values()], [*others.values()], args.format, out)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Files that are valid and hold what no run writes. There is no end to what that may be.
        names = ", ".join(map(str, given))
        sys.exit(f"error: a file of {names} is not what a run writes ({type(error).__name__}: {error}). Restore it.")


def _runs_in(folders: Sequence[pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """The runs in these folders, those of a sweep of nothing but seeds each, as given, by the folders that they are."""
    return {run.resolve(): run for folder in folders for run in sweep.seeds(folder) or [folder]}


if __name__ == "__main__":
    main()
