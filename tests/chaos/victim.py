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

    import input_pipeline
    import settings
    import train
    from reporting import page
    from runtime import checkpointing, dispatch, metric_writing, progress, run_folder, sharding

    def enter(phase: str) -> None:
        notes[0] = PHASES.index(phase)

    def wrap(owner, name, wrapper, *args):
        setattr(owner, name, functools.wraps(getattr(owner, name))(wrapper(getattr(owner, name), *args)))

    def begins(function, phase):
        """The function, whose call begins a phase that lasts until the next one."""

        def noted(*args, **kwargs):
            enter(phase)
            return function(*args, **kwargs)

        return noted

    def during(function, phase):
        """The function, with its phase noted while it runs."""

        def noted(*args, **kwargs):
            before = notes[0]
            enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                notes[0] = before

        return noted

    def writing(save):
        """The function, which begins to write a checkpoint in the background."""

        def noted(*args, **kwargs):
            notes[1] += 1
            return save(*args, **kwargs)

        return noted

    def finishing(finish):
        """The function, at whose end a checkpoint is written."""

        def noted(*args, **kwargs):
            finish(*args, **kwargs)
            notes[1] -= 1

        return noted

    wrap(settings, "prepare", begins, "data")
    wrap(sharding, "create", begins, "state")
    wrap(input_pipeline, "load", begins, "data")
    wrap(run_folder, "hold", begins, "workdir")
    wrap(dispatch.Dispatcher, "__enter__", begins, "compile")
    wrap(progress.Progress, "at", begins, "train")  # first called when the first step is done
    wrap(train, "evaluate", during, "evaluate")
    wrap(checkpointing.Checkpoints, "save", during, "save")
    wrap(checkpointing.Checkpoints, "save_snapshot", during, "save")
    wrap(checkpointing.Checkpoints, "_save", writing)
    wrap(checkpointing.Checkpoints, "_finish", finishing)
    wrap(metric_writing.MetricWriter, "write", during, "log")
    wrap(page, "write", during, "report")

    sys.argv[0] = str(root / "main.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
