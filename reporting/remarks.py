"""What to know about a run before its numbers are read."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


def about_run(workdir: pathlib.Path, lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[str]:
    """Sentences on a run that is not finished, and on steps that were rejected.

    Args:
        workdir: of the run.
        lines: of `metrics.jsonl`.
        config: flat, as `Run.config`.
    """
    remarks = []
    step, duration = max(line["step"] for line in lines), config.get("duration")
    if duration and step < duration:
        remarks.append(f"{workdir} is not finished: it is at step {step} of {duration}.")
    trained = [line for line in lines if line["curve"] == "train"]
    if trained and (rejected := trained[-1].get("rejected_steps")):
        step = trained[-1]["step"]
        reason = "rejected, because the loss or the gradient was not finite"
        remarks.append(f"{workdir}: {rejected} of {step} steps {'was' if rejected == 1 else 'were'} {reason}.")
        if config.get("optimizer.schedule") != "constant" or config.get("optimizer.warmup"):
            remarks[-1] += f" The learning-rate schedule therefore stands at step {step - rejected}."
    return remarks
