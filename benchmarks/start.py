"""How long from the start of the process to the end of the first training step?

    python -m benchmarks.start

Starts `main.py` as a command, with `--v=1`, which makes it say when the first step was finished, and stops it there.
What it compiles it keeps in `--cache_dir`: a cold start finds an empty folder, the warm start after it the same one.
Cold and warm starts alternate. `seconds` are those on this program's clock until it reads that line, `own clock` what
the line says.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging

from benchmarks import measure

_CONFIG = flags.DEFINE_string("config", "configs/mnist.py", "What to start.")
_PAIRS = flags.DEFINE_integer("pairs", 6, "Number of cold and of warm starts.", lower_bound=measure.MIN_ROUNDS)

ROOT = pathlib.Path(__file__).parents[1]


def start(cache_dir: str) -> dict[str, float]:
    """Starts once.

    Args:
        cache_dir: what was compiled before.

    Returns:
        Seconds until the first step was finished, on both clocks.
    """
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "main.py", f"--config={_CONFIG.value}", f"--workdir={workdir}/run"]
        command += ["--v=1", f"--cache_dir={cache_dir}"]
        output = []
        started = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                output.append(line)
                if match := re.search(r"^\s*first step\s+([\d.]+)", line):
                    seconds = time.perf_counter() - started
                    process.terminate()
                    # Until it has ended: it may be writing to the folders still.
                    process.communicate()
                    return {"seconds": seconds, "own clock": float(match[1])}
    sys.exit(f"error: main.py ended without a line on its first step:\n{''.join(output[-20:])}")


def main(argv: list[str]) -> None:
    """Starts again and again, and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    starts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(_PAIRS.value):
        with tempfile.TemporaryDirectory() as cache_dir:
            for name in starts:
                starts[name].append(start(cache_dir))
    seconds = {name: [one["seconds"] for one in runs] for name, runs in starts.items()}
    rows = []
    for name in starts:
        own = measure.summary([one["own clock"] for one in starts[name]])["median"]
        ratio = measure.paired_ratio(seconds[name], seconds["cold"])
        row = measure.summary(seconds[name])
        rows.append({"start": name, "seconds": row.pop("median"), **row, "own clock": own, **ratio})
    measure.write("start", rows, starts=starts, config=_CONFIG.value)


if __name__ == "__main__":
    app.run(main)
