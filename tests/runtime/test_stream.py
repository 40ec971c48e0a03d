"""Data that are read as they are needed: the same rows, the same numbers, whoever reads them."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CNN, ROOT, create_experiment, digits_config, read_metrics

import evaluation
import input_pipeline
import train
from runtime import interruption, permutation, readers, rows, sharding, stream
from runtime.errors import UserError
from runtime.sources import Images

KEY = jax.random.key(0)


def numbered(n: int) -> Images:
    """Images whose pixel and label are their numbers."""
    number = np.arange(n)
    return Images(number.astype(np.uint8)[:, None, None, None], number.astype(np.int32))


class Views:
    """Stored images, of which a view is all that it depends on."""

    def read(self, rows, keys, min_area):
        assert min_area == 0.25
        return np.column_stack([rows.astype(np.uint64), keys])


@pytest.mark.parametrize(("num_examples", "batch_size"), [(64, 16), (100, 16), (901, 32)])
def test_each_epoch_is_a_permutation_and_each_of_its_views_is_new_whichever_hosts_read_them(num_examples, batch_size):
    images = Images(Views(), np.arange(num_examples, dtype=np.int32))
    read = rows.TrainRows(images, batch_size, 5, min_area=0.25)
    find_step = permutation.find_step(KEY, batch_size, num_examples)
    num_steps, everything = 3 * num_examples // batch_size, {}
    for hosts in (1, 2, 4):
        parts = np.array_split(np.arange(batch_size), hosts)
        found = [read(find_step(step), part) for step in range(num_steps) for part in parts]
        everything[hosts], views = (np.concatenate([one[name] for one in found]) for name in ("label", "image"))
        # What is drawn for a view depends on the seed and on how many examples there were before, in all epochs.
        numbers = np.arange(num_steps * batch_size)
        np.testing.assert_array_equal(views, np.column_stack([everything[hosts], np.full_like(numbers, 5), numbers]))
    np.testing.assert_array_equal(everything[1], everything[2])
    np.testing.assert_array_equal(everything[1], everything[4])
    far = read(find_step(2**30), np.arange(batch_size))["image"]
    assert far[:, 2].tolist() == [2**30 * batch_size + position for position in range(batch_size)]
    for epoch in range(num_steps * batch_size // num_examples):
        seen = everything[1][epoch * num_examples : (epoch + 1) * num_examples]
        np.testing.assert_array_equal(np.sort(seen), np.arange(num_examples))


class Reading:
    """Reads the number of a step, and notes which have been asked for."""

    def __init__(self):
        self.steps = []

    def __call__(self, step, positions):
        self.steps.append(step)
        return {"number": step * 10 + positions}


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_threads_and_processes_give_every_step_in_order_and_end_with_the_context(num_workers):
    read, find_step = rows.TrainRows(numbered(50), 8, 0), permutation.find_step(KEY, 8, 50)
    threads = threading.active_count()
    with readers.read_ahead(read, map(find_step, range(3, 20)), np.arange(2, 7), 2, num_workers) as found:
        for step, given in zip(range(3, 15), found, strict=False):
            expected = read(find_step(step), np.arange(2, 7))
            assert given.keys() == expected.keys()
            assert all(np.array_equal(given[name], expected[name]) for name in expected)
    assert not multiprocessing.active_children()
    assert threading.active_count() == threads


def test_no_more_is_read_than_what_will_soon_be_needed():
    """So memory is bounded, and what training goes on from at any step is that step, without those before it."""
    read = Reading()
    with readers.read_ahead(read, range(10**6, 10**9), np.arange(2), 2) as found:
        assert next(found)["number"].tolist() == [10**7, 10**7 + 1]
        next(found)
    assert min(read.steps) == 10**6
    assert max(read.steps) <= 10**6 + 1 + readers.AHEAD


def test_what_reads_needs_neither_jax_nor_tensorflow():
    script = "import sys, runtime.rows, runtime.readers; sys.exit('jax' in sys.modules or 'tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


SEEN = """
import os, sys
import numpy as np

def seen(step, positions):
    modules = {"jax", "tensorflow"} & sys.modules.keys()
    return {"modules": np.full(len(positions), len(modules)), "pid": np.full(len(positions), os.getpid())}
"""
PROGRAM = """
import json
import jax
import numpy as np
import seen
from runtime import readers

if __name__ == "__main__":
    with readers.read_ahead(seen.seen, range(100), np.arange(8), 1, 2) as found:
        first = next(found)
        print(json.dumps([first["modules"].tolist(), sorted({*first["pid"].tolist()})]), flush=True)
        input()
        for _ in range(2 * readers.AHEAD):  # more than had been read before
            next(found)
        print("read", flush=True)
        input()
"""


def alive(pids):
    found = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
            if "\nState:\tZ" not in status.read():
                found.append(pid)
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs /proc")
def test_worker_processes_import_neither_the_program_nor_jax_and_end_with_it(tmp_path):
    (tmp_path / "seen.py").write_text(SEEN)
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            modules, pids = json.loads(process.stdout.readline())
            assert set(modules) == {0}
            assert process.pid not in pids
            for pid in pids:  # which Ctrl-C and a scheduler's notice reach as well
                for number in interruption._SIGNALS:
                    os.kill(pid, number)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "read\n"
        finally:
            process.kill()
    until = time.monotonic() + 20
    while alive(pids) and time.monotonic() < until:
        pass
    assert not alive(pids)


def failing(step, positions):
    raise UserError("cat/3.jpg cannot be read")


def killed(step, positions):
    os.kill(os.getpid(), signal.SIGKILL)


def one_killed(step, positions):
    if positions[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": positions}


@pytest.mark.slow
def test_all_worker_processes_are_there_before_the_first_reads():
    """One that a pool starts later would import the program, and hear a Ctrl-C."""
    pool = readers._processes(failing, 4)
    assert len(multiprocessing.active_children()) == 4
    pool.shutdown()


def test_what_goes_wrong_in_reading_ends_the_run_with_its_message():
    for read, num_workers, message in (
        (failing, 0, "cat/3.jpg cannot be read"),
        (killed, 2, "a process that reads data was killed; with fewer data.workers each has more memory"),
        (one_killed, 3, "a process that reads data was killed"),
    ):
        with (
            readers.read_ahead(read, range(9), np.arange(2), 1, num_workers) as found,
            pytest.raises(UserError, match=message),
        ):
            next(found)


PLAIN = {
    "num_validation": 100,
    "label_noise": 0.2,
    "seed": 3,
    "augment__mixup": 1.0,
    "eval_batch_size": 90,
    "steps_per_dispatch": 1,
}
RICH = PLAIN | CNN | {
    "augment__crop_padding": 1, "model__batch_norm": True, "averages__ema__batch_stats": "recompute",
    "recompute_batches": 3,
}  # fmt: skip


def streamed(config, mode="stream", workers=0):
    config.data = {"mode": mode, "workers": workers}
    return config


@pytest.mark.slow
@pytest.mark.parametrize("fields", [PLAIN, RICH], ids=["mlp", "cnn"])
def test_a_stream_gives_the_numbers_of_data_on_the_device_to_the_bit(tmp_path, fields):
    for mode in ("device", "stream"):
        train.train_and_evaluate(streamed(digits_config(**fields), mode), tmp_path / mode)
    device, stream_ = ((tmp_path / mode / "metrics.jsonl").read_bytes() for mode in ("device", "stream"))
    assert device == stream_
    assert {line["split"] for line in read_metrics(tmp_path / "stream", "ema")} == {"validation", "test"}
    predictions = [dict(np.load(tmp_path / mode / "predictions.npz")) for mode in ("device", "stream")]
    assert predictions[0].keys() == predictions[1].keys()
    for name, values in predictions[0].items():
        np.testing.assert_array_equal(values, predictions[1][name])


def test_a_run_that_streams_continues_where_it_was(tmp_path):
    whole, parts = streamed(digits_config()), streamed(digits_config(duration="10 steps"))
    train.train_and_evaluate(whole, tmp_path / "whole")
    train.train_and_evaluate(parts, tmp_path / "parts")
    train.train_and_evaluate(whole, tmp_path / "parts")
    metrics = [read_metrics(tmp_path / name, "ema")[-1] for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]


def test_a_run_in_chunks_goes_on_as_a_stream_with_a_batch_for_each_step(tmp_path):
    parts = digits_config(duration="10 steps")
    train.train_and_evaluate(parts, tmp_path / "device")
    shutil.copytree(tmp_path / "device", tmp_path / "stream")
    for mode in ("device", "stream"):
        train.train_and_evaluate(streamed(digits_config(), mode), tmp_path / mode)
    device, stream_ = (read_metrics(tmp_path / mode, "raw")[-1] for mode in ("device", "stream"))
    assert device["loss"] == pytest.approx(stream_["loss"], rel=1e-4)  # single steps differ in the last bits


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("batch_size", [8, 64])
def test_every_image_of_evaluation_is_given_once(n, batch_size, monkeypatch):
    monkeypatch.setattr(stream, "GROUP_BYTES", 50)
    mesh = sharding.create_mesh()
    number, size = input_pipeline._even_batches(n, batch_size, mesh.size)
    one = jnp.ones(1)

    def create(**arrays):
        return input_pipeline.EvalData(**arrays, normalization=input_pipeline.Normalization(0 * one, one), batch_size=1)

    images = numbered(n)
    data = stream.Stream(images, rows.EvalRows(images, size), create, size, number, sharding.split_batch(mesh))
    with stream.groups(data) as groups:
        found = [(part.label[part.mask], part.image[part.mask, 0, 0, 0]) for group in groups for part, _ in group]
    labels, pixels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    np.testing.assert_array_equal(labels, np.arange(n))
    np.testing.assert_array_equal(pixels, np.arange(n))


def test_what_lies_where_is_chosen_by_size_said_and_checked(monkeypatch, capsys):
    auto = create_experiment(digits_config())
    assert isinstance(auto.train_data, input_pipeline.TrainData)
    assert "Images: 0.1 MB, copied to each device" in capsys.readouterr().out
    monkeypatch.setattr(stream, "memory", lambda: 4 * 115_000)  # the digits have 115,008 and their labels 7,188
    small = create_experiment(digits_config())
    assert isinstance(small.train_data, stream.Stream)
    assert small.config.chunked is False
    assert "Images: 0.1 MB, read as they are needed" in capsys.readouterr().out
    monkeypatch.setattr(stream, "memory", lambda: 4 * 123_000)
    assert isinstance(create_experiment(digits_config()).train_data, input_pipeline.TrainData)
    with pytest.raises(UserError, match=r"data.mode = 'disk': must be 'auto', 'device' or 'stream'"):
        create_experiment(streamed(digits_config(), "disk"))
    with pytest.raises(UserError, match=r"steps_per_dispatch = 7: images that are streamed come one step at a time"):
        create_experiment(streamed(digits_config(steps_per_dispatch=7)))


@pytest.mark.slow
def test_statistics_and_diagnoses_may_read_steps_after_the_last_one(tmp_path):
    """More batches than there are steps, on a set of which they are several epochs."""
    config = streamed(digits_config(**RICH | {"duration": "2 steps", "recompute_batches": 90}))
    experiment = create_experiment(config)
    weights = evaluation.weights_to_score(experiment.state, experiment.train_data, 90, experiment.mesh)
    resident = create_experiment(streamed(digits_config(**RICH | {"duration": "2 steps"}), "device"))
    expected = evaluation.weights_to_score(resident.state, resident.train_data, 90, resident.mesh)
    jax.tree.map(np.testing.assert_array_equal, weights, expected)
