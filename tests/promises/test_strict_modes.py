"""A run works in the strict modes of JAX, in which forkers look for mistakes of their own."""

import pytest
from conftest import run_main

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["JAX_NUMPY_DTYPE_PROMOTION=strict", "JAX_NUMPY_RANK_PROMOTION=raise"])
def test_a_run_works_in_a_strict_mode(tmp_path, mode):
    """With every change of the images, and an average of each kind of step size that a config can have."""
    changes = ("flip=True", "crop_padding=1", "cutout=2", "erasing=0.5", "mixup=1.0", "cutmix=1.0", "rand_augment=1")
    name, _, value = mode.partition("=")
    result = run_main(
        f"--workdir={tmp_path / 'run'}",
        "--config.duration=8 steps",
        *(f"--config.augment.{change}" for change in changes),
        config="configs/digits_averages.py",
        **{name: value},
    )
    assert result.returncode == 0, result.stderr
