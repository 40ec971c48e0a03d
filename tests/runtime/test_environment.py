import importlib.util
import json
import shutil

import jax
import pytest
from conftest import ROOT, git

from runtime import environment


def test_a_commit_is_recorded_only_of_a_repository_that_holds_the_code(tmp_path):
    theirs = tmp_path / "theirs"
    file = theirs / "template" / "runtime" / "environment.py"
    file.parent.mkdir(parents=True)
    shutil.copy(ROOT / "runtime" / "environment.py", file)

    def recorded() -> str:
        spec = importlib.util.spec_from_file_location("unpacked", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.describe()["commit"]

    assert recorded() == ""  # in no repository
    git(theirs, "init")
    git(theirs, "commit", "--allow-empty", "-m", "Theirs")
    assert recorded() == ""  # in one of something else
    git(theirs, "add", "template")
    git(theirs, "commit", "-m", "Now the code, too")
    commit = git(theirs, "rev-parse", "HEAD").strip()
    assert recorded() == commit
    file.write_text(file.read_text() + "# changed\n")
    assert recorded() == f"{commit}+changes"


def test_a_run_that_continues_with_other_devices_versions_or_flags_says_so_at_every_start(tmp_path, capsys):
    environment.write(tmp_path, deterministic=False)
    environment.write(tmp_path, deterministic=False)
    assert "continues with" not in capsys.readouterr().out
    path = tmp_path / "environment.json"
    began = {"devices": "8 x NVIDIA", "jaxlib": "0.1", "XLA_FLAGS": "--other"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"began": began}))
    for _ in range(2):
        environment.write(tmp_path, deterministic=False)
        told = capsys.readouterr().out
        assert "Note: the run began with devices 8 x NVIDIA and continues with 1 x cpu" in told
        assert "jaxlib 0.1 and" in told
        assert "XLA_FLAGS --other and continues with none" in told
    path.write_text("torn")
    environment.write(tmp_path, deterministic=False)
    assert json.loads(path.read_text())["began"]["devices"] == "1 x cpu"


@pytest.mark.parametrize(("backend", "deterministic"), [("cpu", False), ("gpu", False), ("gpu", True)])
def test_a_run_says_whether_its_results_are_reproducible(tmp_path, capsys, monkeypatch, backend, deterministic):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    environment.write(tmp_path, deterministic=deterministic)
    left_to_chance = backend == "gpu" and not deterministic
    assert ("not reproducible to the bit" in capsys.readouterr().out) == left_to_chance
    assert json.loads((tmp_path / "environment.json").read_text())["reproducible"] != left_to_chance


def test_a_package_of_another_name_keeps_no_run_from_starting(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ())
    environment.write(tmp_path, deterministic=False)
    assert json.loads((tmp_path / "environment.json").read_text())["began"]["jaxlib"] == "unknown"
