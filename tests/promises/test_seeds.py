"""The seed decides everything random, and nothing else does."""

import importlib
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, create_experiment, digits_config
from PIL import Image

import input_pipeline
import settings
import train
from configs import default
from examples import samples
from runtime import sharding
from runtime.image_files import find_folder_source
from runtime.sources import Images, Source
from runtime.splits import load_splits

FORKS = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("examples/*/configs/*.py"))
FORKS = [name for name in FORKS if name.endswith((".default", ".sac"))]  # the others are these, larger
SEEDS, STEPS = 37, 41  # how many at once; no array has such an axis otherwise


@pytest.fixture(autouse=True)
def made_mnist(monkeypatch):
    """Images of its shape under its name."""
    images = Images(np.random.default_rng(0).integers(0, 256, (500, 28, 28, 1), np.uint8), np.arange(500) % 10)
    monkeypatch.setitem(input_pipeline.SOURCES, "mnist", lambda: Source.from_arrays("mnist", images, images))


def config_of(name, **fields):
    """The config of a fork, or one in which everything is random."""
    if name == "everything":
        config = digits_config(model__name="cnn", model__hidden_sizes=(256, 256), model__dropout=0.25, accumulate=2)
        config.augment.update(flip=True, crop_padding=1, cutout=2, erasing=0.5, rand_augment=1, mixup=1.0, cutmix=1.0)
        config.optimizer.gradient_noise = 0.01
    else:
        config = importlib.import_module(name).get_config()
        config.batch_size = 32
    config.update(fields)
    return config


def is_key(x):
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def draws(jaxpr):
    """The primitive of each equation that makes numbers of a key, and the shape of the keys."""
    for equation in jaxpr.eqns:
        inner = [x for x in jax.tree.leaves([*equation.params.values()]) if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
        for one in inner:
            yield from draws(getattr(one, "jaxpr", one))
        keys = [x.aval.shape for x in equation.invars if is_key(x.aval)]
        if keys and not inner and not any(is_key(x.aval) for x in equation.outvars):
            yield equation.primitive.name, keys[0]


@pytest.mark.parametrize("name", ["everything", *(pytest.param(name, marks=pytest.mark.slow) for name in FORKS)])
def test_every_random_number_of_a_step_is_drawn_by_seed_and_step(name, monkeypatch):
    """With many seeds and steps at once, each key that numbers are drawn from is one of as many."""
    # Shapes are enough, and nothing is compiled.
    monkeypatch.setattr(sharding, "create", lambda function, rng, *_: jax.eval_shape(function, rng))
    experiment = create_experiment(config_of(name))

    def program(rng, step, state):
        return experiment.train_program(state.replace(rng=rng, step=step), experiment.train_data)

    of_seeds_and_steps = jax.vmap(jax.vmap(program, (None, 0, None)), (0, None, None))
    keys, steps = jax.random.split(jax.random.key(0), SEEDS), jnp.arange(STEPS, dtype=jnp.int32)
    found = [*draws(jax.make_jaxpr(of_seeds_and_steps)(keys, steps, experiment.state).jaxpr)]
    assert found
    assert all({SEEDS, STEPS} <= {*shape} for _, shape in found), found


def weights(seed, other, _):
    fields = {"duration": "30 steps", "batch_size": 16, "num_validation": 50, "label_noise": 0.2, "eval_every": "5%"}
    fields |= {"averages__other": default.average("running_mean"), "optimizer__name": "adamw", "data__mode": "stream"}
    state = create_experiment(digits_config(seed=seed, **fields if other else {})).state
    return {"key": jax.random.key_data(state.rng), **{name: x["kernel"] for name, x in state.params.items()}}


def splits(seed, other, _):
    """Which labels are wrong, and which images, each of a brightness of its own, are for validation."""
    number = np.arange(200)
    train = Images(np.repeat(number, 64).astype(np.uint8).reshape(200, 8, 8, 1), (number % 10).astype(np.int32))
    source = Source.from_arrays("numbers", train, train.take(number[: 5 if other else 7]))
    noisy = load_splits(source, num_validation=0, label_noise=0.3, seed=seed)
    halved = load_splits(source, num_validation=20, label_noise=0.1 if other else 0.0, seed=seed)
    return {"labels": noisy.train.label, "validation": halved.validation.image}


def streamed(seed, other, folder):
    """Of images that are all the same, views; and their classes, in the order of the images."""
    for number in range(30):
        file = folder / f"{'test' if number > 25 else 'train'}/{number % 26:02}/0.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).save(file)
    source = find_folder_source(f"folder:{folder}", ("train", "test"), 8, False)
    size, eval_size, duration = (12, 3, 4) if other else (8, 10, 3)  # of a batch; the first 24 images all the same
    settings = {"num_validation": 0, "label_noise": 0, "augment": {"resized_crop": 0.3}, "mode": "stream"}
    settings |= {"batch_size": size, "eval_batch_size": eval_size, "duration": duration}
    data, _ = input_pipeline.load(source, sharding.create_mesh(), seed=seed, **settings)
    steps = [data.at(step) for step in range(24 // size)]
    return {name: np.concatenate([getattr(x, name) for x in steps]) for name in ("image", "label")}


THINGS = {"weights": weights, "splits": splits, "streamed": streamed}


@pytest.mark.parametrize("name", THINGS)
def test_what_a_run_starts_from_and_sees_is_drawn_by_its_seed_and_by_no_other_field(name, tmp_path):
    found, again, another = (
        THINGS[name](seed, other, tmp_path) for seed, other in ((5, False), (5, True), (5 + 2**31, False))
    )
    for thing, drawn in found.items():
        np.testing.assert_array_equal(again[thing], drawn, thing)
        assert (another[thing] != drawn).any(), thing


# What the seed decides of a fork's data before the first step: leaves of what trains, of the memory and of evaluation.
HAPPENED = ("observation", "buffer/observation", "buffer/action", "buffer/next_observation")
CART_POLE = ("position", "velocity", "angle", "angular_velocity", "time")
DECIDED = {
    "anchor": {"train/policy", "train/reward", "train/data/label"},
    "byol": {"memory"},
    "diffusion": set(),
    "dqn": {f"memory/{x}" for x in (*HAPPENED, "buffer/terminated", *(f"environments/{y}" for y in CART_POLE))},
    "gan": set(),
    "mean_teacher": {"train/labelled", "train/data/label"},
    "td3": {f"memory/{x}" for x in (*HAPPENED, "buffer/reward", "environments/angle", "environments/angular_velocity")},
}


def fork_data(name, seed, **fields):
    """The leaves of the data by their paths."""
    config = config_of(name, seed=seed, **fields)
    if name.startswith("examples.byol."):
        config.loss.queue = 6
    task = train.find_task(config.task)
    resolved = settings.prepare(config, task, pathlib.Path("no_such_run"), "refuse")
    data = settings.create_data(task, resolved, sharding.create_mesh())
    leaves = jax.tree_util.tree_leaves_with_path({"train": data.train, "memory": data.memory, "eval": {**data.eval}})
    numbers = [(path, jax.random.key_data(x) if is_key(x) else x) for path, x in leaves]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in numbers}


@pytest.mark.parametrize("name", [name for name in FORKS if name.endswith(".default")])
def test_what_a_fork_starts_from_is_drawn_by_its_seed_and_by_no_other_field(name):
    """A new fork says in `DECIDED` what its seed decides."""
    found, other = fork_data(name, 5), fork_data(name, 6)
    again = fork_data(name, 5, batch_size=16, duration="50 steps", accumulate=2)
    assert [path for path in found if not np.array_equal(found[path], again[path])] == []
    differing = {path for path in found if not np.array_equal(found[path], other[path])}
    assert differing == DECIDED[name.split(".")[1]]


def test_all_weights_are_judged_by_samples_of_the_same_noise_which_the_seed_draws(monkeypatch):
    monkeypatch.setattr(samples, "judge", lambda experiment, split, found: found)

    def keys(seed, number):
        config = types.SimpleNamespace(seed=seed, data=types.SimpleNamespace(num_samples=number))
        experiment, draw = types.SimpleNamespace(config=config), lambda run, weights, key, num: jax.random.key_data(key)
        found = samples.evaluate(experiment, {"raw": 1, "ema": 2}, "test", sample=draw)
        assert (found["raw"] == found["ema"]).all()
        return found["raw"].tolist()

    assert keys(5, 10) == keys(5, 20)
    assert len({str(keys(seed, 10)) for seed in (5, 6, 5 + 2**31)}) == 3
