"""How long from the start of the process to the end of the first training step?

    python -m benchmarks.start

Starts `main.py` as a command, and stops it at the line "Compiling the training step: done in ...", which it prints as
soon as the first dispatch, of a single step, is finished. `seconds` are those from before the command to reading that
line. What it compiles it keeps in `--cache_dir`: a cold start finds an empty folder, the warm start after it the same
one. Cold and warm starts alternate.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging

from benchmarks import measure

_CONFIG = flags.DEFINE_string("config", "configs/mnist.py", "What to start.")
_PAIRS = flags.DEFINE_integer("pairs", 6, "Number of cold and of warm starts.", lower_bound=measure.MIN_ROUNDS)

ROOT = pathlib.Path(__file__).parents[1]
FIRST_STEP = "Compiling the training step: done"


def start(cache_dir: str) -> float:
    """Starts once.

    Args:
        cache_dir: what was compiled before.

    Returns:
        Seconds until the first step was finished.
    """
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "main.py", f"--config={_CONFIG.value}", f"--workdir={workdir}/run"]
        command.append(f"--cache_dir={cache_dir}")
        output = []
        started = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                output.append(line)
                if line.startswith(FIRST_STEP):
                    seconds = time.perf_counter() - started
                    process.terminate()
                    # Until it has ended: it may be writing to the folders still.
                    process.communicate()
                    return seconds
    sys.exit(f"error: main.py ended without the line {FIRST_STEP!r}:\n{''.join(output[-20:])}")


def main(argv: list[str]) -> None:
    """Starts again and again, and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(_PAIRS.value):
        with tempfile.TemporaryDirectory() as cache_dir:
            for values in seconds.values():
                values.append(start(cache_dir))
    rows = []
    for name, values in seconds.items():
        row, ratio = measure.summary(values), measure.paired_ratio(values, seconds["cold"])
        rows.append({"start": name, "seconds": row.pop("median"), **row, **ratio})
    measure.write("start", rows, seconds=seconds, config=_CONFIG.value)


if __name__ == "__main__":
    app.run(main)
