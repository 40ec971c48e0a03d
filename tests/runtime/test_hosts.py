import socket
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from runtime import dispatch, hosts, interruption, readers, sharding
from runtime.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[07-10]",
}
OMPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
TPU = {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "t1k-w0,t1k-w1"}
K8S = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({}, None),
        (SLURM, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (OMPI, "ompi"),
        (OMPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        (TPU, "gketpu"),
        (TPU | {"TPU_WORKER_HOSTNAMES": "t1k-w0"}, None),
        (TPU | {"TPU_WORKER_HOSTNAMES": "t1k-w0", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        (K8S, "k8s"),
    ],
)
def test_processes_join_where_a_launcher_has_started_several_of_them(variables, launcher):
    assert hosts.detect({"PATH": "/usr/bin", **variables}) == launcher


@pytest.mark.parametrize("complete", [SLURM, OMPI, TPU, K8S])
def test_a_set_of_variables_that_is_not_complete_starts_nothing(complete):
    """As a shell within a job has one, or a pod of any kind."""
    for missing in complete:
        assert hosts.detect({name: value for name, value in complete.items() if name != missing}) is None


@pytest.mark.parametrize(
    ("name", "variables", "found"),
    [("slurm", SLURM, ("node07:6", 4, 2)), ("ompi", OMPI, ("10.96.0.1:6", 2, 1))],
)
def test_what_is_taken_for_a_launcher_is_all_that_jax_needs_of_it(monkeypatch, name, variables, found):
    from jax._src.clusters import ClusterEnv

    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    address, num, index, _ = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, name, 1)
    assert address.startswith(found[0])
    assert (num, index) == found[1:]


@pytest.mark.parametrize(
    ("distributed", "given", "message"),
    [
        ("auto", ("localhost:1", 2, None), "--process_id is missing: several processes are started with --coordinator"),
        ("auto", (None, 2, 0), "--coordinator is missing"),
        ("off", ("localhost:1", 2, 0), "--distributed=off asks for the contrary"),
        ("auto", ("localhost:1", 2, 2), "--process_id=2: must be in 0 .. 1"),
        ("auto", ("localhost", 2, 0), "--coordinator=localhost: must be HOST:PORT"),
        ("auto", ("localhost:http", 2, 0), "--coordinator=localhost:http: must be HOST:PORT"),
        (
            "auto",
            ("localhost:{taken}", 2, 0),
            "--coordinator=localhost:.*: its port cannot be used .*ddress already in",
        ),
    ],
)
def test_flags_that_do_not_say_which_processes_there_are_say_so(distributed, given, message):
    names = ("coordinator", "num_processes", "process_id")
    with socket.create_server(("", 0)) as server:
        values = dict(zip(names, given, strict=True))
        values["coordinator"] = values["coordinator"] and values["coordinator"].format(taken=server.getsockname()[1])
        with pytest.raises(UserError, match=message):
            hosts.start(distributed, values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("coordinator", "process", "reason"),
    [
        ("localhost:{free}", 0, "not all have come within 5 s"),
        ("localhost:{free}", 1, "not all have come within 5 s"),
        ("no.such.host:1", 1, "not all have come within 5 s"),
    ],
)
def test_processes_that_do_not_find_each_other_say_so_and_end(coordinator, process, reason):
    script = """
import sys
from runtime import hosts, interruption
from runtime.errors import UserError
hosts.ARRIVAL = 5
try:
    hosts.start("auto", {"coordinator": sys.argv[1], "num_processes": 2, "process_id": int(sys.argv[2])})
except UserError as error:
    interruption.end(f"error: {error}", 1)
"""
    with socket.socket() as free:
        free.bind(("", 0))
        address = coordinator.format(free=free.getsockname()[1])
    command = [sys.executable, "-c", script, address, str(process)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stderr
    [message] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message.startswith("error: the processes of this run do not find each other: ")
    assert reason in message.lower()
    assert f"--coordinator={address}" in message
    assert "Traceback" not in result.stderr


def test_a_process_of_its_own_agrees_with_itself():
    hosts.start("auto", dict.fromkeys(("coordinator", "num_processes", "process_id")))
    assert (hosts.first(), hosts.count(), hosts.index()) == (True, 1, 0)
    assert hosts.gather("x") == ["x"]
    assert hosts.largest(0.5) == 0.5
    assert hosts.decided(lambda: {"step": 3}) == {"step": 3}
    hosts.check_same({"config": 1})
    hosts.part()


HERE = threading.local()  # its `index` is that of the host that a thread stands for


@pytest.fixture
def on_both(monkeypatch):
    """Calls a function on two hosts, which are threads here and exchange what they have in a list."""
    meeting, brought = threading.Barrier(2, timeout=10), [None, None]

    def gather(value):
        brought[HERE.index] = value
        meeting.wait()
        found = list(brought)
        meeting.wait()
        return found

    def call(function):
        def at(index):
            HERE.index = index
            return function()

        with ThreadPoolExecutor(2) as pool:
            return [*pool.map(at, range(2))]

    monkeypatch.setattr(hosts, "gather", gather)
    monkeypatch.setattr(hosts, "first", lambda: HERE.index == 0)
    return call


@pytest.mark.parametrize("apart", [(1, 4), (4, 1), (2, 2)])
def test_what_several_hosts_agree_on_is_what_all_of_them_can_do(on_both, monkeypatch, apart):
    """Whichever has less memory, is slower, is asked to stop, or has another config; a GPU is on the first alone."""
    device = types.SimpleNamespace(memory_stats=lambda: {} if HERE.index else {"bytes_limit": apart[0]})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(readers, "memory", lambda: apart[1])
    assert on_both(sharding.memory) == [min(apart)] * 2

    looked = []
    assert on_both(lambda: hosts.decided(lambda: looked.append(HERE.index) or apart[HERE.index])) == [apart[0]] * 2
    assert looked == [0]

    def compared():
        try:
            hosts.check_same({"equal": 0, "number": apart[HERE.index]})
        except UserError as error:
            return str(error).partition(":")[0]

    differ = f"and number is {apart[0]} in process 0, {apart[1]} in process 1"
    expected = f"the processes of a run must do the same, {differ}" if apart != (2, 2) else None
    assert on_both(compared) == [expected] * 2

    def with_one_more():
        try:
            hosts.check_same({"equal": 0} | ({"more": 1} if apart[HERE.index] == 4 else {}))
        except UserError as error:
            return str(error).partition(":")[0]

    more = ("more is 1 in process 0, None" if apart[0] == 4 else "more is None in process 0, 1") + " in process 1"
    assert on_both(with_one_more) == [expected and f"the processes of a run must do the same, and {more}"] * 2

    monkeypatch.setattr(interruption, "_is_training", False)
    monkeypatch.setattr(interruption, "_requested", types.SimpleNamespace(is_set=lambda: apart[HERE.index] == 4))
    assert on_both(interruption.requested) == [4 in apart] * 2


@pytest.mark.parametrize(("apart", "steps"), [((1, 4), [1, 3, 7, 15, 31]), ((2, 1), [1, 5, 21, 31])])
def test_several_hosts_dispatch_as_many_steps_as_the_slowest_of_them_does_in_time(on_both, monkeypatch, apart, steps):
    now = [0.0, 0.0]

    def perf_counter():
        """Whatever is dispatched takes eighths of the time that a dispatch may take."""
        now[HERE.index] += apart[HERE.index] * dispatch.MAX_SECONDS / 8
        return now[HERE.index]

    def dispatched():
        done = []
        program = dispatch.Dispatcher(lambda state, data: (state + 1, jnp.int32(0)), chunked=True, progress=done.append)
        program(jnp.int32(0), jnp.int32(0), None, 0, 31)
        return done

    monkeypatch.setattr(interruption, "_is_training", False)
    monkeypatch.setattr(dispatch, "time", types.SimpleNamespace(perf_counter=perf_counter))
    assert on_both(dispatched) == [steps] * 2


@pytest.mark.parametrize(
    ("awaited", "named"), [(None, "another process or a device"), (0, "process 0"), (1, "process 1")]
)
def test_who_keeps_a_process_from_going_on_is_named_once_it_has_taken_too_long(awaited, named, monkeypatch):
    monkeypatch.setattr(hosts, "_awaited", awaited)
    monkeypatch.setattr(hosts, "_met", time.monotonic())
    assert hosts.stalled() == ""
    monkeypatch.setattr(hosts, "_met", time.monotonic() - hosts.PATIENCE - 1)
    assert hosts.stalled() == f"Nothing has gone on for {hosts.PATIENCE} s: {named} is stuck."
