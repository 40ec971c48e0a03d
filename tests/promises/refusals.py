"""What the tests of refusals share."""

import subprocess

COMPILES = "Compiling jit(create_train_state)"  # what JAX logs of the first program of any size, if it is asked to


def check(result: subprocess.CompletedProcess, message: str) -> None:
    """One message, in as many lines as there are things to say, on the standard error."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert message in result.stderr, result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert len(result.stderr.splitlines()) <= 4, result.stderr
