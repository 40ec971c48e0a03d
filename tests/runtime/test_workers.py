import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

# Calls that say which process they are in, and last until it is asked to stop, or for minutes.
SCRIPT = """
import os, sys, time
from runtime import interruption, workers
from runtime.errors import UserError

def call(number):
    interruption.requested()
    print("process", os.getpid(), flush=True)
    started = time.monotonic()
    while number and time.monotonic() < started + 300:
        if interruption.requested():
            raise interruption.Interrupted
        time.sleep(0.01)
    return number

def nothing():
    pass

if __name__ == "__main__":
    interruption.listen()
    try:
        print("results", sorted(workers.call(call, [(int(number),) for number in sys.argv[1:]], 2, nothing)))
    except interruption.Interrupted:
        print("interrupted")
    except UserError as error:
        print("error:", error)
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(*numbers: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "script.py", *numbers],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.mark.slow
def test_every_call_has_its_result(start):
    with start("0", "0", "0") as process:
        said, _ = process.communicate(timeout=60)
    assert said.endswith("results [0, 0, 0]\n")
    assert len(set(re.findall(r"process (\d+)", said))) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["stopped", "killed", "one killed"])
def test_the_processes_end_with_the_one_that_started_them_and_with_each_other(start, ending):
    with start("1", "2", "3") as process:
        lines = [process.stdout.readline(), process.stdout.readline()]
        worker = int(lines[0].split()[1])
        match ending:
            case "stopped":
                process.send_signal(signal.SIGTERM)
            case "killed":
                process.kill()
            case "one killed":
                os.kill(worker, signal.SIGKILL)
        try:
            said, _ = process.communicate(timeout=30)  # which all of them have to close
        finally:
            process.kill()
    expected = {"stopped": "interrupted\n", "killed": "", "one killed": "error: one of several processes was killed"}
    assert expected[ending] in said
    assert "results" not in said
