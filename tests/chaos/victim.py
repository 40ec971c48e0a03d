"""main.py, which notes in a file what it is doing, so that the one who kills it knows where the kill landed.

python tests/chaos/victim.py NOTES --config=... --workdir=...
"""

import functools
import mmap
import pathlib
import runpy
import sys

PHASES = ("imports", "data", "state", "workdir", "compile", "train", "evaluate", "save", "log", "report")
# What is noted: the number of the phase, and how many checkpoints are being written in the background.
SIZE = 2


def read(path: pathlib.Path) -> tuple[str, bool]:
    """The phase that a process is in, or was when it died, and whether it was writing a checkpoint."""
    phase, saving = path.read_bytes()
    return PHASES[phase], saving > 0


def main() -> None:
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    sys.path[0] = str(root)
    with open(sys.argv.pop(1), "r+b") as file:
        notes = mmap.mmap(file.fileno(), SIZE)

    import train
    from reporting import page
    from runtime import checkpointing, metric_writing, startup

    def enter(phase: str) -> None:
        notes[0] = PHASES.index(phase)

    def during(phase, function):
        """The function, with its phase noted while it runs."""

        @functools.wraps(function)
        def noted(*args, **kwargs):
            before = notes[0]
            enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                notes[0] = before

        return noted

    mark, finalize = startup.mark, checkpointing._Digested.finalize
    follows = {"imports": "data", "read data": "state", "data to device": "workdir", "workdir": "compile"}

    def mark_and_enter(phase):
        mark(phase)
        if phase in follows:
            enter(follows[phase])
        elif phase == "first step":
            enter("train")

    async def finalize_and_tell(self):
        await finalize(self)
        if self.get_final().name.isdigit():
            notes[1] -= 1

    def saving(save):
        def tell_and_save(*args, **kwargs):
            notes[1] += 1
            return save(*args, **kwargs)

        return during("save", tell_and_save)

    startup.mark = mark_and_enter
    checkpointing._Digested.finalize = finalize_and_tell
    checkpointing.Checkpoints.save = saving(checkpointing.Checkpoints.save)
    checkpointing.Checkpoints.save_snapshot = saving(checkpointing.Checkpoints.save_snapshot)
    train.evaluate = during("evaluate", train.evaluate)
    metric_writing.MetricWriter.write = during("log", metric_writing.MetricWriter.write)
    page.write = during("report", page.write)

    sys.argv[0] = str(root / "main.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
