import shutil

import mutants
from conftest import ROOT


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
