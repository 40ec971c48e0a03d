"""The rules of the fields of configs/default.py that nothing else checks, each by itself; and those without effect.

Data sets, models and schedules check others themselves.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import optimizers
from runtime import averages, durations, fields

RULES: Mapping[str, fields.Rule] = {
    "seed": fields.needs(lambda value: 0 <= value < 2**32, "in [0, 2**32)"),
    "splits": fields.needs(lambda v: [type(s) for s in v] == [str, str], "two strings, as in ('train', 'test')"),
    "image_size": fields.needs(lambda v: 0 <= v <= 10_000, "in [0, 10000]"),
    "num_validation": fields.NOT_NEGATIVE,
    "init_skip": fields.needs(lambda v: all(isinstance(s, str) and s.strip("/") for s in v), "names, as ('Dense_0',)"),
    "label_noise": fields.SHARE,
    **dict.fromkeys(("batch_size", "eval_batch_size", "accumulate"), fields.POSITIVE_INT),
    "profile": fields.needs(
        lambda value: [type(v) for v in value] == [int, int] and (value == (0, 0) or 0 <= value[0] < value[1]),
        "two integers, (first, end) with first below end, or (0, 0)",
    ),
    **dict.fromkeys(("augment.crop_padding", "augment.cutout"), fields.needs(lambda v: 0 <= v <= 1000, "in [0, 1000]")),
    "augment.erasing": fields.needs(lambda value: 0 <= value <= 1, "in [0, 1]"),
    **dict.fromkeys(("augment.mixup", "augment.cutmix"), fields.NOT_NEGATIVE),
    **dict.fromkeys(("augment.rand_augment", "augment.magnitude"), fields.needs(lambda v: 0 <= v <= 10, "in [0, 10]")),
    "augment.resized_crop": fields.needs(lambda value: 0 < value <= 1, "in (0, 1]"),
    "duration": fields.length,
    **dict.fromkeys(durations.PERIODS, fields.period),
    **dict.fromkeys(("snapshot_every", "evaluate_sets_every"), fields.or_empty(fields.period)),
    **dict.fromkeys(("keep_checkpoints", "max_rejected_steps"), fields.POSITIVE_INT),
    "steps_per_dispatch": fields.NOT_NEGATIVE,
    "model.dtype": fields.one_of(("float32", "bfloat16")),
    "model.hidden_sizes": fields.needs(
        lambda value: all(type(v) is int and 0 < v < 2**31 for v in value), "positive integers"
    ),
    **dict.fromkeys(("model.width", "model.depth", "model.patch"), fields.POSITIVE_INT),
    "model.stem": fields.one_of(("cifar", "imagenet")),
    **dict.fromkeys(("model.dropout", "model.stochastic_depth"), fields.SHARE),
    "loss.label_smoothing": fields.SHARE,
    "loss.l2_penalty": fields.NOT_NEGATIVE,
    "optimizer.name": fields.one_of(optimizers.OPTIMIZERS),
    **dict.fromkeys(("optimizer.momentum", "optimizer.b1", "optimizer.b2"), fields.SHARE),
    "optimizer.learning_rate": fields.NOT_NEGATIVE,
    "optimizer.weight_decay": fields.NOT_NEGATIVE,
    "optimizer.clip_norm": fields.NOT_NEGATIVE,
    "optimizer.gradient_noise": fields.NOT_NEGATIVE,
    "optimizer.schedule": fields.one_of(optimizers.SCHEDULES),
    "optimizer.warmup": fields.duration,
    "optimizer.decay": fields.period,
    "optimizer.groups.*.match": fields.regular_expression,
    **dict.fromkeys(
        (f"optimizer.groups.*.{name}" for name in ("factor", "weight_decay_factor", "clip_norm")), fields.NOT_NEGATIVE
    ),
    "optimizer.groups.*.every": fields.POSITIVE_INT,
    **averages.RULES,
    "recompute_batches": fields.POSITIVE_INT,
}


def unused_fields(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields that others make meaningless, each with the reason; not those that their owner does not take."""
    for field, reason in optimizers.unused_fields(config["optimizer"]):
        yield f"optimizer.{field}", reason
    for name, group in config["optimizer"]["groups"].items():
        if not group["factor"]:
            for field in ("weight_decay_factor", "clip_norm", "every"):
                yield f"optimizer.groups.{name}.{field}", "with a factor of 0 these parameters stay as they are"
        elif not config["optimizer"]["weight_decay"]:
            yield f"optimizer.groups.{name}.weight_decay_factor", "optimizer.weight_decay is 0"
    if not config["augment"]["rand_augment"]:
        yield "augment.magnitude", "augment.rand_augment is 0"
    if not config["init_from"]:
        yield from ((name, "init_from is empty") for name in ("init_weights", "init_skip"))
    yield from averages.unused_fields(config["averages"])
    kept = (average for average in config["averages"].values() if average["kind"] != "none")
    if all(average["batch_stats"] != "recompute" for average in kept):
        yield "recompute_batches", "no average has batch_stats = 'recompute'"
