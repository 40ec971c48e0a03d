"""A run may start from the weights of another."""

import shutil

import jax
import numpy as np
import pytest
from conftest import CNN, digits_config

import train
from configs import default
from runtime.errors import UserError


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


def test_a_run_goes_on_with_other_classes_from_a_run_and_from_its_export(tmp_path):
    """The new last layer is that of the seed, and everything else that of the run."""
    first, _ = train.train_and_evaluate(digits_config(), tmp_path / "first")
    export.export(tmp_path / "first", "ema", tmp_path / "exported", "latest")
    digits = input_pipeline.find_source("digits")
    few = {f"{split}_{name}": x[:50] for split in ("train", "test") for name, x in vars(digits.load(split)).items()}
    labels = {f"{split}_label": np.arange(50) % 4 for split in ("train", "test")}
    np.savez(tmp_path / "four.npz", **few | labels)
    config = digits_config(
        dataset=f"arrays:{tmp_path / 'four.npz'}", duration="1 steps", optimizer__learning_rate=0.0, init_weights="ema"
    )
    fresh, _ = train.train_and_evaluate(config.copy_and_resolve_references() | {}, tmp_path / "fresh")
def test_a_run_that_cannot_be_started_from_is_refused(tmp_path):
    train.train_and_evaluate(digits_config(duration="1 steps"), tmp_path / "first")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for overrides, message in [
        ({"init_from": str(tmp_path / "no")}, r"init_from = .*no' holds no checkpoint"),
        ({"init_from": str(tmp_path / "empty")}, r"init_from = .*empty' holds no checkpoint"),
        ({"init_weights": "slow"}, "init_weights = 'slow': .* has raw, ema"),
        (
            {"model__hidden_sizes": (32, 32)},
            r"does not fit .* it has float32\[10\] params/Dense_1/bias, the config .*32",
        ),
        ({"init_weights": "ema", "model__hidden_sizes": ()}, r"it has float32\[32\] ema_params/ema/Dense_0/bias"),
    ]:
        config = digits_config(**{"init_from": str(tmp_path / "first")} | overrides)
        with pytest.raises(UserError, match=message):
            train.train_and_evaluate(config, tmp_path / "second")
