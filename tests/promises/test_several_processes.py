"""Several processes train as one: to the bit, and whatever becomes of one of them becomes of all."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import ROOT, read_metrics
from processes import free_port, run, started, succeed

pytestmark = pytest.mark.slow  # each starts several

# 24 steps with everything that a run may have; KIND says which model.
CONFIG = """
import contextlib
import os
from configs import default

if os.environ.get("KIND") == "whole":  # averages as each device would have them without the others
    from runtime import sharding
    sharding.MIN_SPLIT_BYTES = 2**60

def get_config():
    config = default.get_config()
    config.batch_size, config.duration = 32, "24 steps"
    config.log_every, config.eval_every, config.checkpoint_every = "3 steps", "6 steps", "12 steps"
    config.model.hidden_sizes = (256, 256)
    config.averages.ema = default.average("ema", decay=0.9)
    config.averages.tail = default.average("running_mean", start="2 steps", every="2 steps")
    if os.environ.get("KIND") == "cnn":
        config.model.name, config.model.batch_norm, config.augment.mixup = "cnn", True, 1.0
        config.averages.ema.batch_stats = "recompute"
    else:
        config.accumulate, config.num_validation, config.snapshot_every = 2, 100, "6 steps"
    return config
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    return str(tmp_path / "config.py")


def saved(workdir: pathlib.Path, step: int) -> dict[str, bytes]:
    """Every array of a checkpoint, by its path."""
    handler, folder = ocp.PyTreeCheckpointHandler(), workdir / "checkpoints" / str(step) / "state"
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree)
    with ocp.Checkpointer(handler) as checkpointer:
        tree = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): x.tobytes() for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def same(one: pathlib.Path, other: pathlib.Path, step: int = 24) -> bool:
    """Whether two runs have the same metrics and the same arrays."""
    metrics = [(workdir / "metrics.jsonl").read_bytes() for workdir in (one, other)]
    return metrics[0] == metrics[1] and saved(one, step) == saved(other, step)


def run_alone(workdir: pathlib.Path, devices: int, config: str, *flags: str) -> subprocess.CompletedProcess:
    environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}", *flags],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=240,
    )  # fmt: skip


def test_two_processes_of_one_device_do_what_one_of_two_does_to_the_bit(tmp_path, config):
    output = succeed(2, f"--workdir={tmp_path / 'two'}", config=config)
    run_alone(tmp_path / "one", 2, config)
    assert same(tmp_path / "two", tmp_path / "one")
    assert output.startswith("2 processes train as one\n2 x cpu\n")
    assert "Batches of 32 = 2 devices x 2 parts x 8 examples" in output


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_eight_devices_do_the_same_to_the_bit_however_many_processes_have_them(tmp_path, config, kind):
    processes = (1, 4) if kind == "mlp" else (1, 2)  # each compiles what is new to it
    for num in processes:
        flag, environment = f"--workdir={tmp_path / str(num)}", {"KIND": kind}
        succeed(num, flag, config=config, devices=8 // num, environment=lambda _, e=environment: e)
    assert all(same(tmp_path / "1", tmp_path / str(num)) for num in processes)
    if kind == "mlp":
        flag = f"--workdir={tmp_path / 'whole'}"
        output = succeed(2, flag, config=config, devices=4, environment=lambda _: {"KIND": "whole"})
        assert "and 0.7 MB of averages" in output
        assert same(tmp_path / "1", tmp_path / "whole")


def test_a_run_of_any_number_of_processes_continues_with_any_other(tmp_path, config):
    """All arrays are the same after it, and losses differ by no more than sums that are rounded otherwise."""
    layouts = {"1x1": (1, 1), "1x8": (1, 8), "2x4": (2, 4)}
    short, long = "--config.duration=24 steps", ("--config.duration=34 steps", "--config.log_every=1 steps")
    for name in ("1x1", "2x4"):
        num, devices = layouts[name]
        succeed(num, f"--workdir={tmp_path / name}", short, config=config, devices=devices)
    equal, apart = 0, 0.0
    for name in ("1x1", "2x4"):
        losses = {}
        for other, (num, devices) in layouts.items():
            workdir = tmp_path / f"{name}-{other}"
            shutil.copytree(tmp_path / name, workdir)
            output = succeed(num, f"--workdir={workdir}", *long, config=config, devices=devices)
            assert f"Continuing {workdir} at step 24" in output
            assert "damaged" not in output
            equal += saved(workdir, 24) == saved(tmp_path / name, 24)
            losses[other] = [line["loss"] for line in read_metrics(workdir, "train") if line["step"] > 24]
            assert len(losses[other]) == 10
        assert losses["1x8"] == losses["2x4"]  # sums are rounded the same
        apart = max(apart, *(abs(a - b) for x in losses.values() for a, b in zip(x, losses[name], strict=True)))
    assert equal == 6
    assert apart <= 1e-5


def test_the_tasks_of_a_slurm_job_find_each_other_and_stay_apart_when_told_to(tmp_path, config):
    """With the variables of a job on this machine."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "localhost"}
    options = {
        "config": config,
        "environment": lambda index: {**job, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)},
        "joined": False,
    }
    output = succeed(2, f"--workdir={tmp_path / 'run'}", **options)
    assert output.startswith(
        "2 processes train as one, started by slurm; --distributed=off keeps them apart\n2 x cpu\n"
    )
    each = lambda index: [f"--workdir={tmp_path / str(index)}", "--distributed=off"]  # noqa: E731
    assert succeed(2, each=each, **options).startswith("1 x cpu\n")
    assert same(tmp_path / "0", tmp_path / "1")


# A device of process 0, where such callbacks run, that does not get ready.
STUCK = """
import time
import jax
import train
from configs import digits
from runtime import hosts

hosts.PATIENCE = 15

def loss_fn(params, state, batch, **kwargs):
    jax.debug.callback(lambda step: time.sleep(1000 * float(step == 3)), state.step)
    return original(params, state, batch, **kwargs)

original = train.loss_fn
train.TASKS["classification"] = train.Task(loss_fn)
get_config = digits.get_config
"""


def test_processes_of_which_one_gets_stuck_end_with_a_message_and_the_status_of_start_again(tmp_path):
    (tmp_path / "config.py").write_text(STUCK)
    for process in run(2, f"--workdir={tmp_path / 'run'}", config=str(tmp_path / "config.py")):
        assert process.status == 75, process
        assert re.search("Nothing has gone on for 15 s: .* is stuck", process.errors), process


# What main.py starts with, for a program that is not a run.
SCRIPT = """
import sys
import numpy as np
from absl import flags
from runtime import hosts
names = ("coordinator", "num_processes", "process_id")
values = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
hosts.start("auto", {"coordinator": values["coordinator"]} | {name: int(values[name]) for name in names[1:]})
"""
COUNT = """
import functools, jax, evaluation
import jax.numpy as jnp
from input_pipeline import EvalData, Normalization
from runtime import sharding
from runtime.sources import Images

def score_fn(apply_fn, variables, batch):
    return {"number": batch["label"], "seen": batch["image"][:, 0, 0, 0]}

mesh, good = sharding.create_mesh(), 0
sizes, batches = (1, 7, 8, 9, 100, 896, 1000, 1001), (8, 64, 1000)
for n in sizes:
    image = (np.arange(n) % 251).astype(np.uint8)[:, None, None, None]
    for batch_size in batches:
        one = np.ones(1, np.float32)
        data = EvalData.from_images(
            Images(image, np.arange(n, dtype=np.int32)), Normalization(0 * one, one), batch_size, mesh.size
        )
        data = sharding.put(data, sharding.replicated(mesh))
        split = sharding.split_batch(mesh)
        step = functools.partial(evaluation.eval_step, apply_fn=None, score_fn=score_fn, sharding=split)
        scores = evaluation.score({"raw": {"params": jnp.zeros(1)}}, data, step)["raw"]
        good += np.array_equal(scores["number"], np.arange(n)) and np.array_equal(scores["seen"], np.arange(n) % 251)
print("good", good, flush=True)
hosts.part()
"""


@pytest.mark.parametrize(("num", "devices"), [(1, 1), (1, 8), (2, 4), (3, 1)])
def test_every_image_is_scored_once_by_any_number_of_processes(num, devices):
    program = lambda flags: [sys.executable, "-c", SCRIPT + COUNT, *flags]  # noqa: E731
    ended = run(num, devices=devices, program=program)
    for process in ended:
        assert process.status == 0, process
        assert "good 24" in process.output, process


def test_every_part_of_a_run_is_for_several_processes(tmp_path, config):
    """Traces, recomputed statistics, other averages when it continues, another run's weights, evaluation alone."""
    workdir, of_cnn = tmp_path / "run", {"environment": lambda _: {"KIND": "cnn"}, "config": config}
    succeed(2, f"--workdir={workdir}", "--config.profile=(2, 4)", "--config.num_validation=10", **of_cnn)
    assert list((workdir / "profile").rglob("*.trace.json.gz"))
    longer = ("--config.duration=30 steps", "--config.averages.tail.every=1 steps", "--config.num_validation=10")
    output = succeed(2, f"--workdir={workdir}", *longer, **of_cnn)
    assert f"Continuing {workdir} at step 24" in output
    other = ("--config.init_from=" + str(workdir), "--config.init_weights=ema")
    assert "Starting from the ema weights of" in succeed(2, f"--workdir={tmp_path / 'other'}", *other, **of_cnn)
    output = succeed(2, f"--workdir={workdir}", "--mode=eval", *longer, **of_cnn)
    assert f"{workdir}, latest checkpoint, step 30, on the test set" in output
    last = [line["accuracy"] for line in read_metrics(workdir, "ema") if line.get("split") == "test"][-1]
    assert f"ema      {last:.2%}" in output
    # Afterwards, one process is enough.
    for tool in (["posthoc", "--average=lawa:last=2"], ["export", "--average=tail", f"--out={tmp_path / 'exported'}"]):
        command = [sys.executable, "-m", f"tools.{tool[0]}", str(workdir), *tool[1:]]
        subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    assert (workdir / "posthoc.jsonl").read_text()
    assert (tmp_path / "exported" / "weights.safetensors").exists()


def test_what_is_not_finite_ends_all_processes_with_the_same_explanation(tmp_path, config):
    broken = ("--config.optimizer.learning_rate=1e30", "--config.max_rejected_steps=3")
    ended = run(2, f"--workdir={tmp_path / 'run'}", *broken, config=config)
    for process in ended:
        assert process.status == 1, process
        assert "steps in a row had a loss or gradient that is not finite" in process.errors
        assert "Traceback" not in process.errors


WRONG = {
    "folder": "is not the folder that process 0 has locked",
    "config": "config.seed is 0 in process 0, 1 in process 1",
    "data": "the training data is ",
    "test data": "the test data is ",
    "version": "optax is ",
    "lock": "is in use by another run (process ",
    "one": "dataset = 'digitz'",
    "devices": "batch_size = 32: must be a multiple of 12",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_set_up_is_one_message_of_all_processes(tmp_path, config, wrong):
    workdir = tmp_path / "run"
    each = {
        "folder": lambda index: [f"--workdir={tmp_path / str(index)}"],
        "config": lambda index: [f"--config.seed={index}"],
        "one": lambda index: [f"--config.dataset={'digitz' if index else 'digits'}"],
    }.get(wrong, lambda _: [])
    environment = lambda _: {}  # noqa: E731
    options = {"devices": 3} if wrong == "devices" else {}
    if wrong in ("data", "test data"):
        image, label = np.random.default_rng(0).integers(0, 256, (2, 64, 8, 8, 1), dtype=np.uint8), np.arange(64) % 4
        for index in range(2):
            arrays = {"train_image": image[index if wrong == "data" else 0], "test_image": image[index]}
            np.savez(tmp_path / f"{index}.npz", **arrays, train_label=label, test_label=label)
            (tmp_path / str(index)).mkdir()
            (tmp_path / f"{index}.npz").rename(tmp_path / str(index) / "set.npz")
            (tmp_path / str(index) / "config.py").write_text(CONFIG)
        # The same path on disks of their own.
        options["program"] = lambda flags: [
            "sh", "-c", f'cd {tmp_path}/$0 && exec {sys.executable} {ROOT}/main.py --config=config.py "$@"',
            re.search("process_id=(.)", flags[-1])[1], *flags, "--config.dataset=arrays:set.npz",
            "--config.num_validation=0",
        ]  # fmt: skip
    if wrong == "version":
        (tmp_path / "optax-9.9.9.dist-info").mkdir()
        (tmp_path / "optax-9.9.9.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: optax\nVersion: 9.9.9\n"
        )
        environment = lambda index: {"PYTHONPATH": str(tmp_path)} if index else {}  # noqa: E731
    common = [] if wrong == "folder" else [f"--workdir={workdir}"]
    if wrong == "lock":
        common.append("--config.duration=100000000 steps")
        holder = started(1, *common, config=config)
        processes = holder.__enter__()
        while "Training for" not in processes.output():
            assert processes.all[0].poll() is None
            time.sleep(0.1)
    else:
        holder = None
    try:
        ended = run(2, *common, config=config, each=each, environment=environment, **options)
    finally:
        if holder:
            holder.__exit__(None, None, None)
    for process in ended:
        assert process.status == 1, process
        assert process.errors.count("error: ") == 1, process
        assert WRONG[wrong] in process.errors, process
        assert "Traceback" not in process.errors


@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path, config, told):
    workdir = tmp_path / "run"
    seldom = [f"--config.{name}_every=1000 steps" for name in ("log", "eval")]
    longer = ("--config.duration=100000 steps", "--config.checkpoint_every=100%", *seldom)
    with started(2, f"--workdir={workdir}", *longer, config=config) as processes:
        while "step 1000/" not in processes.output():
            assert [process.poll() for process in processes.all] == [None, None], processes.wait()
            time.sleep(0.1)
        processes.all[told].send_signal(signal.SIGTERM)
        ended = processes.wait()
    assert [process.status for process in ended] == [75, 75], ended
    steps = {int(re.search("Stopped and saved at step ([0-9]+)", process.errors)[1]) for process in ended}
    assert len(steps) == 1
    assert (workdir / "checkpoints" / str(*steps)).is_dir()
    assert not list(workdir.glob("*/*.partial"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_script_for_two_processes_passes_on_signals_and_statuses(tmp_path, config, signum):
    """Ctrl-C reaches all processes of a terminal at once, and SIGTERM of a scheduler the script."""
    workdir = tmp_path / "run"
    arguments = [f"--config={config}", f"--workdir={workdir}", "--config.duration=100000 steps"]
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "out").open("w") as out:
        script = subprocess.Popen(
            ["sh", "examples/launch/two_processes.sh", *arguments], cwd=ROOT, stdout=out, stderr=out,
            env=os.environ | {"PORT": str(free_port()), "PATH": path}, start_new_session=True,
        )  # fmt: skip
    try:
        while not (workdir / "timing.jsonl").exists() or not (workdir / "timing.jsonl").read_text():
            assert script.poll() is None, (tmp_path / "out").read_text()
            time.sleep(0.1)
        if signum == signal.SIGINT:
            os.killpg(script.pid, signum)
        else:
            script.send_signal(signum)
        assert script.wait(120) == 75, (tmp_path / "out").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
        script.wait()
    assert (tmp_path / "out").read_text().count("Stopped and saved at step") == 2
