"""Averages with several options at once, against the words of configs/default.py written down once more in float64."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import reference
from conftest import digits_config, resolve
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

import optimizers
import train
from configs import default
from runtime import average_table, averages
from train_state import Average, CustomTrainState

DURATIONS = ("start", "every", "restart_every", "duration", "period", "half_life")
POLICIES = ("average", "copy", "recompute")
# The options of each kind, from lists of numbers in [0, 1): so hypothesis and NumPy can draw them.
KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "ema": lambda u, v: {"decay": 1 - 10 ** (-7 * u), "debias": v < 0.7},
    "warmup_ema": lambda u, v: {"decay": u},
    "running_mean": lambda u, v: {},
    "polynomial_decay_mean": lambda u, v: {"eta": 20 * u},
    "power_ema": lambda u, v: {"width": 0.01 + 0.27 * u},
    "soft_update": lambda u, v: {"tau": 1 - u},
    "cosine_update": lambda u, v: {"tau": 1 - u, "duration": 1 + int(60 * v)},
    "hard_update": lambda u, v: {"period": 1 + int(9 * u)},
}


def options(kind: str, u: list[float]) -> dict[str, Any]:
    """The fields of an average, with durations in steps: of every option each value as often as it pleases `u`."""
    fields = {"kind": kind, **KINDS[kind](u[0], u[1])}
    fields["start"] = int(12 * u[2]) if u[3] < 0.7 else 0
    fields["every"] = 1 + int(5 * u[4]) if u[5] < 0.7 and kind != "hard_update" else 1
    if u[6] < 0.6:
        fields["restart_every"] = 1 + int(25 * u[7])
    if "decay" in fields and u[8] < 0.4:
        fields |= {"half_life": 0.5 + 40 * u[9], "decay": 0.999}
    return fields | {"batch_stats": POLICIES[int(3 * u[10])]}


def configured(every_fields: dict[str, dict[str, Any]], **overrides: Any) -> dict[str, Average]:
    """The averages that a run has whose config has these fields."""
    config = digits_config(duration="500 steps", **overrides)
    config.averages = {
        name: default.average(**{k: f"{v} steps" if k in DURATIONS else v for k, v in fields.items()})
        for name, fields in every_fields.items()
    }
    return {name: averages.create(name, fields) for name, fields in resolve(config)["averages"].items()}


def in_words(fields: dict[str, Any]) -> Callable[[int], float]:
    """The step size at update t, read off the comments of `configs.default.average`."""
    start, every = math.ceil(fields["start"]), fields["every"]
    restart_every = fields.get("restart_every", math.inf)

    def at_firing(k: int) -> float:
        kind = fields["kind"]
        if kind in ("ema", "warmup_ema"):  # "per step", and a weight halves within the half-life
            kept = 0.5 ** (every / fields["half_life"]) if "half_life" in fields else fields["decay"] ** every
            if kind == "warmup_ema":
                return 1 - min(kept, (1 + k) / (10 + k))
            return (1 - kept) / (1 - kept**k if fields["debias"] else 1)
        if kind == "running_mean":
            return 1 / k
        if kind == "polynomial_decay_mean":
            return min(1.0, (fields["eta"] + 1) / (fields["eta"] + k))
        if kind == "power_ema":
            width = fields["width"]
            gamma = optimize.brentq(lambda g: ((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5 - width, 0, 1e5, xtol=1e-12)
            return 1 - (1 - 1 / k) ** (gamma + 1)
        if kind == "cosine_update":
            share = k / math.ceil(fields["duration"] / every)
            return fields["tau"] * (1 + math.cos(math.pi * min(share, 1))) / 2
        return fields["tau"] if kind == "soft_update" else float(k % fields["period"] == 0)

    def step_size(t: int) -> float:
        if t <= start:
            return 1.0  # "until then it is the raw weights"
        cycle, since = divmod(t - start - 1, restart_every)  # "from beginning to beginning", which start with `start`
        if cycle and since == 0:
            return 1.0
        firings, rest = divmod(int(since) + 1, every)
        return at_firing(firings) if rest == 0 else 0.0

    return step_size


any_options = st.builds(
    options, st.sampled_from(sorted(KINDS)), st.lists(st.floats(0, 1, exclude_max=True), min_size=11, max_size=11)
)
# Many of them in one config, of which the checks take most of the time.
several = st.lists(any_options, min_size=20, max_size=20).map(lambda found: {f"a{i}": x for i, x in enumerate(found)})
# Nothing is shrunk: the message has the one average that differs.
repeatable = hypothesis.settings(
    derandomize=True, database=None, deadline=None, max_examples=6, phases=[hypothesis.Phase.generate]
)
T = np.arange(1, 100)


def step_sizes(average: Average) -> np.ndarray:
    return np.broadcast_to(average.schedule(T), T.shape)


@repeatable
@given(several)
def test_step_sizes_are_those_of_the_words_whatever_is_combined(every_fields):
    for name, average in configured(every_fields).items():
        fields = every_fields[name]
        expected = [*map(in_words(fields), T)]
        # A decay near 1 leaves a difference of few digits.
        np.testing.assert_allclose(step_sizes(average), expected, rtol=1e-8, atol=1e-12, err_msg=str(fields))
        assert (average.name, average.batch_stats) == (name, fields["batch_stats"])
        assert average == Average.from_dict(json.loads(json.dumps(average.to_dict())))


def typed_back(text: str) -> dict[str, Any]:
    """The fields that a printed average shows."""
    kind, arguments, others = re.fullmatch(r"(\w+)\((.*)\)(.*)", text).groups()
    fields, defaults = {"kind": kind}, default.average(kind)
    for key, value in (part.split("=") for part in f"{arguments}{others}".split(", ") if part):
        fields[key] = float(value) if isinstance(defaults[key], float) else value
    return fields | {"debias": fields["debias"] == "True"} if "debias" in fields else fields


@repeatable
@given(several)
def test_the_printed_text_typed_back_is_the_same_average(every_fields):
    before = configured(every_fields)
    after = configured({name: typed_back(average_table.to_text(average)) for name, average in before.items()})
    for name, one in before.items():
        other = after[name]
        for key in ("kind", "start", "every", "restart_every", "batch_stats"):
            assert getattr(other, key) == getattr(one, key)
        # Six digits, of a decay four of what it lacks to 1.
        np.testing.assert_allclose(step_sizes(other), step_sizes(one), rtol=1e-3, atol=1e-12, err_msg=str(one))
        if "decay" in dict(one.arguments):
            lacks = [1 - dict(average.arguments)["decay"] for average in (one, other)]
            assert lacks[1] == pytest.approx(lacks[0], rel=1e-3)


def towards(params, state, batch):
    """The squared distance of the parameters from the batch, whose mean is what the statistics are."""
    distance = jnp.square(params["w"] - batch["x"]).sum(axis=-1)
    stats = {"mean": batch["x"].mean(axis=0) - 0.5 * state.batch_stats["mean"]}
    return distance.mean(), ({"loss": (distance.sum(), distance.size)}, {"batch_stats": stats})


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_the_state_follows_the_words_through_rejections_and_accumulation(num_microbatches):
    """Weights and batch statistics of every kind with four combinations of options each."""
    rng = np.random.default_rng(num_microbatches)
    every_fields = {f"{kind}_{i}": options(kind, rng.random(11).tolist()) for kind in KINDS for i in range(4)}
    optimizer = resolve(digits_config(optimizer__momentum=0.5))["optimizer"]
    state = CustomTrainState.create(
        apply_fn=None, params={"w": jnp.array([1.0, -2.0])}, tx=optimizers.create_optimizer(**optimizer),
        batch_stats={"mean": jnp.array([3.0, 4.0])}, rng=jax.random.key(0),
        averages=tuple(configured(every_fields).values()),
    )  # fmt: skip
    data = rng.normal(1.0, 1.0, size=(60, 4, 2)).astype(np.float32)
    is_rejected = rng.random(len(data)) < 0.25
    data[is_rejected, -1, 0] = np.nan

    def step(state, x):
        state, _ = train.train_step(state, {"x": x}, towards, num_microbatches)
        return state, (state.params["w"], state.batch_stats["mean"], state.ema_params, state.ema_batch_stats)

    final, seen = jax.jit(lambda state, data: jax.lax.scan(step, state, data))(state, data)
    params, stats, ema_params, ema_stats = jax.device_get(seen)
    params = np.concatenate([[[1.0, -2.0]], params[~is_rejected]])
    stats = np.concatenate([[[3.0, 4.0]], stats[~is_rejected]])
    assert (np.diff(params, axis=0) != 0).any(axis=1).all()
    done = np.cumsum(~is_rejected)
    for name, fields in every_fields.items():
        assert final.ema_count[name] == done[-1]
        formula, copied = in_words(fields), fields["batch_stats"] == "copy"
        for index in (6, 17, 18, 40, 59):  # after which step
            expected = reference(formula, params[: done[index] + 1])
            np.testing.assert_allclose(ema_params[name]["w"][index], expected, 2e-5, 2e-5, err_msg=f"{name}: {fields}")
            expected = stats[done[index]] if copied else reference(formula, stats[: done[index] + 1])
            np.testing.assert_allclose(ema_stats[name]["mean"][index], expected, 2e-5, 2e-5, err_msg=f"{fields}")
