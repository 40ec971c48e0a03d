"""Several devices compute what one does, and those that a run cannot use are refused."""

import functools
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from conftest import ROOT, command, create_experiment, get_config, read_metrics, run_main
from refusals import check

from runtime.stored import find_checkpoint


@pytest.mark.slow
def test_eight_devices_give_the_losses_and_averages_of_one(tmp_path):
    """A CNN with batch norm, dropout and augmentation, over 20 steps.

    Devices add up in another order. At a larger learning rate than here, a ReLU that such a rounding switches makes
    the paths part for good, as they do on one device when the compiler changes.
    """
    overrides = {
        "duration": "20 steps", "log_every": "1 steps", "eval_every": "20 steps", "checkpoint_every": "20 steps",
        "augment.flip": True, "augment.crop_padding": 1, "augment.erasing": 0.2, "augment.mixup": 0.2,
        "augment.cutmix": 1.0, "augment.rand_augment": 1,
        "model.name": "cnn", "model.batch_norm": True, "model.dropout": 0.25, "optimizer.learning_rate": 0.01,
    }  # fmt: skip
    config = get_config("digits")
    config.update_from_flattened_dict(overrides)

    def run(devices):
        return run_main(
            f"--workdir={tmp_path / str(devices)}",
            *(f"--config.{name}={value}" for name, value in overrides.items()),
            XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
        )

    losses, states = {}, {}
    with ThreadPoolExecutor() as pool:  # side by side, to save time
        results = dict(zip((1, 8), pool.map(run, (1, 8)), strict=True))
    for devices, result in results.items():
        assert result.returncode == 0, result.stderr
        assert f"{devices} x cpu" in result.stdout
        assert f"Batches of 32 = {devices} devices x 1 parts x {32 // devices} examples" in result.stdout
        lines = read_metrics(tmp_path / str(devices))
        losses[devices] = [line["loss"] for line in lines if line["curve"] != "ema-raw"]
        states[devices] = saved_state(tmp_path / str(devices), config)
    assert len(losses[1]) == 22  # of 20 steps and two curves
    np.testing.assert_allclose(losses[8], losses[1], rtol=0, atol=1e-4)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    for field in ("ema_params", "ema_batch_stats"):
        jax.tree.map(close, getattr(states[8], field), getattr(states[1], field))


@pytest.mark.slow
def test_eight_devices_compute_what_one_does_but_for_rounding(tmp_path):
    """A residual network at a learning rate of 0.1, at which float32 rounding grows to 3e-3 within 20 steps.

    In float64 the same amplification leaves next to nothing: what differs between the devices is rounding alone.
    """

    def averages(devices):
        file = tmp_path / f"{devices}.npy"
        flag = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [sys.executable, "tests/float64_run.py", file], cwd=ROOT, check=True,
            env=os.environ | {"XLA_FLAGS": flag, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return np.load(file)

    one, eight = map(averages, (1, 8))
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-11)  # 1e-16 grown by as much as 1e-7 grows to 3e-3


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "gpu", "tpu", "no_such_platform"])
def test_devices_that_are_asked_for_and_not_there_are_one_message(tmp_path, platform):
    if platform in ("cuda", "gpu", "tpu") and jax.default_backend() != "cpu":
        pytest.skip("there is such a device")
    result = run_main(f"--workdir={tmp_path / 'run'}", JAX_PLATFORMS=platform)
    check(result, f"error: JAX_PLATFORMS={platform}: JAX finds no such device here")
    assert len(result.stderr.splitlines()) == 1
    assert 'pip install "jax[cuda13]"' in result.stderr
    assert not (tmp_path / "run").exists()


# Begins as several hosts do.
CONFIG = """
import os
import jax
from configs import digits

def get_config():
    jax.distributed.initialize(os.environ["ADDRESS"], 2, int(os.environ["RANK"]), initialization_timeout=60)
    return digits.get_config()
"""
CALL = "import sys, config, train; train.train_and_evaluate(config.get_config(), sys.argv[1])"


@pytest.mark.slow
@pytest.mark.parametrize("start", ["main.py", "Python"])
def test_several_processes_are_refused_before_anything_is_done(tmp_path, start):
    (tmp_path / "config.py").write_text(CONFIG)
    workdir = tmp_path / "run"
    run = command(f"--workdir={workdir}", config=str(tmp_path / "config.py"))
    arguments = run if start == "main.py" else [sys.executable, "-c", CALL, str(workdir)]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"ADDRESS": address, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    processes = [
        subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment | {"RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 1, said
        assert "error: JAX runs in 2 processes without that they have joined" in errors.replace("UserError", "error")
        assert ("Traceback" in errors) == (start == "Python")
    assert not workdir.exists()


def saved_state(workdir, config):
    """What the run's latest checkpoint holds."""
    experiment = create_experiment(config, workdir)
    return find_checkpoint(workdir, "latest").restore_state(experiment.state)
