"""How long a report takes, as a whole process, and how large its page is: of one short run, of three long ones, of 30.

python -m benchmarks.report
"""

import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import app, flags, logging

from benchmarks import measure

_ROUNDS = flags.DEFINE_integer(
    "rounds", measure.MIN_ROUNDS, "How often each is timed, in turns.", lower_bound=measure.MIN_ROUNDS
)
ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM_ITERATES = 1000


def write_run(workdir: pathlib.Path, num_evaluations: int, **config: float) -> None:
    """The files of a run with three averages, whose curves are made up."""
    workdir.mkdir()
    lines = []
    for step in range(1, num_evaluations + 1):
        lines.append({"step": step, "curve": "train", "loss": 1 / step, "learning_rate": 0.1})
        for number, curve in enumerate(("raw", "fast", "ema", "slow")):
            score = {"accuracy": 0.9 - 0.5 / math.sqrt(step) + 0.01 * math.sin(step * (number + 2)), "loss": 1 / step}
            shared = {"step": step, "split": "test"}
            lines.append(shared | {"curve": curve} | score)
            if curve != "raw":
                bounds = {"accuracy": 0.02, "accuracy_low": 0.01, "accuracy_high": 0.03, "loss": 0.0}
                lines.append(shared | {"curve": f"{curve}-raw"} | bounds | {"loss_low": 0.0, "loss_high": 0.0})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (workdir / "config.json").write_text(json.dumps({"duration": num_evaluations} | config))
    numbers = {"initial_weight": 0.0, "mean_age": 500.0, "half_life": 500.0, "effective_number": 1000.0}
    kernel = {"num_updates": NUM_ITERATES, "iterates_per_bin": 1, "kernel": [1 / NUM_ITERATES] * NUM_ITERATES}
    average = {"kind": "running_mean"} | numbers | kernel
    (workdir / "averages.json").write_text(json.dumps(dict.fromkeys(("fast", "ema", "slow"), average)))


def report(*workdirs: pathlib.Path) -> None:
    """Runs the command."""
    subprocess.run([sys.executable, "-m", "tools.report", *workdirs], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


def main(argv: list[str]) -> None:
    """Times them and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_run(folder / "short", 10)
        for number in range(3):
            write_run(folder / f"seed{number}", 1000, seed=number)
            write_run(folder / f"config{number}", 1000, batch_size=number)
        for number in range(30):
            write_run(folder / f"many{number:02}", 20, batch_size=number)
        variants = {
            "one run, 10 evaluations": functools.partial(report, folder / "short"),
            "three seeds, 1000 evaluations": functools.partial(report, *folder.glob("seed?")),
            "three configs, 1000 evaluations": functools.partial(report, *folder.glob("config?")),
            "30 configs, 20 evaluations": functools.partial(report, *folder.glob("many??")),
        }
        seconds = measure.interleaved(variants, _ROUNDS.value)
        megabytes = {}
        for name, write in variants.items():
            write()
            megabytes[name] = max(folder.rglob("report.html"), key=os.path.getmtime).stat().st_size / 1e6
    rows = [{"what": name, "megabytes": megabytes[name], **measure.summary(x)} for name, x in seconds.items()]
    measure.write("report", rows, seconds=seconds)


if __name__ == "__main__":
    app.run(main)
