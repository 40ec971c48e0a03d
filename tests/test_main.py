import pytest
from conftest import read_metrics, run_main


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config.sed=1", "--config.seed=one"],
            "sed is unknown; did you mean seed?\nseed = 'one': must be of type int",
        ),
        (["--config.batch_size=5000"], "batch_size = 5000: must be at most 901"),
        (["seed=1"], "unknown argument 'seed=1'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message_without_a_traceback_or_a_trace_on_disk(tmp_path, flags, message):
    workdir = tmp_path / "run"
    result = run_main(f"--workdir={workdir}", *flags)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not workdir.exists()


def test_a_cache_that_nobody_asked_for_and_that_cannot_be_used_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    result = run_main(f"--workdir={tmp_path / 'run'}", "--mode=eval", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert "Note: nothing is kept for later runs. --cache_dir=" in result.stdout
    assert "holds no checkpoint" in result.stderr  # which comes after it


def test_a_mistake_in_the_code_of_a_config_file_is_shown_where_it_is(tmp_path):
    (tmp_path / "broken.py").write_text("import math\n\ndef get_config():\n    return math.sqroot(2)\n")
    result = run_main(f"--workdir={tmp_path / 'run'}", config=str(tmp_path / "broken.py"))
    assert result.returncode == 1
    assert "broken.py" in result.stderr
    assert "sqroot" in result.stderr


@pytest.mark.slow
def test_another_config_on_a_workdir_is_refused_until_it_is_accepted_and_evaluation_writes_nothing(tmp_path):
    flags = (f"--workdir={tmp_path / 'run'}", "--config.duration=30 steps")
    first = run_main(*flags)
    assert first.returncode == 0, first.stderr
    assert "minus raw" in first.stdout
    assert str(tmp_path / "run" / "report.html") in first.stdout

    def contents():
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    before = contents()
    changed = (*flags, "--config.optimizer.learning_rate=0.05")
    refused = run_main(*changed)
    assert refused.returncode == 1
    assert "optimizer.learning_rate: 0.1 before, 0.05 now" in refused.stderr
    assert "--config_change=accept" in refused.stderr
    assert run_main(*changed, "--mode=eval", "--config_change=accept").returncode == 0
    evaluated = run_main(*flags, "--mode=eval", "--checkpoint=best")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "best checkpoint, step" in evaluated.stdout
    assert contents() == before


BROKEN = """
import flax.linen as nn
import jax.numpy as jnp

import models
from configs import digits


class Broken(nn.Module):
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(self.num_classes)(images.reshape(len(images), -1))
        return jnp.log(jnp.abs(x) - 1)  # here


def get_config():
    models.MODELS["broken"] = Broken
    config = digits.get_config()
    config.model.name = "broken"
    config.duration = "3 steps"
    return config
"""


@pytest.mark.slow
def test_debug_nans_shows_where_the_first_nan_comes_from_and_keeps_none_of_it(tmp_path):
    config = tmp_path / "broken.py"
    config.write_text(BROKEN)
    rejected = run_main(f"--workdir={tmp_path / 'a'}", config=str(config))
    assert rejected.returncode == 0, rejected.stderr
    assert [line["rejected_steps"] for line in read_metrics(tmp_path / "a", "train")] == [1, 2, 3]
    shown = run_main(f"--workdir={tmp_path / 'b'}", "--debug_nans", config=str(config))
    assert shown.returncode == 1
    assert "FloatingPointError: invalid value (nan) encountered in log" in shown.stderr
    assert f'{config}", line {BROKEN[: BROKEN.index("# here")].count(chr(10)) + 1}, in __call__' in shown.stderr
    assert [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()] == ["0"]  # from before the first step
