"""Every number that a run logs of a step is what its name says, at a time when no two steps have the same."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import create_experiment, digits_config, read_metrics

import train
from configs import default
from runtime.metric_writing import CLOCKS

NUM_STEPS, WARMUP, PEAK = 12, 4, 0.2
REJECTED = 2  # step, in the middle of the warm-up
SMOOTHING, PENALTY = 0.1, 0.01
FACTOR, CLIP, CLIP_HIDDEN = 0.25, 1.0, 0.3


def rejecting(params, state, batch, *, label_smoothing: float = 0.0, l2_penalty: float = 0.0):
    options = {"label_smoothing": label_smoothing, "l2_penalty": l2_penalty}
    objective, aux = train.loss_fn(params, state, batch, **options)
    return jnp.where(state.step == REJECTED, jnp.nan, objective), aux


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The config, and the workdirs and last states of two runs, which log each step and every five."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.TASKS, "classification", train.Task(loss_fn=rejecting))
        for log_every in ("1 steps", "5 steps"):
            config = digits_config(
                duration=f"{NUM_STEPS} steps", log_every=log_every, eval_every="4 steps", checkpoint_every="5 steps",
                loss__label_smoothing=SMOOTHING, loss__l2_penalty=PENALTY, optimizer__learning_rate=PEAK,
                optimizer__schedule="cosine", optimizer__warmup=f"{WARMUP} steps", optimizer__momentum=0.0,
                optimizer__clip_norm=CLIP,
            )  # fmt: skip
            config.optimizer.groups.hidden = default.group("Dense_0/", factor=FACTOR, clip_norm=CLIP_HIDDEN)
            workdir = tmp_path_factory.mktemp("run")
            found.append((workdir, train.train_and_evaluate(config, workdir)[0]))
    return config, found


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))


def objective_of(params, batch):
    """The objective, with the loss and the number of right answers, by their formulas."""
    x = batch["image"].reshape(len(batch["image"]), -1)
    x = jax.nn.relu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    log_p = jax.nn.log_softmax(x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"])
    smoothed = (1 - SMOOTHING) * jax.nn.one_hot(batch["label"], 10) + SMOOTHING / 10
    penalty = sum(jnp.sum(layer["kernel"] ** 2) for layer in params.values()) / 2
    nll = -jnp.take_along_axis(log_p, batch["label"][:, None], axis=1).mean()
    accuracy = (log_p.argmax(axis=1) == batch["label"]).mean()
    return -(smoothed * log_p).sum(axis=1).mean() + PENALTY * penalty, (nll, accuracy)


def rate_after(num_updates):
    if num_updates < WARMUP:
        return PEAK * (num_updates + 1) / WARMUP
    return PEAK * (1 + np.cos(np.pi * (num_updates - WARMUP) / (NUM_STEPS - WARMUP))) / 2


@pytest.mark.slow
def test_every_logged_number_is_that_of_its_step(runs):
    """Beside a descent that is computed here, with the logged rates, and ends at the weights of the run."""
    config, ((workdir, state), _) = runs
    experiment = create_experiment(config)
    batch_of, gradient = jax.jit(experiment.train_data.batch), jax.jit(jax.value_and_grad(objective_of, has_aux=True))
    params, num_updates = jax.device_get(experiment.state.params), 0
    lines = read_metrics(workdir, "train")
    assert len(lines) == NUM_STEPS
    for step, line in enumerate(lines):
        batch, _ = batch_of(experiment.state.replace(step=jnp.int32(step)))
        (objective, (loss, accuracy)), grads = jax.device_get(gradient(params, batch))
        whole, rate = norm(grads), rate_after(num_updates)
        assert whole > CLIP
        clipped = jax.tree.map(lambda g, whole=whole: g * CLIP / whole, grads)
        in_group = norm(clipped["Dense_0"])
        assert in_group > CLIP_HIDDEN
        expected = {
            "objective": float(objective), "loss": float(loss), "accuracy": float(accuracy),
            "learning_rate": rate, "learning_rate_hidden": FACTOR * rate,
            "grad_norm": whole, "grad_norm_hidden": in_group,
        }  # fmt: skip
        assert (line.pop("step"), line.pop("curve")) == (step + 1, "train")
        assert line.pop("rejected_steps") == (step >= REJECTED)
        if step == REJECTED:
            assert line == dict.fromkeys(expected)
        else:
            assert line == pytest.approx(expected, rel=1e-4)  # float32, after a few steps
            steps = {"Dense_0": line["learning_rate_hidden"] * CLIP_HIDDEN / in_group, "Dense_1": line["learning_rate"]}
            params = {
                name: jax.tree.map(lambda p, g, size=size: p - size * g, params[name], clipped[name])
                for name, size in steps.items()
            }
            num_updates += 1
    for name in lines[0]:  # a number that is the same at all steps could be that of any
        assert len({line[name] for line in lines}) >= NUM_STEPS - 1 or name == "accuracy", name
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, params, jax.device_get(state.params))


@pytest.mark.slow
def test_a_line_for_several_steps_has_the_mean_of_those_that_were_not_rejected(runs):
    _, ((each, _), (five, _)) = runs
    lines, every = read_metrics(five, "train"), read_metrics(each, "train")
    assert [line["step"] for line in lines] == [5, 10, 12]
    for line, (start, end) in zip(lines, [(0, 5), (5, 10), (10, 12)], strict=True):
        accepted = [one for one in every[start:end] if one["loss"] is not None]
        assert len(accepted) == end - start - (start <= REJECTED < end)
        expected = {name: np.mean([one[name] for one in accepted]) for name in line if name not in ("step", "curve")}
        assert {name: line[name] for name in expected} == pytest.approx(expected | {"rejected_steps": 1}, rel=1e-5)


def test_each_clock_runs_while_its_part_of_the_run_does(runs):
    _, ((workdir, _), _) = runs
    times = [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()]
    moved = {clock: [] for clock in CLOCKS}
    for before, after in itertools.pairwise(times):
        for clock in CLOCKS:
            moved[clock] += [after["step"]] * (after[clock] > before[clock])
    best = [line["accuracy"] for line in read_metrics(workdir, "ema")]  # of steps 4, 8, 12
    saved = {5, 10} | {4 * (i + 1) for i in range(3) if best[i] > max(best[:i], default=0)}
    assert moved["train_seconds"] == [line["step"] for line in times[1:]]
    assert {8, 12} <= {*moved["eval_seconds"]} <= {4, 8, 12}  # the first one compiles, for as long as it takes
    assert moved["checkpoint_seconds"] == [step + 1 for step in sorted(saved) if step < NUM_STEPS]  # after the line
    assert moved["startup_seconds"] == []
