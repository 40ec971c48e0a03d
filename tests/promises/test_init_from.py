"""A run may start from the weights of another."""

import shutil

import jax
import numpy as np
import pytest
from conftest import CNN, digits_config

import input_pipeline
import train
from configs import default
from runtime.errors import UserError
from runtime.stored import Stored, list_stored
from tools import export


@pytest.mark.slow
def test_a_run_starts_from_the_latest_that_another_has_stored_be_it_a_snapshot(tmp_path):
    train.train_and_evaluate(digits_config(snapshot_every="8 steps"), tmp_path / "first")
    for kind in ("checkpoints", "snapshots"):
        shutil.rmtree(tmp_path / "first" / kind / "20")
    config = digits_config(init_from=str(tmp_path / "first"), duration="1 steps", optimizer__learning_rate=0.0)
    assert [stored.record.step for stored in list_stored(tmp_path / "first")] == [8, 10, 16]
    second, _ = train.train_and_evaluate(config, tmp_path / "second")
    latest = Stored.read(tmp_path / "first" / "snapshots" / "16").read_weights("raw", second)
    jax.tree.map(np.testing.assert_array_equal, second.params, latest["params"])


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_run_starts_from_the_weights_of_another_and_so_do_its_averages(tmp_path, weights):
    model = CNN | {"model__batch_norm": True}
    first, _ = train.train_and_evaluate(digits_config(optimizer__name="adamw", **model), tmp_path / "first")
    config = digits_config(
        init_from=str(tmp_path / "first"),
        init_weights=weights,
        duration="1 steps",
        optimizer__learning_rate=0.0,
        **model,
    )
    config.averages = {"slow": default.average("ema", decay=0.9, debias=False)}
    second, _ = train.train_and_evaluate(config, tmp_path / "second")
    expected = first.weights()[weights]
    jax.tree.map(np.testing.assert_array_equal, second.params, expected["params"])  # at a rate of 0
    jax.tree.map(np.testing.assert_array_equal, second.ema_params["slow"], expected["params"])
    # Batch statistics moved by one step of momentum 0.9 from those of the weights, their average by a tenth of that.
    for name in ("mean", "var"):
        start, raw, average = (
            np.asarray(stats["BatchNorm_0"][name], np.float64)
            for stats in (expected["batch_stats"], second.batch_stats, second.ema_batch_stats["slow"])
        )
        assert (start != raw).any()
        np.testing.assert_allclose(average - start, 0.1 * (raw - start), rtol=1e-3, atol=1e-6)
    assert second.ema_count["slow"] == 1
    # Continuing does not start from the other run again, which may be gone.
    shutil.rmtree(tmp_path / "first")
    config.duration = "2 steps"
    assert train.train_and_evaluate(config, tmp_path / "second")[0].step == 2


def few_classes(folder, number=4):
    """The first digits of so many classes, as a data set."""
    source, arrays = input_pipeline.find_source("digits"), {}
    for split in ("train", "test"):
        images = source.load(split)
        chosen = images.label < number
        arrays |= {f"{split}_image": images.image[chosen], f"{split}_label": images.label[chosen]}
    np.savez(folder / "few.npz", **arrays)
    return f"arrays:{folder / 'few.npz'}"


@pytest.mark.slow
def test_other_classes_are_learned_from_the_weights_of_a_run_and_from_its_export(tmp_path, capsys):
    """The new last layer is that of the seed, everything else that of the run, and the average starts from both."""
    first, _ = train.train_and_evaluate(digits_config(), tmp_path / "first")
    export.export(tmp_path / "first", "ema", tmp_path / "exported", "latest")
    config = digits_config(dataset=few_classes(tmp_path), duration="1 steps", optimizer__learning_rate=0.0)
    config.averages.ema.debias = False
    fresh, _ = train.train_and_evaluate(config, tmp_path / "fresh")
    config.init_weights = "ema"
    for number, place in enumerate((tmp_path / "first", tmp_path / "exported")):
        config.init_from, config.init_skip = str(place), ()
        with pytest.raises(
            UserError, match=r"of another shape: 2 arrays, 132 values[\s\S]*--config.init_skip=Dense_1$"
        ):
            train.train_and_evaluate(config, tmp_path / str(number))
        assert not (tmp_path / str(number)).exists()
        config.init_skip = ("Dense_1",)
        capsys.readouterr()
        state, _ = train.train_and_evaluate(config, tmp_path / str(number))
        assert "\n  loaded: 2 arrays, 2,080 values\n  left out: 2 arrays, 132 values: Den" in capsys.readouterr().out
        expected = {"Dense_0": first.ema_params["ema"]["Dense_0"], "Dense_1": fresh.params["Dense_1"]}
        jax.tree.map(np.testing.assert_array_equal, state.params, expected)
        jax.tree.map(np.testing.assert_array_equal, state.ema_params["ema"], expected)
    # What a run has started from is part of what it is.
    config.init_skip, config.duration = (), "2 steps"
    with pytest.raises(UserError, match=r"holds a run with init_skip = \['Dense_1'\], not \[\]: where it started"):
        train.train_and_evaluate(config, tmp_path / "1")


@pytest.mark.slow
def test_a_run_that_cannot_be_started_from_is_refused(tmp_path):
    train.train_and_evaluate(digits_config(duration="1 steps"), tmp_path / "first")
    (tmp_path / "empty" / "checkpoints" / "20.partial").mkdir(parents=True)
    for overrides, message in [
        (
            {"init_from": str(tmp_path / "no")},
            r"init_from = .*no' does not exist; must be the --workdir of a run, or a",
        ),
        ({"init_from": str(tmp_path / "empty")}, r"init_from = .*empty' holds no checkpoint of a run and no weights"),
        ({"init_weights": "slow"}, "init_weights = 'slow': .* has raw, ema"),
        (
            {"model__hidden_sizes": (32, 32)},
            r"missing: 2 arrays, 330 values: Dense_2/bias \(float32\[10\] here\), [\s\S]*of another shape: 2 arrays, "
            r"1,056 values: Dense_1/bias \(float32\[10\] there, float32\[32\] here\), [\s\S]*init_skip=\"\('D",
        ),
        (
            {"init_weights": "ema", "model__hidden_sizes": ()},
            r"unused: 2 arrays, 330 values: Dense_1/bias \(float32\[10",
        ),
        ({"init_skip": ("Dense_7",)}, "init_skip: 'Dense_7' matches nothing; paths begin with Dense_0, Dense_1$"),
    ]:
        config = digits_config(**{"init_from": str(tmp_path / "first")} | overrides)
        with pytest.raises(UserError, match=message):
            train.train_and_evaluate(config, tmp_path / "second")
        assert not (tmp_path / "second").exists()
