"""What the tests share: a small experiment, real processes, real data."""

import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import ml_collections
import numpy as np
import pytest

from configs import default

# Many tests compile the same small programs, which is most of their time. Set before anything imports JAX, and
# inherited by the processes that tests start, xdist's among them. Who runs pytest again and again may name a folder.
if "TESTS_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory()
    os.environ["TESTS_CACHE"] = _CACHE.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["TESTS_CACHE"]
os.environ["XDG_CACHE_HOME"] = os.environ["TESTS_CACHE"]  # what runs would keep there stays out of the user's
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

ROOT = pathlib.Path(__file__).resolve().parent.parent
CNN = {"model__name": "cnn", "model__hidden_sizes": (256, 256)}


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


def get_config(name):
    return importlib.import_module(f"configs.{name}").get_config()


def check(config) -> list[str]:
    import settings
    import train  # imports JAX

    return settings.check(config, train.find_task(config["task"]))


def resolve(config, num_train=901, num_devices=1):
    import settings
    import train  # imports JAX

    check(config)
    return settings.resolve(config, train.find_task(config["task"]), num_train=num_train, num_devices=num_devices)


def create_experiment(config, workdir=pathlib.Path("no_such_run"), config_change="refuse"):
    """State and data of a config, as a run in that workdir would have them."""
    from tools import finished  # imports JAX

    return finished.create_experiment(config, workdir, config_change)


@pytest.fixture
def task(monkeypatch):
    """Registers a task for one test, and returns its name."""
    import train  # imports JAX

    def register(**fields) -> str:
        name = f"task_{len(train.TASKS)}"
        monkeypatch.setitem(train.TASKS, name, train.Task(**fields))
        return name

    return register


def climbing_from(step: int):
    """The loss of images, which from this step on is climbed instead of descended: so the best evaluation is known."""
    import jax.numpy as jnp

    import train

    def loss_fn(params, state, batch):
        objective, aux = train.loss_fn(params, state, batch)
        return jnp.where(state.step < step, objective, -objective), aux

    return loss_fn


def state_at(rng, step):
    """A state without parameters, of which the training data reads key and step."""
    import jax.numpy as jnp
    import optax

    from train_state import CustomTrainState

    state = CustomTrainState.create(apply_fn=None, params={}, tx=optax.identity(), rng=rng)
    return state.replace(step=jnp.int32(step))


def copy(tree):
    """The same arrays in other buffers, which may be donated."""
    import jax

    return jax.tree.map(jax.numpy.copy, tree)


def create_dispatcher(experiment, chunked: bool = True, max_steps: int = 0):
    """Advances the experiment; overwrites the state that it is given."""
    from runtime.dispatch import Dispatcher  # imports JAX

    return Dispatcher(experiment.train_program, chunked, max_steps)


def read_metrics(workdir, curve=None) -> list[dict]:
    lines = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if curve in (None, line["curve"])]


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes | None]:
    """Every file below a folder but the lock, and the folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*") if path.name != "lock"}


def command(*flags: str, config: str = "configs/digits.py") -> list[str]:
    return [sys.executable, "main.py", f"--config={config}", *flags]


def run_main(*flags: str, config: str = "configs/digits.py", **environment: str) -> subprocess.CompletedProcess:
    """Runs main.py to its end in a process of its own."""
    return subprocess.run(
        command(*flags, config=config), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def git(folder: pathlib.Path, *arguments: str) -> str:
    """What a git command prints in a folder, whatever the user's own settings are."""
    settings = ("user.name=test", "user.email=test@localhost", "commit.gpgsign=false", "tag.gpgsign=false")
    command = ["git", *(part for setting in settings for part in ("-c", setting)), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def copy_project(folder: pathlib.Path, without: Sequence[str] = ()) -> None:
    """Makes a repository with one commit of what this one has and does not ignore, but for some files and folders."""
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        path = pathlib.PurePosixPath(name)
        if (ROOT / name).is_file() and not any(path.is_relative_to(other) for other in without):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-m", "A fork")


def store_images(folder, name: str, version: str, num_classes: int) -> None:
    """Prepares a TFDS data set of 160 and 40 random 32x32 colour images, as `tfds build` leaves one."""
    from runtime import tfds_sets  # imports JAX

    tfds_sets.import_tensorflow()
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
