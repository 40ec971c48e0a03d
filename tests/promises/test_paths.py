"""Wherever a path can be given, `~` is expanded, and a URL is refused at once."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, digits_config, run_main
from made_runs import make_run
from refusals import check

import train
from runtime.errors import UserError
from runtime.files import local_path

DIGITS = "--config=configs/digits.py"
OPTIONS = {
    "--workdir": f"main {DIGITS} --workdir=PATH",
    "--cache_dir": f"main {DIGITS} --workdir=x --cache_dir=PATH",
    "--config": "main --config=PATH --workdir=x",
    "init_from": f"main {DIGITS} --workdir=x --config.init_from=PATH",
    "tools.show_batch --config": "tools.show_batch --config=PATH",
    "tools.show_batch --out": f"tools.show_batch {DIGITS} --out=PATH",
    "tools.report": "tools.report PATH",
    "tools.report --against": "tools.report RUN --against PATH",
    "tools.report --out": "tools.report RUN --out=PATH",
    "tools.export": "tools.export PATH --average=ema --out=x",
    "tools.export --out": "tools.export RUN --average=ema --out=PATH",
    "tools.posthoc": "tools.posthoc PATH --average=ema",
    "tools.diagnose": "tools.diagnose RUN PATH",
}


@pytest.mark.slow
@pytest.mark.parametrize("url", ["gs://bucket/x", "file:///tmp/x"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_url_is_refused(tmp_path, option, url):
    make_run(tmp_path / "run")
    arguments = OPTIONS[option].replace("PATH", url).replace("RUN", str(tmp_path / "run")).split()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    before = sorted(tmp_path.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    check(result, f"{url} cannot be used: it is a URL; must be a path on this machine")
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gs://bucket/x", "--out=gs://bucket/x cannot be used: it is a URL"),
        (pathlib.Path("s3://bucket/x"), "--out=s3:/bucket/x cannot be used: it is a URL"),
        ("~no_such_user/x", "--out=~no_such_user/x cannot be used: Could not determine"),
        ("a\udcff", r"--out='a\\udcff' cannot be used: its name must be UTF-8"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        local_path(given, "--out")


def test_a_run_from_python_expands_a_tilde_and_refuses_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    train.train_and_evaluate(digits_config(duration="1 steps"), "~/run")
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(UserError, match="it is a URL"):
        train.train_and_evaluate(digits_config(), "gs://bucket/run")


@pytest.mark.slow
def test_every_option_expands_a_tilde(tmp_path):
    """As bash leaves one after `=`."""
    shutil.copy(ROOT / "configs" / "digits.py", tmp_path / "c.py")
    home = {"HOME": str(tmp_path)}
    result = run_main("--workdir=~/a", "--cache_dir=~/cache", "--config.duration=5 steps", config="~/c.py", **home)
    assert result.returncode == 0, result.stderr
    tools = (
        "report ~/a --out=~/page",
        "export ~/a --average=ema --out=~/exported",
        "show_batch --config=~/c.py --out=~/b.png",
    )
    for tool in tools:
        command = [sys.executable, "-m", *f"tools.{tool}".split()]
        result = subprocess.run(command, cwd=ROOT, env=os.environ | home, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    for made in ("a/metrics.jsonl", "cache/compiled", "page/report.html", "exported/weights.json", "b.png"):
        assert (tmp_path / made).exists()
    assert not (ROOT / "~").exists()
