"""The page of a run that is still training."""

import pytest
from made_runs import make_run

from reporting import page


@pytest.mark.slow
def test_the_page_of_a_run_that_trains_is_loaded_again_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FIRST_PAGE", 0.0)
    run = make_run(tmp_path / "run")
    path = tmp_path / "run" / "report.html"

    def lines():
        yield run.lines[0]
        yield run.lines[1]
        assert '<meta http-equiv="refresh" content="15">' in path.read_text()

    page.keep_up(tmp_path / "run", lines())
    kept = path.read_text()
    assert "refresh" not in kept
    page.write(tmp_path / "run")
    assert path.read_text() == kept  # but for the tag, it is the page of the end


@pytest.mark.slow
def test_a_page_is_no_part_of_a_short_run_before_its_end_nor_of_one_without_evaluations(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    page.keep_up(tmp_path / "run", iter(run.lines))
    assert not (tmp_path / "run" / "report.html").exists()
    monkeypatch.setattr(page, "FIRST_PAGE", 0.0)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 10, "curve": "train", "loss": 1.0}\n')
    page.keep_up(tmp_path / "run", iter(run.lines))
    assert not (tmp_path / "run" / "report.html").exists()
