"""Durations such as "10 epochs" and "2%", and the one rule for when something periodic is due."""

import dataclasses
import math
import re
from fractions import Fraction

_DURATION = re.compile(r"\s*(?P<number>\d+(\.\d+)?|\d+/[1-9]\d*)\s*(?P<unit>%|[a-z]+)\s*", re.ASCII)
# The fields of a config that say how often something is due.
PERIODS = ("log_every", "eval_every", "evaluate_sets_every", "checkpoint_every", "snapshot_every")
_UNITS = ("steps", "epochs", "examples", "%")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A number with its unit, not yet converted to steps."""

    number: Fraction
    unit: str  # one of _UNITS

    def to_steps(self, *, batch_size: int, num_examples: int | None, total: Fraction | int | None = None) -> Fraction:
        """The exact number of steps, a fraction where the unit does not divide evenly.

        Args:
            batch_size: examples in one step.
            num_examples: examples in one epoch; None if there are no epochs.
            total: steps of the whole training, which percentages refer to.

        Raises:
            ValueError: a percentage where there is no total to refer to, or epochs where there are none.
        """
        if self.unit == "%":
            if total is None:
                raise ValueError("the length of training cannot be a percentage of itself")
            return self.number * total / 100
        if self.unit == "steps":
            return self.number
        if self.unit == "examples":
            return self.number / batch_size
        if num_examples is None:
            raise ValueError("this task has no epochs; give it in steps")
        return self.number * num_examples / batch_size


def parse(text: str) -> Duration:
    """Reads `"500 steps"`, `"10 epochs"`, `"60000 examples"` or `"2%"`; the singular is accepted, and `"1875/2 steps"`.

    Raises:
        ValueError: for anything else.
    """
    match = _DURATION.fullmatch(text)
    unit = match["unit"] if match else ""
    unit = unit if unit in _UNITS else unit + "s"
    if match is None or unit not in _UNITS:
        raise ValueError(f'{text!r} is not a duration; write "500 steps", "10 epochs", "60000 examples" or "2%"')
    return Duration(Fraction(match["number"]), unit)


def in_words(period: Fraction | int) -> str:
    """How often something with this period is due, as people say it: "every 5.6 steps" for 901/160."""
    if period <= 1:
        return "every step"
    return f"every {period} steps" if isinstance(period, int) else f"every {float(period):.1f} steps"


def next_due(step: int, period: Fraction | int) -> int:
    """The first step after `step` at which something with this period is due.

    Firing `k = 1, 2, ...` is due at step `ceil(k * period)`, so a period that is no whole number of steps (an epoch,
    usually) neither drifts nor loses a firing. A period below one step is due at every step.
    """
    return max(step + 1, math.ceil((step // period + 1) * period))


def is_due(step: int, period: Fraction | int) -> bool:
    """Whether something with this period is due at `step`. Nothing else decides that."""
    return next_due(step - 1, period) == step
