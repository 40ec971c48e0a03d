"""The scores of one evaluation, of a run or of several that differ only in their seed, and what may be said of them."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import numpy as np

from runtime import intervals

FEW_SEEDS = 5  # below it, Student's interval depends on the normal distribution, and is wide
# A limit of the interval of a single run.
ONE_RUN = "A single run. To judge whether averaging helps, report several seeds (--config.seed=1, ...) together."


@dataclasses.dataclass(frozen=True)
class Scoring:
    """By which metrics a run is judged. The defaults are for runs that do not say so.

    Attributes:
        metric: the first one, by which the best checkpoint is chosen.
        directions: for each metric whose direction is known, whether "higher" or "lower" is better.
        proportions: metrics to show in %, and their differences in points.
        examples: what is scored, in the plural.
    """

    metric: str = "accuracy"
    directions: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"accuracy": "higher", "loss": "lower"})
    proportions: Collection[str] = ("accuracy",)
    examples: str = "images"

    @classmethod
    def of(cls, config: Mapping[str, Any], found: Collection[str]) -> Self:
        """That of a run.

        Args:
            config: of the run, as `{"best_metric": "accuracy", "metrics.accuracy": "higher"}`; may lack everything.
            found: the metrics that it has.
        """
        stored = {name.removeprefix("metrics."): way for name, way in config.items() if name.startswith("metrics.")}
        directions = stored or {name: way for name, way in cls().directions.items() if name in found}
        metric = config.get("best_metric") or next(iter(directions), next(iter(found), "loss"))
        others = {name: way for name, way in directions.items() if name != metric}
        known = {metric: directions[metric]} if metric in directions else {}
        examples = "images" if config.get("task", "classification") == "classification" else "examples"
        return cls(metric, known | others, tuple(config.get("proportions", cls().proportions)), examples)

    def summarize(self, metrics: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """One evaluation of one run, or of several that differ only in the seed, as a row for each set of weights.

        Args:
            metrics: of each run, by weights and paired difference `NAME-raw`, as `evaluation.evaluate` returns them.

        Returns:
            For each the name of the weights, `curve`, and the number of `runs`; `of`, the first metric, and what is
            `better`, "higher" or "lower"; the mean of each metric METRIC and of `agreement`, and with several runs the
            standard deviation METRIC_sd. Of averages also the differences to the raw weights METRIC_difference with
            the 95 % interval METRIC_low .. METRIC_high over `over`: `examples`, for a single run, or "seeds", paired by
            Student's t. Values that were not finite are None.
        """
        weights = [name for name in metrics[0] if not name.endswith("-raw")]
        shared = [name for curve in weights for name in metrics[0][curve] if all(name in run[curve] for run in metrics)]
        found = {metric: None for metric in shared if metric not in NO_METRICS}
        rows = []
        for curve in weights:
            row: dict[str, Any] = {"curve": curve, "runs": len(metrics), "of": self.metric}
            row["better"] = self.directions.get(self.metric, "")
            pairs = [run.get(f"{curve}-raw", {}) for run in metrics]
            for name in sorted(found, key=[*self.directions, *found].index):
                row |= _mean(name, [run[curve].get(name) for run in metrics])
                if pairs[0]:
                    row |= difference(name, pairs)
            if "agreement" in pairs[0]:
                row |= _mean("agreement", [pair["agreement"] for pair in pairs])
            if pairs[0]:
                row["over"] = "seeds" if len(pairs) > 1 else self.examples
            rows.append(row)
        return rows

    def is_percent(self, name: str) -> bool:
        """Whether to show a metric in %."""
        return name in (*self.proportions, "agreement", "calibration_error")

    def verdict(self, row: Mapping[str, Any], other: str = "raw") -> str:
        """A sentence on a row's difference to `other`. Only over seeds does it claim that something helps."""
        curve, metric, better = row["curve"], row["of"], row["better"]
        low, high = (row[f"{metric}_{end}"] for end in ("low", "high"))
        if None in (row[f"{metric}_difference"], row.get("loss", 0.0)):
            return f"{curve} minus {other}: not all scores are finite, so they say nothing."
        less = " (less is better)" if better == "lower" else ""
        unit = f"points of {metric}" if self.is_percent(metric) else f"in {metric}{less}"
        size = f"{self.format_difference(row, metric)} {unit}"
        if row["over"] == self.examples:
            interval = f"95 % interval over {self.examples} like these"
            interval = interval if low is not None else f"of a single {self.examples.removesuffix('s')}"
            return f"{curve} minus {other}: {size}, {interval}."
        if low is None:
            return f"{curve} minus {other}: {size}, of a single seed."
        if min(low, high) > 0 or max(low, high) < 0:
            outcome = "scores better than" if (low > 0) == (better == "higher") else "scores worse than"
            outcome = outcome if better else "differs from"
        else:
            outcome = "cannot be told from"
        return f"{curve} {outcome} {other}: {size}, 95 % interval over {row['runs']} seeds, paired by seed."

    def format_difference(self, row: Mapping[str, Any], metric: str) -> str:
        """A difference with its interval: `+9.38 (+6.32 .. +12.39)`, of proportions in points."""
        form, factor = ("{:+.2f}", 100) if self.is_percent(metric) else ("{:+.3g}", 1)
        found = (row[f"{metric}_{what}"] for what in ("difference", "low", "high"))
        mean, *interval = (form.format(factor * value) for value in found if value is not None)
        return f"{mean} ({' .. '.join(interval)})" if interval else mean  # none over a single image


def few_seeds(name: str, number: int) -> list[str]:
    """A remark if an interval comes from few seeds."""
    if not 1 < number < FEW_SEEDS:
        return []
    return [
        f"{name}: {number} seeds are few. The interval is wide, and right only if differences are normally "
        f"distributed. Take {FEW_SEEDS} or more to decide by."
    ]


# What a line of an evaluation has besides metrics.
NO_METRICS = ("step", "curve", "split")


def _mean(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """A metric over the runs, and with several its standard deviation; None if not finite in all of them."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return {name: None}
    spread = {f"{name}_sd": float(np.std(finite, ddof=1))} if len(finite) > 1 else {}
    return {name: float(np.mean(finite))} | spread


def difference(name: str, pairs: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """A difference and its bounds, each None if not finite: over the images of one run, or over several runs.

    Args:
        name: of the metric.
        pairs: of each run, the difference by name, with its bounds if there are any.
    """
    names = (f"{name}_difference", f"{name}_low", f"{name}_high")
    if name not in pairs[0]:  # a metric of the whole set
        return {}
    values = [pair[name] for pair in pairs]
    if len(pairs) == 1:
        return dict(zip(names, (values[0], *(pairs[0].get(end) for end in names[1:])), strict=True))
    if None in values:
        return dict.fromkeys(names)
    return dict(zip(names, map(float, intervals.mean_interval(np.array(values))), strict=True))
