"""Averages are split over the devices, which changes no bit and costs no step anything."""

import functools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

import models
import optimizers
import train
from runtime import sharding
from train_state import Average

MODELS = {
    "resnet": {"depth": 18, "width": 1, "zero_init_residual": False, "dropout": 0.0},
    "vit": {"depth": 12, "width": 1, "patch": 4, "dropout": 0.0},
}
AVERAGES = tuple(Average(f"average{i}", "ema", (("decay", 0.9),)) for i in range(4))


def num_bytes(tree, shardings) -> int:
    """Of a tree on each device."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize for x, where in leaves)


@pytest.mark.parametrize("name", MODELS)
def test_eight_devices_share_the_memory_of_averages_and_of_nothing_else(name):
    model = models.create_model(name, num_classes=10, dtype="float32", **MODELS[name])
    example = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 10))
    tx = optimizers.OPTIMIZERS["sgd"](0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    create = functools.partial(train.create_train_state, model=model, tx=tx, averages=AVERAGES, example=example)
    state = jax.eval_shape(create, jax.random.key(0))
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    shardings = sharding.of_state(state, mesh, whole=["average3"])

    whole, parts = state.ema_params.pop("average3"), shardings.ema_params.pop("average3")
    assert num_bytes(whole, parts) == sum(x.size * 4 for x in jax.tree.leaves(whole))
    total = sum(x.size * 4 for x in jax.tree.leaves(state.ema_params))
    assert num_bytes(state.ema_params, shardings.ema_params) <= (1 / 8 + 0.02) * total
    rest, where = state.replace(ema_params={}), shardings.replace(ema_params={})
    assert all(s.is_fully_replicated for s in jax.tree.leaves(where))
    assert jax.tree.structure(rest) == jax.tree.structure(where)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_split_averages_change_no_bit_and_no_collective_of_a_step(name, tmp_path):
    script = f"""
import collections, pathlib, re, sys
import jax, numpy as np
from conftest import create_experiment, digits_config
from configs import default
from runtime import sharding
import train

def config():
    made = digits_config(duration="6 steps", log_every="1 steps", eval_every="3 steps", checkpoint_every="6 steps")
    if {name!r} == "mlp":
        made.model.hidden_sizes, made.accumulate = (256, 256), 2
    else:
        made.model.name, made.model.hidden_sizes, made.model.batch_norm = "cnn", (256, 256), True
        made.augment.mixup, made.averages.ema.batch_stats = 1.0, "recompute"
    made.averages.tail = default.average("running_mean", start="2 steps", every="2 steps")
    return made

def collectives(experiment):
    where = jax.tree.map(lambda x: x.sharding, experiment.state)
    program = jax.jit(experiment.train_program, out_shardings=(where, None), donate_argnums=0)
    text = program.lower(experiment.state, experiment.train_data).compile().as_text()
    return collections.Counter(re.findall(r" (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\\(", text))

states, counts = [], []
for smallest in (2**16, 2**60):
    sharding.MIN_SPLIT_BYTES = smallest
    workdir = pathlib.Path({str(tmp_path)!r}) / str(smallest)
    counts.append(collectives(create_experiment(config())))
    state, _ = train.train_and_evaluate(config(), workdir)
    states.append(state)
split, whole = states
kernels = [x for x in jax.tree.leaves(split.ema_params) if x.nbytes >= 2**16]
assert kernels and not any(x.is_fully_replicated for x in kernels)
assert counts[0] == counts[1] and "all-gather" not in counts[0], counts
for a, b in zip(jax.tree.leaves(split.replace(rng=())), jax.tree.leaves(whole.replace(rng=())), strict=True):
    np.testing.assert_array_equal(a, b)
lines = [(pathlib.Path({str(tmp_path)!r}) / str(s) / "metrics.jsonl").read_bytes() for s in (2**16, 2**60)]
assert lines[0] == lines[1]
"""
    run_with_devices(8, script)


@pytest.mark.slow
def test_a_run_continues_on_other_devices_and_its_averages_are_split_there(tmp_path):
    """From one device to eight and back, and from the average of another run."""
    script = """
import pathlib, sys
import jax, numpy as np
from conftest import digits_config
from configs import default
import train

duration, workdir, origin = sys.argv[1:]
config = digits_config(duration=duration, model__hidden_sizes=(256, 256))
config.optimizer.groups.frozen = default.group("Dense_0/kernel", factor=0.0)
if origin:
    config.init_from, config.init_weights = origin, "ema"
elif duration != "2 steps":
    config.averages.new = default.average("running_mean")  # since the run has gone on
state, _ = train.train_and_evaluate(config, workdir)
kernels = [average["Dense_1"]["kernel"] for average in state.ema_params.values()]
assert {kernel.is_fully_replicated for kernel in kernels} == {len(jax.devices()) == 1}
assert state.params["Dense_1"]["kernel"].is_fully_replicated
for variables in state.weights().values():
    np.testing.assert_array_equal(variables["params"]["Dense_0"]["kernel"], state.params["Dense_0"]["kernel"])
np.save(f"{workdir}/{state.step}-{len(jax.devices())}.npy", kernels[0])
"""
    for devices, duration in ((1, "2 steps"), (8, "4 steps"), (1, "6 steps"), (8, "8 steps")):
        run_with_devices(devices, script, duration, str(tmp_path / "moving"), "")
    run_with_devices(8, script, "2 steps", str(tmp_path / "started"), str(tmp_path / "moving"))
    run_with_devices(1, script, "8 steps", str(tmp_path / "staying"), "")
    moving, staying = (jnp.load(tmp_path / name) for name in ("moving/8-8.npy", "staying/8-1.npy"))
    # Sums are taken in another order on eight devices: float32's rounding of weights below 1, over a few steps.
    assert jnp.abs(moving - staying).max() < 1e-5


def run_with_devices(number: int, script: str, *arguments: str) -> None:
    """Runs Python code that may import what tests do, on so many simulated devices."""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={number}"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
