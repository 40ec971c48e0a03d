"""Why averaging works for a run, or doesn't: the loss around its raw and averaged weights, in pictures and numbers.

    python -m tools.diagnose runs/mnist
    python -m tools.diagnose runs/mnist runs/mnist_seed1

Scores weights on the line through raw and average, on the line between two checkpoints, and in the plane through all
three; with a second run of the same model, on the line between the runs too, with hidden units matched and not.
Measures how sharply the loss curves at raw and average, which oscillations of single weights the average removes, and
how averaged weights compare with averaged predictions. Some hundred steps of training are repeated for that.

Numbers and pictures go to WORKDIR/diagnosis, and into the run's report.html. Nothing else in WORKDIR is changed. A run
with --config.snapshot_every=6.25% has more weights to look at.
"""

import json
import math
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import tools
from reporting import diagnosis, page
from reporting.runs import Run
from runtime import caching, environment
from runtime.errors import UserError
from runtime.files import local_path, replace_file
from runtime.progress import say, under_way
from tools import command_line
from tools.diagnosis import curvature, ensembles, landscape, matching, spectrum
from tools.diagnosis.curvature import NUM_BATCHES
from tools.diagnosis.spectrum import NUM_ITERATES
from tools.diagnosis.subject import NotPossibleError, Subject


def diagnose(
    workdir: pathlib.Path, other: pathlib.Path | None = None, *, average: str = "", num_images: int, num_steps: int
) -> dict[str, Any]:
    """Looks at a run from all sides.

    Args:
        workdir: of the run.
        other: of a second run of the same model, or None.
        average: the name of the average to look at, or empty for the one that the best evaluation goes by.
        num_images: of training and of test images to score, at most.
        num_steps: of training to repeat.

    Returns:
        The findings of each part by its name, as plain values; of a part that was not possible the reason as `skipped`.

    Raises:
        UserError: a run that cannot be used.
    """
    Run.read(workdir)  # which the page at the end is made of
    subject = Subject.read(workdir, average, num_images)
    theirs = matching.find_other(subject, other) if other else None
    found: dict[str, Any] = {
        "step": subject.run.stored[-1].record.step,
        "average": subject.average,
        "num_images": {split: int(images.mask.sum()) for split, images in subject.images.items()},
    }
    with under_way(f"Repeating {num_steps} steps of training"):
        trace = spectrum.retrain(subject, num_steps)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "line": lambda: landscape.through(subject),
        "checkpoints": lambda: landscape.between_checkpoints(subject),
        "plane": lambda: landscape.plane(subject, trace),
        "sharpness": lambda: curvature.sharpness(subject),
        "ensembles": lambda: ensembles.ensembles(subject, trace),
        "oscillations": lambda: spectrum.oscillations(trace),
    }
    if other and theirs:
        parts["runs"] = lambda: matching.between_runs(subject, other, theirs)
    for number, (name, part) in enumerate(parts.items(), 1):
        with under_way(f"Part {number} of {len(parts)}: {name}"):
            try:
                found[name] = part()
            except NotPossibleError as error:
                found[name] = {"skipped": str(error)}
    return plain(found)


def plain(value: Any) -> Any:
    """Values as JSON has them, with None for what is not finite."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def main() -> None:
    """Diagnoses the run on the command line."""
    parser = tools.parser("diagnose", __doc__)
    parser.add_argument("workdir", type=local_path, metavar="WORKDIR", help="folder of the run")
    parser.add_argument("other", type=local_path, metavar="OTHER", nargs="?", help="folder of another run")
    parser.add_argument("--average", default="", help="name of the average; default: the one of config.best_curve")
    parser.add_argument("--images", type=int, default=1500, help="of each split to score; default: %(default)s")
    parser.add_argument("--steps", type=int, default=300, help="of training to repeat; default: %(default)s")
    args = parser.parse_args()
    if args.images < 2 * NUM_BATCHES or args.steps < 6 * NUM_ITERATES:
        parser.error(f"--images must be at least {2 * NUM_BATCHES}, --steps at least {6 * NUM_ITERATES}")
    try:
        caching.enable_if_possible(command_line.CACHE_DIR)
        found = diagnose(args.workdir, args.other, average=args.average, num_images=args.images, num_steps=args.steps)
        found["environment"] = environment.describe()
        found["command"] = shlex.join(["python", "-m", "tools.diagnose", *sys.argv[1:]])
        folder = args.workdir / "diagnosis"
        folder.mkdir(exist_ok=True)
        replace_file(folder / "numbers.json", json.dumps(found) + "\n")
        say(diagnosis.write_pictures(folder, found))
        say(page.write(args.workdir))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
