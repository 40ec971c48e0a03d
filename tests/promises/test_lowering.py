"""Programs for GPUs and TPUs, as JAX hands them to the compiler on a machine that has neither."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, create_experiment
from flax import linen as nn

import input_pipeline
from runtime.sources import Images, Source

PATHS = [*ROOT.glob("configs/*.py"), *ROOT.glob("examples/*/configs/default.py")]
CONFIGS = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PATHS)
CONFIGS.remove("configs.default")
# Additions to places that may coincide, which is how the gradients of indexing and of max pooling are written.
LEFT_TO_CHANCE = ("stablehlo.scatter", "stablehlo.select_and_scatter")


def lowered(program, *arguments) -> list[str]:
    traced = jax.jit(program).trace(*arguments)
    return [traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cuda", "tpu")]


def test_the_gradients_of_indexing_and_max_pooling_are_known_to_be_left_to_chance():
    x = jnp.ones((1, 4, 4, 1))
    indexing = lowered(jax.grad(lambda x: x[0, jnp.array([1, 1])].sum()), x)
    pooling = lowered(jax.grad(lambda x: nn.max_pool(x, (2, 2), (2, 2)).sum()), x)
    for texts, name in zip((indexing, pooling), LEFT_TO_CHANCE, strict=True):
        assert all(name in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_programs_for_accelerators_in_which_nothing_is_left_to_chance(name, monkeypatch):
    """With every augmentation. Examples mix no images, and may leave something to chance."""
    config = importlib.import_module(name).get_config()
    shape = {"digits": (8, 8, 1), "mnist": (28, 28, 1)}.get(config.dataset, (32, 32, 3))
    images = Images(np.arange(500 * np.prod(shape)).astype(np.uint8).reshape(500, *shape), np.arange(500) % 10)
    config.update(dataset=config.dataset.removeprefix("folder:"), splits=("train", "test"), image_size=0)
    monkeypatch.setitem(input_pipeline.SOURCES, config.dataset, lambda: Source.from_arrays(name, images, images))
    config.num_validation, config.batch_size, config.duration, config.snapshot_every = 0, 4, "100 steps", ""
    config.augment.update(flip=True, crop_padding=1, cutout=2, erasing=0.5, rand_augment=1)
    if not name.startswith("examples."):
        config.augment.update(mixup=1.0, cutmix=1.0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # which convolutions it takes
    experiment = create_experiment(config)
    state = experiment.state
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    texts = lowered(experiment.train_program, state, experiment.train_data)
    if experiment.eval_step:
        texts += lowered(experiment.eval_step, variables, experiment.eval_data["test"], 0)
    assert all("stablehlo.dot_general" in text for text in texts)
    found = [operation for operation in LEFT_TO_CHANCE if any(operation in text for text in texts)]
    assert found == [] or name.startswith("examples.")
