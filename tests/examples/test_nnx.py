"""A Flax NNX model in this loop does what it does in a loop of NNX's own."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.flax
from conftest import create_dispatcher, create_experiment, digits_config, read_metrics
from flax import nnx, traverse_util

import input_pipeline
import train
from configs import default
from examples.nnx.train import CNN
from tools.export import export

NUM_STEPS = 50
DECAY = 0.9


def nnx_config(**overrides):
    fields = {"task": "examples.nnx.train", "model__hidden_sizes": (256, 256), "model__dropout": 0.5}
    return digits_config(**fields | overrides)


def plain_model(variables):
    """The module by itself, of the size that the config has on the digits, with these weights."""
    model = CNN((8, 8, 1), 10, 16, 0.0, rngs=nnx.Rngs(0))
    for collection in variables.values():
        nnx.update(model, collection)
    return model


def states(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


@pytest.fixture(scope="module")
def loops():
    """This loop and one of NNX's own, with the same initial parameters and batches and without dropout."""
    # So small that training does not amplify rounding: at 0.05, a ReLU soon falls on the other side.
    config = nnx_config(model__dropout=0.0, duration=f"{NUM_STEPS} steps", optimizer__learning_rate=0.005)
    config.averages.ema = default.average("ema", decay=DECAY, debias=False)
    experiment = create_experiment(config)
    start = experiment.state

    model = plain_model(start.weights()["raw"])
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(0.005, momentum=0.9), wrt=nnx.Param)
    ema = nnx.EMA(model, DECAY, only=(nnx.Param, nnx.BatchStat))

    @nnx.jit
    def step(model, optimizer, ema, batch):
        def loss_fn(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(batch["image"]), batch["label"]).mean()

        optimizer.update(model, nnx.value_and_grad(loss_fn)(model)[1])
        ema.update(model)

    make_batch = jax.jit(lambda number: experiment.train_data.batch(start.replace(step=number))[0])
    for number in range(NUM_STEPS):
        step(model, optimizer, ema, make_batch(number))
    advance = create_dispatcher(experiment, experiment.config.chunked)
    sums = jax.tree.map(jnp.copy, experiment.sums)
    state, _, _ = advance(jax.tree.map(jnp.copy, start), sums, experiment.train_data, 0, NUM_STEPS)
    return experiment, state, model, ema


def assert_close(found, expected, tolerance):
    """Whether arrays are within a tolerance of others, relative to the norm of each."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    apart = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)), found, expected)
    assert max(jax.tree.leaves(apart)) <= tolerance, apart


@pytest.mark.slow
def test_parameters_and_statistics_are_those_of_a_plain_loop(loops):
    experiment, state, model, _ = loops
    assert not jnp.array_equal(state.params["conv1"]["kernel"], experiment.state.params["conv1"]["kernel"])
    # Each of 50 steps rounds by up to 6e-8.
    assert_close((state.params, state.batch_stats), states(model), 3e-6)


@pytest.mark.slow
def test_the_average_is_that_of_nnx(loops):
    _, state, _, ema = loops
    assert_close((state.ema_params["ema"], state.ema_batch_stats["ema"]), states(ema.params), 1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train.train_and_evaluate(nnx_config(), workdir)[0]


@pytest.mark.slow
def test_a_resumed_run_with_dropout_ends_with_the_same_bits(run, tmp_path):
    workdir, state = run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")  # as if it had been killed after that of step 10
    resumed, _ = train.train_and_evaluate(nnx_config(), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed.weights(), state.weights())
    assert read_metrics(tmp_path / "run") == read_metrics(workdir)


@pytest.mark.slow
def test_dropout_draws_from_the_key_of_the_step(run):
    experiment = create_experiment(nnx_config(), run[0])
    batch, _ = experiment.train_data.batch(experiment.state)
    loss = jax.jit(lambda step: experiment.loss_fn(experiment.state.params, experiment.state.replace(step=step), batch))
    losses = [float(loss(step)[0]) for step in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_exported_weights_in_the_module_by_itself_score_what_the_run_says(run, weights, tmp_path):
    """In evaluation nothing is dropped, and batch norm uses the statistics that came with the weights."""
    workdir, state = run
    export(workdir, weights, tmp_path, "latest")
    variables = traverse_util.unflatten_dict(safetensors.flax.load_file(tmp_path / "weights.safetensors"), sep="/")
    jax.tree.map(np.testing.assert_array_equal, variables, state.weights()[weights])
    about = json.loads((tmp_path / "weights.json").read_text())
    model = plain_model(variables)
    model.eval()
    test = input_pipeline.find_source("digits").load("test")
    logits = np.asarray(model((test.image - jnp.array(about["mean"])) / jnp.array(about["std"])))
    scores = read_metrics(workdir, weights)[-1]
    assert np.mean(logits.argmax(axis=1) == test.label) == scores["accuracy"]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, test.label)
    assert float(nll.mean()) == pytest.approx(scores["loss"], rel=1e-5)
