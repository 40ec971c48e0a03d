"""What the tests share: a small experiment, real processes, real data."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import ml_collections
import numpy as np
import pytest

from configs import default

# Many tests compile the same small programs, which is most of their time. Set before anything imports JAX, and
# inherited by the processes that tests start.
_CACHE = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # what runs would keep there stays out of the user's
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

ROOT = pathlib.Path(__file__).resolve().parent.parent


def digits_config(**overrides) -> ml_collections.ConfigDict:
    """A run of 20 steps on the digits; overrides are written with `__` for the dot."""
    config = default.get_config()
    config.batch_size = 32
    config.duration = "20 steps"
    config.log_every = "5 steps"
    config.eval_every = "10 steps"
    config.checkpoint_every = "10 steps"
    config.model.hidden_sizes = (32,)
    config.averages.ema = default.average("ema", decay=0.9)
    for name, value in overrides.items():
        *groups, field = name.split("__")
        group = config
        for key in groups:
            group = group[key]
        group[field] = value
    return config


@pytest.fixture
def task(monkeypatch):
    """Registers a task for one test, and returns its name."""
    import evaluation
    import train  # imports JAX

    def register(loss_fn=train.loss_fn, score_fn=evaluation.score_fn) -> str:
        name = f"task_{len(train.TASKS)}"
        monkeypatch.setitem(train.TASKS, name, (loss_fn, score_fn))
        return name

    return register


def zero_sums(experiment):
    import train  # imports JAX

    return train.create_zero_sums(train.loss_fn, experiment.state, experiment.train_data, experiment.mesh)()


def create_dispatcher(experiment, chunked: bool = True, max_steps: int = 0):
    """Advances the experiment; overwrites the state that it is given."""
    import train
    from runtime.dispatch import Dispatcher

    program = train.create_train_program(train.loss_fn, experiment.mesh, experiment.config.accumulate)
    return Dispatcher(program, chunked=chunked, max_steps=max_steps, sharding=train.replicated(experiment.mesh))


def read_metrics(workdir, curve=None) -> list[dict]:
    lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if curve in (None, line["curve"])]


def command(*flags: str, config: str = "configs/digits.py") -> list[str]:
    return [sys.executable, "main.py", f"--config={config}", *flags]


def run_main(*flags: str, config: str = "configs/digits.py", **environment: str) -> subprocess.CompletedProcess:
    """Runs main.py to its end in a process of its own."""
    return subprocess.run(
        command(*flags, config=config), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def store_images(folder, name: str, version: str, num_classes: int) -> None:
    """Prepares a TFDS data set of 160 and 40 random 32x32 colour images, as `tfds build` leaves one."""
    from runtime import environment  # imports JAX

    environment.import_tensorflow()
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def split(num_images: int, seed: int) -> tf.data.Dataset:
        image = np.random.default_rng(seed).integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
        label = np.arange(num_images) % num_classes
        columns = {"id": label.astype(str), "image": image, "label": label, "coarse_label": label % 20}
        return tf.data.Dataset.from_tensor_slices({key: columns[key] for key in features})

    features = {
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=num_classes),
    }
    if name.startswith("cifar"):
        features["id"] = tfds.features.Text()
    if name == "cifar100":
        features["coarse_label"] = tfds.features.ClassLabel(num_classes=20)
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        version,
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": split(160, 0), "test": split(40, 1)},
        data_dir=folder,
        disable_shuffling=True,
    )


@pytest.fixture(scope="session")
def made_data(tmp_path_factory) -> pathlib.Path:
    """A TFDS folder of small sets with the names and shapes of real ones, and one of 100 classes."""
    folder = tmp_path_factory.mktemp("tfds")
    store_images(folder, "cifar10", "3.0.2", 10)
    store_images(folder, "cifar100", "3.0.2", 100)
    store_images(folder, "hundred", "1.0.0", 100)
    return folder


@pytest.fixture(scope="session")
def mnist() -> None:
    """Real MNIST where TFDS finds it without a network; the test is skipped elsewhere."""
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", ROOT.parent / "shared" / "tfds")).resolve()
    if not (folder / "mnist").is_dir():
        pytest.skip("no prepared MNIST; TFDS_DATA_DIR=... names a folder that has it")
    os.environ["TFDS_DATA_DIR"] = str(folder)
