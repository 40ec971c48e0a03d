"""The name of a folder means nothing but itself."""

import jax
import numpy as np
import pytest
from conftest import digits_config, read_metrics

import train
from runtime.stored import find_checkpoint
from tools import finished


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run of 20 steps in a folder with a plain name, and its last state."""
    folder = tmp_path_factory.mktemp("plain")
    state, _ = train.train_and_evaluate(digits_config(), folder / "r1")
    return folder, state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lr=[0.1]", "r*", "r?", "{r1,r2}", "[r]1", "a b'c"])
def test_a_run_in_a_folder_of_any_name_is_continued_renamed_scored_and_started_from(plain, tmp_path, name, capsys):
    folder, expected = plain
    workdir = tmp_path / "in [any] place" / name
    train.train_and_evaluate(digits_config(duration="10 steps"), workdir)
    workdir = workdir.rename(workdir.with_name("renamed " + name))
    state, _ = train.train_and_evaluate(digits_config(), workdir)
    jax.tree.map(np.testing.assert_array_equal, state.weights(), expected.weights())
    assert read_metrics(workdir) == read_metrics(folder / "r1")
    assert jax.dtypes.issubdtype(find_checkpoint(workdir, "latest").restore_state(state).rng.dtype, jax.dtypes.prng_key)
    scores = finished.evaluate_checkpoint(digits_config(), workdir, which="best", config_change="refuse")
    best = max(line["accuracy"] for line in read_metrics(workdir, "ema"))
    assert scores["ema"]["accuracy"] == best
    started, _ = train.train_and_evaluate(
        digits_config(init_from=str(workdir), duration="1 steps", optimizer__learning_rate=0.0), tmp_path / "next"
    )
    jax.tree.map(np.testing.assert_array_equal, started.params, state.params)
