"""Data that no memory holds: the same numbers from disk as from the device, in bounded memory, from clone to curves."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, digits_config, read_metrics, run_main
from PIL import Image
from processes import succeed

import train
from runtime.decoding import view
from runtime.errors import UserError
from tools import export

SHARED = pathlib.Path(os.environ.get("TFDS_DATA_DIR", ""))
SHORT = ("--config.duration=24 steps", "--config.log_every=3 steps", "--config.eval_every=12 steps")
PART = "--config.splits=('train[:10000]', 'test[:1000]')"  # the rest takes minutes and shows nothing else
SINGLE = ("--config.steps_per_dispatch=1", "--config.num_validation=1000", "--config.label_noise=0.1")


def metrics(workdir):
    return (workdir / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_stream_what_one_has_on_its_devices_to_the_bit(tmp_path):
    single = ("--config.steps_per_dispatch=1", "--config.duration=24 steps", "--config.batch_size=32")
    succeed(2, f"--workdir={tmp_path / 'two'}", "--config.data.mode=stream", *single)
    succeed(1, f"--workdir={tmp_path / 'one'}", "--config.data.mode=device", *single, devices=2, joined=False)
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="needs MNIST and CIFAR-10 in TFDS_DATA_DIR")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_real_images_give_the_same_numbers_wherever_they_lie_and_whoever_reads_them(tmp_path, name):
    options = {"config": "configs/default.py"}
    augment = ("--config.augment.flip=True", "--config.augment.crop_padding=4", "--config.augment.mixup=1.0")
    ways = [("device", 1), ("stream", 1), ("stream", 2)]  # and processes, of which two give what one gives from devices
    for mode, num in ways:
        where = (f"--config.data.mode={mode}", f"--workdir={tmp_path / f'{mode}{num}'}", f"--config.dataset={name}")
        succeed(num, *where, PART, *augment, *SHORT, *SINGLE, devices=8 // num, **options)
    first, *others = (metrics(tmp_path / f"{mode}{num}") for mode, num in ways)
    assert len(first.splitlines()) > 10
    assert all(other == first for other in others)


MEMORY = """
import json, os, sys
import jax, numpy as np
import train
from configs import default
from runtime import dispatch, readers
from tools import finished

folder, num_steps, batch_size, size = sys.argv[1], *map(int, sys.argv[2:])
config = default.get_config()
config.dataset, config.image_size, config.batch_size = f"folder:{folder}", size, batch_size
config.duration, config.model.hidden_sizes = f"{num_steps} steps", (8,)
experiment = finished.create_experiment(config)
found, advance = [], dispatch.Dispatcher(experiment.train_program, False)
state, sums = experiment.state, experiment.sums

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

with advance:
    for step in range(num_steps):
        state, sums, _ = advance(state, sums, experiment.train_data, step, step + 1)
        found.append(anonymous())
print(json.dumps([found, readers.AHEAD]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_memory_does_not_grow_with_the_data_nor_with_the_steps(tmp_path):
    """Images of 750 MB, ten times what reading them may take."""
    rng, number, batch, size = np.random.default_rng(0), 5_000, 16, 224
    for split, images in (("train", number), ("test", 40)):
        for label in (0, 1):
            (tmp_path / split / f"class{label}").mkdir(parents=True)
        for i in range(images):
            path = tmp_path / split / f"class{i % 2}" / f"{i}.jpg"
            if i < 40:
                small = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(small).resize((320, 240)).save(path)
            else:  # the same content under another name: no disk is needed for it
                os.link(tmp_path / split / f"class{i % 2}" / f"{i % 40}.jpg", path)
    flags = (str(tmp_path), "500", str(batch), str(size))
    script = [sys.executable, "-c", MEMORY, *flags]
    # As users compile, and without what malloc keeps for each thread: that varies by 50 MB from run to run.
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=400)
    found, ahead = json.loads(done.stdout.splitlines()[-1])
    bytes_of_batch = batch * size * size * 3
    limit = (ahead + 3) * bytes_of_batch + 50e6
    assert number * size * size * 3 > 10 * limit
    start = found[2]  # programs are compiled, and reading ahead has begun
    assert max(found) - start <= limit
    slope = np.polyfit(np.arange(100, 500), np.array(found[100:]) / 1e6, 1)[0]
    assert abs(slope) < 0.05  # MB a step: over 500 steps less than the 50 MB that are allowed for above


@pytest.mark.slow
def test_a_folder_of_photographs_trains_without_a_line_of_code(tmp_path):
    """1,000 of 40 sizes and 5 modes, 3 of them damaged: the first command names these, the second trains."""
    rng, kinds = np.random.default_rng(0), {"RGB": "jpg", "L": "JPEG", "RGBA": "png", "P": "gif", "CMYK": "jpg"}
    sizes = rng.integers(40, 200, (40, 2))
    for i in range(1000):
        split, colour, (mode, ending) = "train" if i < 800 else "test", i % 2, [*kinds.items()][i % 5]
        pixels = rng.normal((200 - 100 * colour, 120, 100 + 100 * colour), 30, (*sizes[i % 40], 3))
        path = tmp_path / "photos" / split / ("red", "blue")[colour] / f"{i}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(path)
    spoilt = [tmp_path / "photos" / name for name in ("train/red/10.jpg", "train/blue/13.gif", "test/red/802.png")]
    for path, content in zip(spoilt, (b"", b"no image", spoilt[2].read_bytes()[:-200]), strict=True):
        path.write_bytes(content)
    flags = [
        f"--config.dataset=folder:{tmp_path / 'photos'}",
        "--config.image_size=32",
        f"--workdir={tmp_path / 'run'}",
    ]
    first = run_main(*flags, config="configs/default.py")
    assert first.returncode == 1
    assert "Traceback" not in first.stderr
    assert all(str(path) in first.stderr for path in spoilt)
    assert first.stderr.count("photos/") == len(spoilt)
    assert "--config.skip_damaged=True" in first.stderr
    second = run_main(*flags, "--config.skip_damaged=True", config="configs/default.py")
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "run" / "curves.png").exists()
    assert (tmp_path / "run" / "report.html").exists()
    accuracy = read_metrics(tmp_path / "run", "ema")[-1]["accuracy"]
    assert accuracy > 0.9

    # What is exported sees other files as evaluation has seen these.
    export.export(tmp_path / "run", "ema", tmp_path / "exported", "latest")
    paths = sorted(path for path in (tmp_path / "photos" / "test").glob("*/*") if path not in spoilt)
    probabilities, classes = export.predict(
        tmp_path / "exported", np.stack([view(path, (32, 32, 3)) for path in paths])
    )
    right = [classes[best] == path.parent.name for best, path in zip(probabilities.argmax(axis=1), paths, strict=True)]
    assert np.mean(right) == accuracy


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_images_unless_told_to(tmp_path):
    """As many as before, in as many classes; nothing else tells of it."""
    rng = np.random.default_rng(0)
    arrays = {"train_image": rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8), "train_label": np.arange(64) % 4}
    arrays |= {"test_image": arrays["train_image"][:8], "test_label": arrays["train_label"][:8]}
    np.savez(tmp_path / "set.npz", **arrays)
    config = digits_config(dataset=f"arrays:{tmp_path / 'set.npz'}", duration="10 steps")
    train.train_and_evaluate(config, tmp_path / "run")
    np.savez(tmp_path / "set.npz", **arrays | {"train_label": arrays["train_label"][::-1]})
    config.duration = "20 steps"
    with pytest.raises(
        UserError, match=r"run holds a run on other training data: labels, names of files or their order"
    ):
        train.train_and_evaluate(config, tmp_path / "run")
    state, _ = train.train_and_evaluate(config, tmp_path / "run", config_change="accept")
    assert state.step == 20
    state, _ = train.train_and_evaluate(config, tmp_path / "run")  # which these now are the data of
