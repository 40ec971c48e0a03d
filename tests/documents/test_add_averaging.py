"""The loop of `examples/plain_flax`, and what the code of `docs/add_averaging.md` makes of it."""

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import types

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, digits_config, read_metrics, state_at
from document import apply_diff, blocks
from flax import struct

import averaging
import input_pipeline
import models
import train
from tools import finished
from train_state import Average, CustomTrainState

DOCUMENT = ROOT / "docs" / "add_averaging.md"
EXAMPLE = ROOT / "examples" / "plain_flax" / "train.py"
TEXT = " ".join(DOCUMENT.read_text().split())


def python_block(word):
    [block] = [block for block in blocks(DOCUMENT, "python") if word in block]
    return block


def changed_examples():
    """The text of the example as it is, with an average by optax, and with one by averaging.py."""
    with_optax, with_schedule = blocks(DOCUMENT, "diff")
    plain = EXAMPLE.read_text()
    optax_average = apply_diff(with_optax, plain)
    return {"plain": plain, "optax": optax_average, "schedule": apply_diff(with_schedule, optax_average)}


def load(text, folder):
    """The text as a module."""
    path = folder / f"example_{len(list(folder.iterdir()))}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    return {name: load(text, folder) for name, text in changed_examples().items()}


def as_vector(*trees):
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(trees)])


def iterates_and_average(example, num_steps):
    """Parameters and batch statistics after 0, 1, ... steps, and the average of both at the end."""
    images, labels, *_ = example.load_digits(np.random.default_rng(0))
    state = example.create_train_state(jax.random.key(0))
    iterates = [as_vector(state.params, state.batch_stats)]
    for step in range(num_steps):
        batch = (np.arange(32) + 32 * step) % len(labels)
        state = example.train_step(state, images[batch], labels[batch])
        iterates.append(as_vector(state.params, state.batch_stats))
    return iterates, as_vector(state.ema_params, state.ema_batch_stats)


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# ---- The two diffs --------------------------------------------------------------------------------------------------


def test_the_first_diff_adds_as_many_lines_as_its_title_says_and_changes_none():
    [number] = re.findall(r"^## With optax: (\d+) lines$", DOCUMENT.read_text(), re.MULTILINE)
    signs = [line[0] for line in blocks(DOCUMENT, "diff")[0].splitlines()]
    assert (signs.count("+"), signs.count("-")) == (int(number), 0)


@pytest.mark.parametrize("name", ["optax", "schedule"])
def test_the_average_is_the_bias_corrected_one_of_parameters_and_batch_statistics(examples, name):
    iterates, average = iterates_and_average(examples[name], 60)
    # As Adam's moments: sums that start at zero, and the sum of their weights, in float64.
    total, weight = np.zeros_like(iterates[0]), 0.0
    for iterate in iterates[1:]:
        total, weight = 0.98 * total + 0.02 * iterate, 0.98 * weight + 0.02
    # 60 float32 updates, each off by some 2**-24 of the norm; and optax's first step size is 1.000001.
    assert distance(average, total / weight) < 1e-6


def raw_and_averaged(output):
    lines = output.splitlines()
    return [line for line in lines if "averaged" not in line], [line for line in lines if "averaged" in line]


def accuracy(line):
    return float(re.search(r"([\d.]+)%$", line)[1])


@pytest.mark.slow
def test_raw_training_is_the_same_bit_for_bit_and_averages_are_better(examples, capsys):
    states, outputs = {}, {}
    for name, example in examples.items():
        states[name] = example.main()
        outputs[name] = capsys.readouterr().out
    plain, none = raw_and_averaged(outputs["plain"])
    assert (len(plain), none) == (10, [])
    for name in ("optax", "schedule"):
        raw, averaged = raw_and_averaged(outputs[name])
        assert raw == plain
        assert len(averaged) == len(raw)
        for field in ("step", "params", "batch_stats", "opt_state"):
            jax.tree.map(np.testing.assert_array_equal, getattr(states[name], field), getattr(states["plain"], field))
        # In ten seeds it was 1.8 to 6.4 points more, here 4.
        assert accuracy(averaged[-1]) > accuracy(raw[-1]) + 2
    assert outputs["schedule"] == outputs["optax"]


@pytest.mark.slow
def test_the_files_run_by_themselves_with_averaging_copied_beside(tmp_path):
    for name, text in changed_examples().items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.py").write_text(text)
    shutil.copy(ROOT / "averaging.py", tmp_path / "schedule")
    outputs = {}
    for name, path in {"example": EXAMPLE, "schedule": tmp_path / "schedule" / "train.py"}.items():
        command = [sys.executable, "-W", "error", str(path)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        outputs[name] = result.stdout
    assert raw_and_averaged(outputs["schedule"])[0] == outputs["example"].splitlines()
    assert len(raw_and_averaged(outputs["schedule"])[1]) == 10


@pytest.mark.slow
@pytest.mark.parametrize("line", python_block("SCHEDULE").splitlines())
def test_every_schedule_of_the_document_makes_the_average_that_its_kernel_says(line, tmp_path):
    text = apply_diff(f"-SCHEDULE = averaging.ema(decay=0.98)\n+{line}\n", changed_examples()["schedule"])
    example = load(text, tmp_path)
    iterates, average = iterates_and_average(example, 280)
    expected = averaging.kernel(example.SCHEDULE, 280) @ np.array(iterates)
    assert distance(average, expected) < 2e-6  # what 5,000 updates are held to elsewhere


# ---- Traps ----------------------------------------------------------------------------------------------------------


def test_an_alias_cannot_be_donated_and_a_copy_that_widens_can(tmp_path):
    def one_step(value):
        diff = f'-        ema_params=jax.tree.map(jnp.copy, variables["params"]),\n+        ema_params={value},\n'
        return iterates_and_average(load(apply_diff(diff, changed_examples()["optax"]), tmp_path), 1)

    params = 'variables["params"]'
    for alias in (
        params,
        f"jax.tree.map(lambda p: p, {params})",
        f"jax.tree.map(lambda p: p.astype(p.dtype), {params})",
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="Attempt to donate the same buffer twice"):
            one_step(alias)
    assert len(one_step(f"jax.tree.map(lambda p: jnp.array(p, jnp.float32), {params})")[0]) == 2


def test_a_bfloat16_average_stops_where_the_document_says():
    params, average = jnp.ones(1, jnp.bfloat16), jnp.zeros(1, jnp.bfloat16)
    for _ in range(1000):
        average = optax.incremental_update(params, average, 0.01)
    assert f"it stays at {float(average[0]):.2f}" in TEXT


def test_the_correction_in_float32_is_off_where_the_document_says():
    decay = 0.9999
    step_size = jax.jit(lambda t: (1 - decay) / (1 - decay**t))(jnp.int32(1))
    assert f"in float32, is {step_size:.5f} instead of 1 at `t = 1` for a decay of {decay}" in TEXT
    assert averaging.ema(decay)(jnp.int32(1)) == 1


# ---- CustomTrainState -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_field_of_ones_own_moves_with_accepted_steps_only():
    code = {"clu": clu, "jax": jax, "jnp": jnp, "optax": optax, "struct": struct, "__name__": "document"}
    code |= {"Average": Average, "CustomTrainState": CustomTrainState}
    exec(python_block("MetricsTrainState"), code)
    test = input_pipeline.find_source("digits").load("test")
    batch = {"image": jnp.float32(test.image[:32] / 255), "label": jnp.asarray(test.label[:32])}
    model = models.create_model(num_classes=10, **digits_config().model)
    start = code["create_train_state"](model, jax.random.key(0), batch["image"])

    accepted = code["train_step"](start, batch)
    logits = model.apply({"params": start.params}, batch["image"], train=False)
    assert accepted.metrics.compute()["accuracy"] == jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])

    rejected = code["train_step"](accepted, batch | {"image": batch["image"] * jnp.nan})
    assert (rejected.step, rejected.rejected["total"]) == (2, 1)
    for field in ("metrics", "params", "ema_params", "ema_count"):
        jax.tree.map(np.testing.assert_array_equal, getattr(rejected, field), getattr(accepted, field))

    later = code["train_step"](rejected, batch)
    assert (later.metrics.accuracy.count, later.ema_count["ema"]) == (2 * 32, 2)


@pytest.mark.slow
def test_a_metric_of_ones_own_is_written_with_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "TASKS", dict(train.TASKS))
    config = digits_config(duration="4 steps", log_every="4 steps", eval_every="4 steps", checkpoint_every="4 steps")
    exec(python_block("weight_norm"), {"train": train, "optax": optax, "config": config, "workdir": tmp_path})
    [line] = read_metrics(tmp_path, "train")
    # The mean over four steps of a norm that begins at that of the initial parameters and hardly moves.
    norm = optax.tree.norm(finished.create_experiment(config).state.params)
    assert line["weight_norm"] == pytest.approx(float(norm), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_field_of_ones_own_moves_with_what_the_loss_returns(tmp_path, monkeypatch, accumulate):
    monkeypatch.setattr(train, "TASKS", dict(train.TASKS))
    code = {"train": train, "jax": jax, "jnp": jnp, "CustomTrainState": CustomTrainState, "__name__": "document"}
    exec(python_block("SeenTrainState"), code)
    create = functools.partial(code["SeenTrainState"].create, seen=jnp.zeros(10, jnp.int32))
    monkeypatch.setattr(train, "CustomTrainState", types.SimpleNamespace(create=create))
    config = digits_config(task="with_seen", accumulate=accumulate)
    state, _ = train.train_and_evaluate(config, tmp_path)
    batch = jax.jit(finished.create_experiment(config).train_data.batch)
    labels = np.concatenate([batch(state_at(state.rng, step))[0]["label"] for step in range(20)])
    np.testing.assert_array_equal(state.seen, np.bincount(labels, minlength=10))
