import re
import shutil
import signal
import subprocess

import pytest
from conftest import ROOT, command, read_metrics, run_main

from runtime import interruption

LONG = ("--config.duration=100000000 steps", "--config.log_every=100%", "--config.eval_every=100%")
PERIODS = ("--config.log_every=7 steps", "--config.eval_every=11 steps", "--config.checkpoint_every=100%")
# Says that it trains, from within the program of the device.
CONFIG = """
import jax
import train
from configs import digits

def loss_fn(params, state, batch, **kwargs):
    jax.debug.callback(lambda step: print("training", step, flush=True) if step == 3 else None, state.step)
    return original(params, state, batch, **kwargs)

original = train.loss_fn
train.TASKS["classification"] = train.Task(loss_fn)

def get_config():
    return digits.get_config()
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    return str(tmp_path / "config.py")


def start(*flags: str, config: str) -> subprocess.Popen:
    arguments = command(*flags, config=config)
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(autouse=True)
def _no_nohup():
    """The tests' own `nohup`, under which a run ignores SIGHUP, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def wait_for(stream, text: str) -> None:
    for line in stream:
        if text in line:
            return
    pytest.fail(f"the process ended before it said {text!r}")


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_run_in_order_and_the_command_that_is_printed_continues_it(tmp_path, config, signum):
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    flags = ("--config.duration=1500 steps", *PERIODS, "--config.steps_per_dispatch=1")
    with start(f"--workdir={workdir}", *flags, config=config) as process:
        wait_for(process.stdout, "training 3")
        process.send_signal(signum)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == interruption.STATUS == 75
    assert "Traceback" not in said + errors
    stopped, continue_command = errors.splitlines()[-1].split(" To continue: ")
    assert stopped.startswith("Stopped and saved at step ")
    step = int(stopped.rstrip(".").rpartition(" ")[2])
    assert step < 1500
    assert (workdir / "checkpoints" / str(step)).is_dir()
    for arguments in (continue_command, continue_command.replace(str(workdir), str(whole))):
        result = subprocess.run(arguments, shell=True, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert (f"Continuing {workdir} at step {step}" in result.stdout) == (str(workdir) in arguments)
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert len(read_metrics(workdir, "train")) == 215


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
def test_a_run_is_saved_at_the_signals_of_consoles_and_schedulers(tmp_path, config, signum):
    with start(f"--workdir={tmp_path / 'run'}", *LONG, "--config.steps_per_dispatch=1", config=config) as process:
        wait_for(process.stdout, "training 3")
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == interruption.STATUS
    [step] = re.findall("Stopped and saved at step ([0-9]+)", errors)
    assert (tmp_path / "run" / "checkpoints" / step).is_dir()


@pytest.mark.slow
def test_a_run_is_saved_though_nobody_reads_what_it_prints(tmp_path, config):
    """As after Ctrl-C on `main.py | tee log`, which ends both."""
    flags = ("--config.duration=100000 steps", "--config.log_every=1 steps", "--config.eval_every=100%")
    with start(f"--workdir={tmp_path / 'run'}", *flags, config=config) as process:
        wait_for(process.stdout, "training 3")
        process.stdout.close()
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == interruption.STATUS
    step = read_metrics(tmp_path / "run", "train")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path, config):
    """In the middle of a dispatch, which no Python code could end."""
    with start(f"--workdir={tmp_path / 'run'}", *LONG, config=config) as process:
        wait_for(process.stdout, "training 3")
        process.send_signal(signal.SIGTERM)
        wait_for(process.stderr, "SIGTERM: saving and stopping; a second SIGTERM or Ctrl-C stops at once")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM again: stopped at once. To continue: " in errors
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdigit()] == ["0"]


@pytest.mark.slow
def test_what_is_no_second_request_does_not_cut_the_saving_short(tmp_path, config):
    """A terminal that closes sends SIGHUP twice, and a scheduler SIGTERM some time after SIGUSR1."""
    with start(f"--workdir={tmp_path / 'run'}", *LONG, "--config.steps_per_dispatch=1", config=config) as process:
        wait_for(process.stdout, "training 3")
        for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == interruption.STATUS
    assert errors.count("saving and stopping") == 1
    assert "Stopped and saved at step " in errors


@pytest.mark.slow
def test_a_run_under_nohup_outlives_its_terminal(tmp_path, config):
    flags = ("--config.duration=300 steps", *PERIODS, "--config.steps_per_dispatch=1")
    arguments = ["nohup", *command(f"--workdir={tmp_path / 'run'}", *flags, config=config)]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(process.stdout, "training 3")
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=120)
    assert process.returncode == 0


def test_before_training_a_signal_ends_the_process_with_the_command_to_start_again(tmp_path):
    with start(f"--workdir={tmp_path / 'run'}", config="configs/digits.py") as process:
        wait_for(process.stdout, "Compiled programs are kept in")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == interruption.STATUS
    assert errors.startswith("SIGINT: stopped, with nothing to save. To continue: ")
    assert f"main.py --config=configs/digits.py --workdir={tmp_path / 'run'}" in errors
    assert len(errors.splitlines()) == 1


DISK = """
set -e
mount -t tmpfs -o size={size} none {disk}
run() {{ {command}; }}
! run || exit 3
ls {disk}/run/checkpoints
mount -o remount,size=100m {disk}
run
cp -r {disk}/run {copy}
mount -o remount,ro {disk}
! run || exit 4
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux's unshare, to mount a small disk")
def test_a_full_and_a_read_only_disk_end_the_run_and_once_mended_it_goes_on(tmp_path):
    flags = ("--config.duration=60 steps", "--config.keep_checkpoints=9", *PERIODS[:2], "--cache_dir=")
    flags = (*flags, "--config.checkpoint_every=5 steps")
    disk = tmp_path / "disk"
    disk.mkdir()
    quoted = [f"'{argument}'" for argument in command(f"--workdir={disk / 'run'}", *flags)]
    script = DISK.format(size="5m", disk=disk, copy=tmp_path / "copy", command=" ".join(quoted))
    result = subprocess.run(["unshare", "-rm", "bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    if "unshare" in result.stderr or "mount:" in result.stderr:
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stdout + result.stderr
    full, read_only = result.stderr.splitlines()
    assert full.startswith("error: ")
    assert "a checkpoint needs" in full
    assert "the same command continues" in full
    assert read_only.startswith("error: ")
    assert "Read-only file system" in read_only
    whole = run_main(f"--workdir={tmp_path / 'whole'}", *flags)
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "copy" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
