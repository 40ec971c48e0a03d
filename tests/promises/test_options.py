"""Every option does something, and every shipped config trains, whatever is overridden."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from conftest import CNN, ROOT, create_experiment, digits_config, get_config
from ml_collections import config_flags

import train
from runtime import fields

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "default")


ADAMW = {"optimizer__name": "adamw"}


MUON = {"optimizer__name": "muon"}


@functools.cache
def metrics_of(**overrides):
    """The metrics of 4 training steps with these overrides."""
    experiment = create_experiment(digits_config(duration="4 steps", **overrides))
    program, state, metrics = jax.jit(experiment.train_program), experiment.state, []
    for _ in range(4):
        state, sums = program(state, experiment.train_data)
        metrics.append(jax.tree.map(float, sums))
    return metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "option"),
    [
        ({}, {"seed": 1}),
        ({}, {"label_noise": 0.4}),
        ({}, {"num_validation": 100}),
        ({}, {"batch_size": 16}),
        ({}, {"model__hidden_sizes": (16,)}),
        ({}, {"model__dtype": "bfloat16"}),
        ({}, CNN),
        (CNN, {"model__dropout": 0.5}),
        (CNN, {"model__batch_norm": True}),
        ({}, {"loss__label_smoothing": 0.1}),
        ({}, {"loss__l2_penalty": 0.01}),
        ({}, {"optimizer__learning_rate": 0.2}),
        ({}, {"optimizer__schedule": "cosine"}),
        ({}, {"optimizer__warmup": "3 steps"}),
        ({}, {"optimizer__momentum": 0.0}),
        ({}, {"optimizer__clip_norm": 0.1}),
        ({}, {"optimizer__nesterov": True}),
        ({}, {"optimizer__weight_decay": 0.1}),
        ({}, {"optimizer__gradient_noise": 0.01}),
        *[({}, {"optimizer__name": name}) for name in ("adamw", "lion", "muon")],
        *[(ADAMW, {f"optimizer__{field}": 0.5}) for field in ("b1", "b2")],
        *[(MUON, {f"optimizer__{field}": 0.5}) for field in ("momentum", "b1", "b2")],
        (MUON, {"optimizer__nesterov": True}),
        ({}, {"optimizer__schedule": "one_cycle", "optimizer__warmup": "50%"}),
        ({}, {"optimizer__schedule": "wsd", "optimizer__decay": "50%"}),
        ({"optimizer__schedule": "wsd"}, {"optimizer__decay": "75%"}),
        ({}, {"augment__flip": True}),
        ({}, {"augment__crop_padding": 2}),
        ({}, {"augment__cutout": 2}),
        ({}, {"augment__mixup": 1.0}),
        ({}, {"augment__cutmix": 1.0}),
        ({}, {"augment__erasing": 0.5}),
        ({}, {"augment__rand_augment": 1}),
        ({"augment__rand_augment": 1}, {"augment__magnitude": 3}),
        (CNN | {"model__dropout": 0.5}, {"accumulate": 2}),
    ],
)
def test_no_option_is_accepted_and_unused(base, option):
    """Those of averages: tests/averaging/test_in_training.py."""
    assert metrics_of(**base | option) != metrics_of(**base)


# Those whose model another one has, too, or that is larger still: tests/promises/test_lowering.py lowers them all.
LARGE = ("cifar10", "cifar10_batch_stats", "cifar100", "finetune", "imagenet", "mnist_posthoc")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "digits" else pytest.mark.slow) for name in CONFIGS if name not in LARGE],
)
def test_shipped_configs_train_two_steps(name, tmp_path, request, monkeypatch):
    config = get_config(name)
    if config.dataset.startswith("folder:"):  # whose images are the user's
        config.update(dataset="cifar10", splits=("train", "test"), image_size=0)
    if config.dataset == "mnist":
        request.getfixturevalue("mnist")
    elif config.dataset != "digits":
        monkeypatch.setenv("TFDS_DATA_DIR", str(request.getfixturevalue("made_data")))
    config.duration, config.batch_size = "2 steps", min(config.batch_size, 100)  # the set has no more
    state, _ = train.train_and_evaluate(config, tmp_path)
    assert state.step == 2
    for file in ("config.json", "environment.json", "averages.json", "metrics.jsonl", "timing.jsonl"):
        assert (tmp_path / file).stat().st_size > 0


@pytest.mark.parametrize("name", ["default", *CONFIGS])
def test_every_field_of_every_shipped_config_can_be_overridden(name, monkeypatch):
    def other(value):
        match value:
            case bool():
                return not value
            case str():
                return value + "x"
            case tuple():
                return (7, 8)
            case _:
                return value + 1

    expected = {field: other(value) for field, value in fields.flatten(get_config(name)).items()}
    # The overrides, which config_flags takes from there.
    monkeypatch.setattr(sys, "argv", ["main.py", *(f"--config.{field}={value}" for field, value in expected.items())])
    flag_values = flags.FlagValues()
    config = config_flags.DEFINE_config_dict("config", get_config(name), flag_values=flag_values)
    flag_values(sys.argv)
    assert fields.flatten(config.value) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "num_channels", "num_classes"), [("hundred", 3, 100), ("digits", 1, 10)])
def test_a_config_serves_another_data_set_without_an_edit(
    dataset, num_channels, num_classes, tmp_path, made_data, monkeypatch
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    config = get_config("cifar10_small")
    config.dataset, config.duration = dataset, "2 steps"
    state, _ = train.train_and_evaluate(config, tmp_path)
    assert state.params["Conv_0"]["kernel"].shape[2] == num_channels
    assert state.params["Dense_0"]["bias"].shape == (num_classes,)


@pytest.mark.slow
def test_bfloat16_is_for_the_computation_while_the_state_stays_float32(tmp_path, made_data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_data))
    config = get_config("cifar10_small")
    config.batch_size = 16
    config.duration = "2 steps"
    config.model.dtype = "bfloat16"
    state, _ = train.train_and_evaluate(config, tmp_path)
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    # Parameters in bfloat16 would have nothing in the lower half of their bits.
    average = np.asarray(state.ema_params["ema"]["Conv_0"]["kernel"])
    assert (average.view(np.uint32) & 0xFFFF).any()
