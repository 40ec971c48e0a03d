"""What `config.deterministic` promises, as far as a CPU can tell; docs/accelerators.md says what GPUs showed."""

import json
import os

import jax
import pytest
from conftest import run_main

from runtime import sharding
from runtime.errors import UserError


def test_gpus_that_were_started_without_the_flag_are_refused_and_others_get_it_before_they_start(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=")
    sharding.find_devices(deterministic=True)
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to= {sharding.DETERMINISTIC}"
    sharding.find_devices(deterministic=True)
    assert os.environ["XLA_FLAGS"].count(sharding.DETERMINISTIC) == 1

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    sharding.find_devices(deterministic=True)  # it was there
    monkeypatch.delenv("XLA_FLAGS")
    sharding.find_devices()
    with pytest.raises(UserError, match=f"XLA_FLAGS={sharding.DETERMINISTIC}"):
        sharding.find_devices(deterministic=True)


@pytest.mark.slow
def test_on_a_cpu_it_changes_no_bit_and_a_run_cannot_continue_without_it(tmp_path):
    arguments = ["--config.duration=20 steps", "--config.eval_every=50%"]
    for name in ("False", "True"):
        run = run_main(f"--workdir={tmp_path / name}", *arguments, f"--config.deterministic={name}")
        assert run.returncode == 0, run.stderr
    usual, deterministic = (tmp_path / name for name in ("False", "True"))
    assert (usual / "metrics.jsonl").read_bytes() == (deterministic / "metrics.jsonl").read_bytes()
    flags = [json.loads((folder / "environment.json").read_text())["xla_flags"] for folder in (usual, deterministic)]
    assert [sharding.DETERMINISTIC in found for found in flags] == [False, True]

    changed = run_main(f"--workdir={deterministic}", *arguments)
    assert changed.returncode == 1
    assert "deterministic: True before, False now" in changed.stderr
