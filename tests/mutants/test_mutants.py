import dataclasses
import shutil

import mutants
import pytest
from conftest import ROOT, git


@pytest.mark.slow  # not for its time: a fork that edits train.py shall not have to edit the faults
def test_every_mutant_fits_the_code_and_names_tests_that_exist(tmp_path):
    """Whether each is caught takes minutes: `make mutants`."""
    seeded = mutants.read()
    assert len(seeded) >= 30
    assert len({mutant.title for mutant in seeded}) == len(seeded)
    for mutant in seeded:
        (tmp_path / mutant.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / mutant.file, tmp_path / mutant.file)
        mutant.apply(tmp_path)
        compile((tmp_path / mutant.file).read_text(), mutant.file, "exec")
        assert (tmp_path / mutant.file).read_text() != (ROOT / mutant.file).read_text()
        for test in mutant.tests:
            file, name = test.split("::")
            assert f"def {name}(" in (ROOT / file).read_text(), test


def faults(number: int) -> list[mutants.Mutant]:
    fault = mutants.Mutant(
        "pages/faults.md", "", "train.py", ("tests/test_train.py::test_a", "tests/b.py::test_b"), "", ""
    )
    return [dataclasses.replace(fault, title=f"Fault {i}") for i in range(number)]


def test_a_sample_is_a_tenth_and_always_the_same_for_a_commit_but_not_for_all_commits():
    seeded = faults(1000)
    first, again, other = (mutants.sample(seeded, commit, {"models.py"}) for commit in ("c0ffee", "c0ffee", "decade"))
    assert first == again
    for chosen in (first, other):
        assert 60 < len(chosen) < 140  # a standard deviation is 9.5
        assert sorted(chosen, key=seeded.index) == chosen
    # Of two samples that know nothing of each other, a tenth of a tenth is in both; a standard deviation is 3.
    assert len({fault.title for fault in first} & {fault.title for fault in other}) < 25


@pytest.mark.parametrize("changed", ["train.py", "tests/test_train.py", "tests/b.py", "pages/faults.md"])
def test_a_sample_has_every_fault_whose_file_tests_or_page_changed(changed):
    seeded = faults(50)
    others = [dataclasses.replace(fault, page="other.md", file="models.py", tests=()) for fault in faults(50)]
    chosen = mutants.sample([*others, *seeded], "c0ffee", {changed, "README.md"})
    assert chosen[-50:] == seeded
    assert len(chosen) < 75


def test_what_changed_is_what_commits_since_the_last_tag_did_and_without_a_tag_the_latest(tmp_path):
    def commit(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            with open(tmp_path / name, "a") as file:
                file.write("a line\n")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-m", "change")

    git(tmp_path, "init", "-b", "main")
    commit("a.py", "b.py")
    assert mutants.changed_files(tmp_path) == {"a.py", "b.py"}
    commit("tools/c.py")
    git(tmp_path, "checkout", "-b", "side")
    commit("d.py")
    commit("e.py")
    git(tmp_path, "checkout", "main")
    commit("a.py")
    assert mutants.changed_files(tmp_path) == {"a.py"}
    git(tmp_path, "merge", "side", "-m", "merge")
    assert mutants.changed_files(tmp_path) == {"d.py", "e.py"}  # what came in
    git(tmp_path, "tag", "old", "main~2")
    assert mutants.changed_files(tmp_path) == {"a.py", "d.py", "e.py"}
    git(tmp_path, "tag", "v1")
    assert mutants.changed_files(tmp_path) == set()
    commit("b.py")
    commit("tools/c.py")
    (tmp_path / "a.py").write_text("not committed")
    assert mutants.changed_files(tmp_path) == {"b.py", "tools/c.py"}
