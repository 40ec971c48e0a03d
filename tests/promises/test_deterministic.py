"""What `config.deterministic` promises, as far as a CPU can tell; docs/accelerators.md says what GPUs showed."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, create_experiment, get_config, run_main
from flax import linen as nn

import input_pipeline
from runtime import sharding
from runtime.errors import UserError
from runtime.sources import Images, Source


def test_gpus_that_were_started_without_the_flag_are_refused_and_others_get_it_before_they_start(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=")
    sharding.find_devices(deterministic=True)
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to= {sharding.DETERMINISTIC}"
    sharding.find_devices(deterministic=True)
    assert os.environ["XLA_FLAGS"].count(sharding.DETERMINISTIC) == 1

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    sharding.find_devices(deterministic=True)  # it was there
    monkeypatch.delenv("XLA_FLAGS")
    sharding.find_devices()
    with pytest.raises(UserError, match=f"XLA_FLAGS={sharding.DETERMINISTIC}"):
        sharding.find_devices(deterministic=True)


@pytest.mark.slow
def test_on_a_cpu_it_changes_no_bit_and_a_run_cannot_continue_without_it(tmp_path):
    arguments = ["--config.duration=20 steps", "--config.eval_every=50%"]
    for name in ("False", "True"):
        run = run_main(f"--workdir={tmp_path / name}", *arguments, f"--config.deterministic={name}")
        assert run.returncode == 0, run.stderr
    usual, deterministic = (tmp_path / name for name in ("False", "True"))
    assert (usual / "metrics.jsonl").read_bytes() == (deterministic / "metrics.jsonl").read_bytes()
    flags = [json.loads((folder / "environment.json").read_text())["xla_flags"] for folder in (usual, deterministic)]
    assert [sharding.DETERMINISTIC in found for found in flags] == [False, True]

    changed = run_main(f"--workdir={deterministic}", *arguments)
    assert changed.returncode == 1
    assert "deterministic: True before, False now" in changed.stderr


CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "default")
# Additions to places that may coincide, which is how the gradients of indexing and of max pooling are written.
LEFT_TO_CHANCE = ("stablehlo.scatter", "stablehlo.select_and_scatter")


def for_gpus(program, *arguments) -> str:
    """A program as JAX hands it to the compiler for GPUs."""
    return jax.jit(program).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def test_the_gradients_of_indexing_and_max_pooling_are_known_to_be_left_to_chance():
    x = jnp.ones((1, 4, 4, 1))
    indexing = for_gpus(jax.grad(lambda x: x[0, jnp.array([1, 1])].sum()), x)
    pooling = for_gpus(jax.grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum()), x)
    assert [name in text for name, text in zip(LEFT_TO_CHANCE, (indexing, pooling), strict=True)] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_training_of_every_config_has_no_operation_on_gpus_that_is_left_to_chance(name, monkeypatch):
    """With every augmentation."""
    config = get_config(name)
    shape = {"digits": (8, 8, 1), "mnist": (28, 28, 1)}.get(config.dataset, (32, 32, 3))
    images = Images(np.arange(20 * np.prod(shape)).astype(np.uint8).reshape(20, *shape), np.arange(20) % 10)
    monkeypatch.setitem(input_pipeline.SOURCES, name, lambda: Source.from_arrays(name, images, images))
    config.update(dataset=name, splits=("train", "test"), image_size=0)
    if name == "imagenet":
        config.model.depth = 18  # 50 layers take a minute to compile
    config.num_validation, config.batch_size, config.duration, config.snapshot_every = 0, 4, "100 steps", ""
    every = {"flip": True, "crop_padding": 1, "cutout": 2, "erasing": 0.5, "mixup": 1.0, "cutmix": 1.0}
    config.augment.update(every | {"rand_augment": 1})
    experiment = create_experiment(config)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # which convolutions it takes
    text = for_gpus(experiment.train_program, experiment.state, experiment.train_data)
    assert "stablehlo.dot_general" in text
    assert [operation for operation in LEFT_TO_CHANCE if operation in text] == []
