import importlib.util
import shutil

from conftest import ROOT, git


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
