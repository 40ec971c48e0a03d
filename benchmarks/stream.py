"""How fast are images read from disk, and what does training lose by it?

    python -m benchmarks.stream            # with PyTorch and torchvision installed, against their DataLoader
    python -m benchmarks.stream --workers=8

On made photographs of 500x375 pixels, as JPEG, cropped at random to 224x224; on CIFAR's 32x32 pixels, as PNG in the
files of TFDS, if TFDS_DATA_DIR has it; and in training, ResNet-20 on images of that size.
"""

import importlib.util
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from PIL import Image

import train
from benchmarks import measure
from configs import cifar10_small
from input_pipeline import find_source
from runtime import rows, tfds_sets
from runtime.dispatch import Dispatcher
from runtime.permutation import find_step
from runtime.readers import num_cores, read_ahead
from runtime.sources import Images
from tools import finished

_WORKERS = flags.DEFINE_integer("workers", 0, "Processes that read, of all that is compared; 0: one for each core.")
_ROUNDS = flags.DEFINE_integer("rounds", 8, "How often the ways take turns.", lower_bound=measure.MIN_ROUNDS)
NUM_FILES, BATCH, SIZE = 512, 64, 224
BATCHES, STEPS = 12, 10  # in a round


def make_photographs(folder: pathlib.Path) -> None:
    """Writes smooth images with noise, whose files have the size of photographs', 80 to 110 kB."""
    rng = np.random.default_rng(0)
    for i in range(NUM_FILES):
        small = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        noisy = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        for split in ("train", "test"):
            path = folder / split / f"class{i % 2}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if split == "train" or i < 4:
                Image.fromarray(noisy).save(path, quality=90)


def timed(batches: Iterator[Any], number: int) -> float:
    """Seconds for some batches, after others that show that all who read have begun."""
    for _ in range(4):
        next(batches)
    started = time.perf_counter()
    for _ in range(number):
        next(batches)
    return time.perf_counter() - started


def steps_of(read: rows.TrainRows) -> Callable[[int], rows.Step]:
    """What `read` takes for the number of a step."""
    return find_step(jax.random.key(0), read.batch_size, len(read.images))


def of_stream(
    read: rows.TrainRows, num_threads: int, num_workers: int = 0, number: int = BATCHES
) -> Callable[[], float]:
    """Times a stream's reading."""

    def call() -> float:
        with read_ahead(
            read, map(steps_of(read), range(10**6)), np.arange(read.batch_size), num_threads, num_workers
        ) as found:
            return timed(found, number)

    return call


def of_loader(folder: pathlib.Path, num_workers: int) -> Callable[[], float]:
    """Times PyTorch's DataLoader with torchvision's images and crops, which are bilinear as ours."""
    import torch
    from torchvision import datasets, transforms

    crop = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.PILToTensor()])

    def call() -> float:
        images = datasets.ImageFolder(str(folder / "train"), crop)
        endless = torch.utils.data.ConcatDataset([images] * 100)
        loader = torch.utils.data.DataLoader(endless, BATCH, shuffle=True, num_workers=num_workers)
        return timed(iter(loader), BATCHES)

    return call


def row(what: str, number: int, seconds: list[float], against: str, reference: list[float]) -> dict[str, Any]:
    """A row of the table: how many per second, and how many times as many as another way does."""
    median = float(np.median(seconds))
    found = {"what": what, "seconds": median, "per second": number / median, "against": against}
    return found | measure.paired_ratio(reference, seconds)


def measure_photographs(rounds: int, workers: int) -> list[dict[str, Any]]:
    """Rows of the table: 224-pixel crops of JPEG files."""
    with tempfile.TemporaryDirectory() as name:
        make_photographs(pathlib.Path(name))
        source = find_source(f"folder:{name}", image_size=SIZE)
        images = source.load("train")
        read = rows.TrainRows(images, BATCH, 0, min_area=0.08)

        steps = steps_of(read)

        def bare() -> float:
            started = time.perf_counter()
            for step in range(BATCHES // num_cores()):
                read(steps(step), np.arange(BATCH))
            return (time.perf_counter() - started) * num_cores()

        variants = {
            "one thread": bare,
            "stream, threads": of_stream(read, num_cores()),
            "stream, processes": of_stream(read, 0, workers),
        }
        if importlib.util.find_spec("torchvision"):
            variants["DataLoader"] = of_loader(pathlib.Path(name), workers)
        seconds = measure.interleaved(variants, rounds)
    found = []
    for what, values in seconds.items():
        against = "DataLoader" if "DataLoader" in seconds and what.startswith("stream") else ""
        reference = seconds[against] if against else values
        found.append(row(f"JPEG 500x375 -> 224: {what}", BATCH * BATCHES, values, against, reference))
    return found


def measure_small(rounds: int) -> list[dict[str, Any]]:
    """Rows of the table: 32-pixel PNG from the files of TFDS, against the same decoding in a bare loop."""
    tfds_sets.LARGE = 0
    try:
        images = find_source("cifar10").load("train")
    finally:
        tfds_sets.LARGE = 2**31
    batch = 512
    read = rows.TrainRows(images, batch, 0)

    steps = steps_of(read)

    def bare() -> float:
        started = time.perf_counter()
        for step in range(BATCHES):
            read(steps(step), np.arange(batch))
        return time.perf_counter() - started

    seconds = measure.interleaved({"bare loop": bare, "stream, one thread": of_stream(read, 1)}, rounds)
    return [
        row(f"PNG 32x32: {what}", batch * BATCHES, values, "bare loop", seconds["bare loop"])
        for what, values in seconds.items()
    ]


def of_steps(experiment: train.Experiment) -> Callable[[], float]:
    """Times training, a step as the mean of several: of one, what is read meanwhile would not count."""
    advance = Dispatcher(experiment.train_program, chunked=False)
    (state, sums), done = jax.tree.map(jnp.copy, (experiment.state, experiment.sums)), 0

    def call() -> float:
        nonlocal state, sums, done
        started = time.perf_counter()
        state, sums, _ = advance(state, sums, experiment.train_data, done, done + STEPS)
        done += STEPS
        return (time.perf_counter() - started) / STEPS

    call()  # which compiles
    return call


def measure_training(rounds: int) -> list[dict[str, Any]]:
    """Rows of the table: steps of ResNet-20, streamed against resident, dispatched one by one."""
    calls = {}
    for mode in ("device", "stream"):
        config = cifar10_small.get_config()
        config.steps_per_dispatch, config.data = 1, {"mode": mode}
        config.duration = "100000 steps"
        calls[mode] = of_steps(finished.create_experiment(config))
    seconds = measure.interleaved(calls, rounds)
    return [
        row(f"ResNet-20, steps: {mode}", 1, values, "device", seconds["device"]) for mode, values in seconds.items()
    ]


def measure_start(rounds: int) -> list[dict[str, Any]]:
    """Rows of the table: seconds until the first batch, at the begin and after a million steps."""
    label = np.zeros(50_000, np.int32)
    read = rows.TrainRows(Images(np.zeros((50_000, 32, 32, 3), np.uint8), label), 128, 0)

    def first(step: int) -> Callable[[], float]:
        def call() -> float:
            started = time.perf_counter()
            with read_ahead(read, map(steps_of(read), range(step, 10**9)), np.arange(128), 1) as found:
                next(found)
                return time.perf_counter() - started

        return call

    seconds = measure.interleaved({"10": first(10), "1,000,000": first(10**6)}, rounds)
    return [
        row(f"the first batch, from step {step}", 1, values, "10", seconds["10"]) for step, values in seconds.items()
    ]


def main(argv: list[str]) -> None:
    """Measures, and writes the result."""
    del argv
    rounds, workers = _ROUNDS.value, _WORKERS.value or num_cores()
    found = measure_photographs(rounds, workers)
    if pathlib.Path(os.environ.get("TFDS_DATA_DIR", ""), "cifar10").is_dir():
        found += measure_small(rounds) + measure_training(rounds)
    found += measure_start(rounds)
    measure.write("stream", found, workers=workers, cores=num_cores(), batch=BATCH)


if __name__ == "__main__":
    app.run(main)
