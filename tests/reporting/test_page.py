import html
import json
import re

from made_runs import make_diagnosis, make_run, store_diagnosis

from reporting import diagnosis, runs
from reporting.page import write, write_to
from reporting.runs import Run
from reporting.scores import ONE_RUN


def words(run) -> str:
    """What the page of a run says, without its pictures."""
    write(run.workdir)
    page = (run.workdir / "report.html").read_text()
    page = re.sub(r"<(style|script).*?</(style|script)>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_page_shows_every_part_of_a_diagnosis_with_its_numbers(tmp_path):
    make_run(tmp_path / "run")
    run = store_diagnosis(tmp_path / "run", make_diagnosis())
    text = words(run)
    parts = diagnosis.sections(run.diagnosis)
    assert [part.name for part in parts] == [
        "line", "checkpoints", "runs", "plane", "sharpness", "ensembles", "oscillations"
    ]  # fmt: skip
    for part in parts:
        assert part.title in text
        for paragraph in part.text:
            assert paragraph in text
        for cell in (cell for row in part.cells for cell in row):
            assert cell in text
    page = (tmp_path / "run" / "report.html").read_text()
    drawn = {part.name: len(part.panels) + bool(part.draw) for part in parts}
    assert [name for name, number in drawn.items() if not number] == ["sharpness"]
    assert len(re.findall('<svg role="img"', page)) == 3 + 1 + sum(drawn.values())  # curves, kernels, diagnosis
    line, runs_, sharpness = (
        next(part for part in parts if part.name == name) for name in ("line", "runs", "sharpness")
    )
    assert line.cells[1:] == [
        [split, "+1 (+0.8 .. +1.2)", "-10.00 (-12.00 .. -8.00)", "0", "+0.25 (+0.2 .. +0.3) at 0.5"]
        for split in ("train", "test")
    ]
    assert [row[0] for row in runs_.cells[1:]] == [
        f"{split}, {name}" for name in ("as trained", "units matched") for split in ("train", "test")
    ]
    assert "32 hidden units" in runs_.text[-2]
    assert "are 1 instead of 2 from" in runs_.text[-2]
    assert sharpness.cells[1] == ["eigenvalue 1", "3 ± 1e-06", "3 ± 1e-06", ""]
    assert sharpness.cells[2] == ["on other images", "2.5 (2 .. 3)", "2.5 (2 .. 3)", "-1 (-1.5 .. -0.5)"]
    assert sharpness.cells[-1] == ["trace", "9 (8 .. 10)", "5 (4 .. 6)", "-4 (-5 .. -3)"]
    assert "averaged weights minus averaged predictions: +1.00 (+0.00 .. +2.00) points of accuracy" in text
    assert "oscillations of up to 8 steps, ema keeps 10 (8 .. 12) %" in text
    assert "its kernel predicts 9 %" in text


def test_a_diagnosis_says_what_was_left_out_and_why_and_what_is_not_finite(tmp_path):
    """And a task without accuracy has a diagnosis too."""
    numbers = make_diagnosis()
    numbers["checkpoints"] = {"skipped": "the run has stored nothing but its latest weights"}
    for curve in (*numbers["line"]["curves"], *numbers["runs"]["curves"]):
        del curve["accuracy"]
    for scores in (numbers["ensembles"][name] for name in ("single", "weights", "predictions")):
        scores[:] = [{"loss": values["loss"]} for values in scores]
    curve = numbers["line"]["curves"][1]
    curve["loss"][0] = None
    curve["difference"]["loss"] = curve["difference"]["loss_high"] = None
    numbers["plane"]["losses"]["train"][0][0] = None
    del numbers["oscillations"]["kept"], numbers["oscillations"]["predicted"]
    make_run(tmp_path / "run")
    text = words(store_diagnosis(tmp_path / "run", numbers))
    assert "so that no transfer function predicts it" in text
    assert "The loss between two checkpoints Left out: the run has stored nothing but its latest weights." in text
    assert "not finite (+0.8 .. not finite)" in text
    assert "averaged weights minus averaged predictions: -0.1 (-0.2 .. +0) in loss" in text


def test_the_page_has_short_words_for_what_is_long_and_none_for_what_is_not_there(tmp_path):
    made = [make_run(tmp_path / f"run{seed}", seed=seed, config={"eval_every": "3125/8"}) for seed in range(7)]
    groups, remarks = runs.group(made)
    write_to(tmp_path / "out", groups, remarks)
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert "eval_every = 390.625" in page
    assert f"python -m tools.report {made[0].workdir} ... {made[6].workdir} (7 runs)<" in page
    assert ("Agreement" in page, "Calibration error" in page) == (True, False)


def test_no_picture_of_before_is_left_where_nothing_is_finite_any_more(tmp_path):
    run = make_run(tmp_path / "run")
    write(run.workdir)
    assert (run.workdir / "curves.png").exists()
    lines = [{"step": 20, "curve": curve, "split": "test", "loss": None} for curve in ("raw", "ema")]
    (run.workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(run.workdir)
    assert [path.name for path in run.workdir.glob("*curves*")] == []


def test_the_page_says_all_there_is_to_say_and_takes_nothing_for_html(tmp_path):
    make_run(tmp_path / "<b>a & b", config={"label": "<i>x</i>"})
    make_run(tmp_path / "other", seed=1, config={"label": "y"})
    found = [Run.read(tmp_path / name) for name in ("<b>a & b", "other", "other")]
    groups, remarks = runs.group(found)
    write_to(tmp_path / "out", groups, remarks)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>a" not in page
    assert "<i>x" not in page
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    for group in groups:
        assert text.count(f"{group.name}: {group.scoring.verdict(group.rows()[1])}") == 1
        assert group.name in text
    assert remarks[0] in text
    assert ONE_RUN in text
    assert re.search(r"label\s+<i>x</i>\s+y", text)  # what differs
    for alt in re.findall(r'aria-label="([^"]*)"', page):
        assert "<b>" not in alt
