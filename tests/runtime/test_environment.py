import importlib.util
import json
import shutil

import jax
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


def test_a_run_that_continues_on_other_devices_than_it_began_on_says_so_at_every_start(tmp_path, capsys):
    environment.write(tmp_path)
    environment.write(tmp_path)
    assert "continues on" not in capsys.readouterr().out
    path = tmp_path / "environment.json"
    elsewhere = json.loads(path.read_text()) | {"devices": ["NVIDIA"] * 8, "began_on": ["NVIDIA"] * 8}
    path.write_text(json.dumps(elsewhere))
    for _ in range(2):
        environment.write(tmp_path)
        assert "Note: the run began on 8 x NVIDIA and continues on 1 x cpu" in capsys.readouterr().out
    path.write_text("torn")
    environment.write(tmp_path)
    assert json.loads(path.read_text())["began_on"] == ["cpu"]


def test_a_run_on_a_gpu_says_that_it_is_not_reproducible_to_the_bit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    environment.write(tmp_path)
    assert "on GPUs, convolutions are not reproducible to the bit" in capsys.readouterr().out
