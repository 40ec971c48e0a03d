"""Sweeps as their files have them, without any training."""

import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

Scores = Mapping[str, float | None]


def make_sweep(
    folder: pathlib.Path,
    fields: Mapping[str, Sequence[str]],
    score: Callable[..., Scores | None],
    *,
    seeds: int = 5,
    metrics: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
    steps: Callable[..., int] = lambda *_: 20,
    **choice: str,
) -> pathlib.Path:
    """A sweep whose runs have made-up scores.

    Args:
        folder: of the sweep.
        fields: the values of each field.
        score: of the values of a run and its seed, its first metric at the end as {"validation/ema": 0.9, ...};
            None: the run has not begun.
        seeds: how many.
        metrics: with what is better; the first one is given.
        config: more fields of the config.
        steps: of the same, how far the run is; it ends at 20.
        **choice: the `judge` or the `metric` that was asked for.
    """
    metrics = dict(metrics or {"accuracy": "higher", "loss": "lower"})
    metric, planned = next(iter(metrics)), []
    ends = [field.rpartition(".")[2] for field in fields]
    for values in itertools.product(*fields.values()):
        for seed in range(seeds):
            named = ",".join(f"{end}={value}" for end, value in zip(ends, values, strict=True))
            workdir = str(pathlib.PurePosixPath(named, f"seed{seed}"))
            planned.append({"workdir": workdir, "values": dict(zip(fields, values, strict=True)), "seed": seed})
            found = score(*values, seed)
            if found is None:
                continue
            lines = []
            for name, value in found.items():
                split, curve = name.split("/")
                lines.append({"step": steps(*values, seed), "curve": curve, "split": split, metric: value})
            about = {"seed": seed, "duration": 20, "best_metric": metric, "best_curve": "ema", "metrics": metrics}
            (folder / workdir).mkdir(parents=True)
            (folder / workdir / "config.json").write_text(json.dumps(about | dict(config or {})))
            (folder / workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.mkdir(exist_ok=True)
    plan = {"config": "configs/digits.py", "overrides": [], "fields": fields, "seeds": seeds, "runs": planned}
    (folder / "sweep.json").write_text(json.dumps(plan | choice))
    return folder
