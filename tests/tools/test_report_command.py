import csv
import io
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, digits_config
from made_runs import make_diagnosis, make_run, store_diagnosis
from PIL import Image

import train
from reporting import page


def test_every_format_has_the_same_numbers(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", config={"batch_size": 3})

    def printed(format_):
        command = [sys.executable, "-m", "tools.report", tmp_path / "a", tmp_path / "b", f"--format={format_}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    rows = json.loads(printed("json"))["rows"]
    assert [(row["run"], row["curve"]) for row in rows] == [
        (run, curve) for run in ("batch_size=none", "batch_size=3") for curve in ("raw", "ema")
    ]
    assert rows[1]["accuracy_difference"] == pytest.approx(0.1, abs=1e-12)
    as_csv = list(csv.DictReader(io.StringIO(printed("csv"))))
    assert [float(row["accuracy"]) for row in as_csv] == [row["accuracy"] for row in rows]
    for text in printed("table"), printed("markdown"):
        assert text.count("+10.00 (+9.00 .. +11.00) points") == 2
    assert sorted(path.name for path in (tmp_path / "a").iterdir() if path.suffix in (".html", ".png")) == []


@pytest.mark.slow
def test_it_needs_neither_jax_nor_tensorflow(tmp_path):
    make_run(tmp_path / "run")
    store_diagnosis(tmp_path / "run", make_diagnosis())
    code = (
        "import sys; from tools import report; sys.argv[1:] = [sys.argv[1]]; report.main(); "
        "print([name for name in ('jax', 'tensorflow', 'flax') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert "The loss between two runs" in (tmp_path / "run" / "report.html").read_text()


def test_the_report_can_be_made_again_from_the_workdir_byte_for_byte(tmp_path):
    train.train_and_evaluate(digits_config(), tmp_path)
    page.write(tmp_path)  # as main.py does
    names = ("report.html", "curves.png", "curves.svg")
    at_the_end = {name: (tmp_path / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / name).unlink()
    result = subprocess.run([sys.executable, "-m", "tools.report", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{tmp_path}, step 20, test images")
    for name in names:
        assert (tmp_path / name).read_bytes() == at_the_end[name], name
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size > (600, 600)
        assert len(set(picture.convert("RGB").resize((200, 200)).get_flattened_data())) > 10  # not blank


@pytest.mark.parametrize("argument", ["", "no/such/run", "not_yet"])
def test_a_folder_without_an_evaluation_is_refused_with_a_hint(tmp_path, argument):
    if argument == "not_yet":
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "curve": "train", "loss": 1.0}\n')
        argument = str(tmp_path)
    command = [sys.executable, "-m", "tools.report", *([argument] if argument else [])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (1, 2)
    assert "python" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("format_", ["html", "table", "json"])
def test_what_is_no_run_is_left_out_of_a_report_and_named(tmp_path, format_):
    for name in ("damaged", "good"):
        make_run(tmp_path / name)
    (tmp_path / "damaged" / "metrics.jsonl").write_text("[1]\n")
    (tmp_path / "file").touch()
    (tmp_path / "not_started").mkdir()
    folders = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "tools.report", *folders, f"--format={format_}", f"--out={tmp_path / 'out'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "+10.00 (+9.00 .. +11.00) points" in result.stdout or format_ == "json"
    shown = result.stdout + ((tmp_path / "out" / "report.html").read_text() if format_ == "html" else "")
    for name in ("damaged", "file", "not_started"):
        assert shown.count(f"Left out: {tmp_path / name}") == (2 if format_ == "html" else 1)


@pytest.mark.slow
def test_the_page_goes_where_it_is_told_to(tmp_path):
    (tmp_path / "runs").mkdir()
    for name in "ab":
        make_run(tmp_path / "runs" / name, seed=ord(name))

    def write(*arguments):
        result = subprocess.run(
            [sys.executable, "-m", "tools.report", *arguments],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("**/report.html"))

    assert write("runs/a", "runs/a/../a") == ["runs/a/report.html"]  # which is one
    # Beside the runs, and not in the current folder, which is often the source tree.
    assert write("runs/a", "runs/b") == ["runs/a/report.html", "runs/report/report.html"]
    assert write("runs/a", "runs/b", "--out=c") == ["c/report.html", "runs/a/report.html", "runs/report/report.html"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("averages.json", '{"ema": {}}'),
        ("timing.jsonl", '{"step": 1, "train_seconds": "x"}\n'),
        ("environment.json", '{"packages": [1]}'),
        ("config.json", '{"duration": "10 epochs"}'),
        ("metrics.jsonl", '{"step": "10", "curve": "raw", "split": null}\n'),
        ("metrics.jsonl", b"\xff\xfe\n"),
        ("diagnosis/numbers.json", '{"average": "ema", "line": {"shares": [0, 1]}}'),
        ("diagnosis/numbers.json", '{"average": "ema", "num_images'),
    ],
)
def test_files_that_no_run_writes_end_with_a_message(tmp_path, name, content):
    make_run(tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = subprocess.run(
        [sys.executable, "-m", "tools.report", tmp_path / "run"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert str(tmp_path / "run") in result.stderr
