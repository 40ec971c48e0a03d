"""tools.diagnose on runs with batch norm, without what a part needs, and with a task of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import digits_config, read_metrics
from diagnosed import ROUNDING, curve, run_diagnose
from flax import linen as nn

import models
import train
from configs import default
from tools.diagnosis import landscape
from tools.diagnosis.subject import Subject

pytestmark = pytest.mark.slow

LINES = ("line", "checkpoints", "runs")


def test_with_batch_norm_the_line_comes_with_statistics_recomputed_and_not(tmp_path):
    config = digits_config(
        model__name="cnn", model__hidden_sizes=(256, 256), model__batch_norm=True,
        duration="10 steps", eval_every="10 steps", checkpoint_every="5 steps",
    )  # fmt: skip
    config.averages.mean = default.average("running_mean")
    train.train_and_evaluate(config, tmp_path)
    subject = Subject.read(tmp_path, "", 64)
    part = landscape.between_checkpoints(subject)
    names = ["statistics recomputed", "not recomputed"]
    assert [(one["name"], one["split"]) for one in part["curves"]] == [
        (name, split) for name in names for split in ("train", "test")
    ]
    for split in ("train", "test"):
        recomputed, kept = (curve(part, split, name)["loss"] for name in names)
        assert min(np.abs(np.subtract(recomputed, kept))) > 1e-3
    start, end = (subject.run.weights(stored, "raw") for stored in subject.run.stored)
    for share in (0, 5, 10):
        point = landscape.interpolate(start, end, part["shares"][share])
        for name, weights in zip(names, (subject.recomputed(point), point), strict=True):
            loss = subject.scores(weights, "test")["loss"].mean()
            assert curve(part, "test", name)["loss"][share] == pytest.approx(loss, abs=ROUNDING)
    # The shares of a running mean change at every step.
    oscillations = run_diagnose(tmp_path, "--images=64", "--steps=48", "--average=mean")["oscillations"]
    assert not {"kept", "predicted"} & set(oscillations)
    assert oscillations["left"][0] < 1


def test_what_a_run_does_not_allow_is_left_out_with_the_reason(tmp_path):
    """Annealed to 0 with a checkpoint at its end alone."""
    config = digits_config(
        optimizer__schedule="cosine", duration="30 steps", eval_every="30 steps", checkpoint_every="30 steps"
    )
    train.train_and_evaluate(config, tmp_path)
    found = run_diagnose(tmp_path, "--images=100", "--steps=48")
    skipped = {name: part["skipped"] for name, part in found.items() if isinstance(part, dict) and "skipped" in part}
    nothing = "the run has stored nothing but its latest weights"
    assert skipped == {
        "checkpoints": nothing,
        "plane": nothing,
        "oscillations": "the learning rate is 0 from step 30 on, and the weights stand still",
    }
    assert found["ensembles"]["steps"] == []
    page = (tmp_path / "report.html").read_text()
    for reason in skipped.values():
        assert f"Left out: {reason}." in page
    assert not (tmp_path / "diagnosis" / "plane.png").exists()
    assert (tmp_path / "diagnosis" / "line.png").exists()


def squared_loss(params, state, batch, **options):
    outputs, updates = train.apply_model(params, state, batch)
    loss = jnp.sum((outputs - batch["target"]) ** 2, axis=-1)
    return loss.mean(), ({"loss": (loss.sum(), loss.size)}, updates)


def squared_score(apply_fn, variables, batch):
    outputs = apply_fn(variables, batch["image"], train=False)
    return {"loss": jnp.sum((outputs - jax.nn.one_hot(batch["label"], 10)) ** 2, axis=-1)}


def test_a_task_of_ones_own_on_a_validation_set_and_a_linear_model_whose_averages_are_all_the_same(task, tmp_path):
    """Of a linear model, averaged weights give what averaged outputs are, and the loss is a parabola on each line."""
    config = digits_config(
        task=task(loss_fn=squared_loss, score_fn=squared_score, metrics={"loss": "lower"}), model__hidden_sizes=(),
        num_validation=200, snapshot_every="5 steps", optimizer__learning_rate=0.002,
    )  # fmt: skip
    train.train_and_evaluate(config, tmp_path)
    found = run_diagnose(tmp_path, tmp_path, "--images=2000", "--steps=48")
    assert found["num_images"] == {"train": 701, "validation": 200}
    assert "test" not in {one["split"] for name in LINES for one in found[name]["curves"]}
    assert set(found["plane"]["losses"]) == {"train", "validation"}
    logged = [line for line in read_metrics(tmp_path, "raw") if line["split"] == "validation"][-1]
    of_validation = curve(found["line"], "validation")
    assert "accuracy" not in of_validation
    at = found["line"]["shares"].index(0)
    assert of_validation["loss"][at] == pytest.approx(logged["loss"], rel=1e-6)
    assert found["ensembles"]["split"] == "validation"
    for weights, outputs in zip(found["ensembles"]["weights"], found["ensembles"]["predictions"], strict=True):
        assert weights["loss"] == pytest.approx(outputs["loss"], rel=1e-5)  # sums of 64 products in float32
    assert len({scores["loss"] for scores in found["ensembles"]["single"]}) == 4
    for split in ("train", "validation"):
        losses = np.array(curve(found["line"], split)["loss"])
        np.testing.assert_allclose(np.diff(losses, 3), 0, atol=1e-5 * losses.max())
        # The curvature is the same everywhere, and so is the mean over fewer images of it.
    raw, average = (found["sharpness"][name] for name in ("raw", "ema"))
    np.testing.assert_allclose(raw["eigenvalues"], average["eigenvalues"], rtol=1e-2)  # the tolerance of Lanczos
    assert found["sharpness"]["difference"]["trace"] == pytest.approx([0, 0, 0], abs=1e-3 * raw["trace"][0])
    assert found["runs"]["num_units"] == 0
    assert "No hidden units can be put into another order" in (tmp_path / "report.html").read_text()


class TwoHeads(nn.Module):
    """Logits of the digit, and one of whether it is odd."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.relu(nn.Dense(32)(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes)(hidden), nn.Dense(1)(hidden)[:, 0]


def both_losses(outputs, label):
    digit, odd = outputs
    loss = optax.softmax_cross_entropy_with_integer_labels(digit, label)
    return loss + optax.sigmoid_binary_cross_entropy(odd, label % 2)


def two_losses(params, state, batch):
    outputs, updates = train.apply_model(params, state, batch)
    loss = both_losses(outputs, batch["label"])
    return loss.mean(), ({"loss": (loss.sum(), loss.size)}, updates)


def two_scores(apply_fn, variables, batch):
    outputs = apply_fn(variables, batch["image"], train=False)
    return {"loss": both_losses(outputs, batch["label"]), "odd": (outputs[1] > 0) == (batch["label"] % 2 == 1)}


def test_a_model_of_two_outputs_is_diagnosed(task, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "two_heads", TwoHeads)
    config = digits_config(
        task=task(loss_fn=two_losses, score_fn=two_scores, metrics={"loss": "lower", "odd": "higher"}),
        model__name="two_heads", model__hidden_sizes=(256, 256), snapshot_every="5 steps",
    )  # fmt: skip
    train.train_and_evaluate(config, tmp_path)
    found = run_diagnose(tmp_path, tmp_path, "--images=200", "--steps=48")
    assert found["runs"]["num_units"] == 0  # none, for two others read the only hidden layer
    for part in ("weights", "predictions"):
        assert all(np.isfinite(row["loss"]) and 0 < row["odd"] < 1 for row in found["ensembles"][part])
    # One network alone predicts what the mean of one network does.
    assert found["ensembles"]["predictions"][0]["loss"] == pytest.approx(found["ensembles"]["weights"][0]["loss"])


def brightness_loss(params, state, batch):
    outputs, updates = train.apply_model(params, state, batch)
    loss = (outputs[:, 0] - batch["image"].mean(axis=(1, 2, 3))) ** 2
    return loss.mean(), ({"loss": (loss.sum(), loss.size)}, updates)


def brightness_score(apply_fn, variables, batch):
    outputs = apply_fn(variables, batch["image"], train=False)
    return {"loss": (outputs[:, 0] - batch["image"].mean(axis=(1, 2, 3))) ** 2 * batch["mask"]}


def test_a_task_that_scores_outputs_by_the_image_sees_the_images_of_evaluation(task, tmp_path):
    config = digits_config(
        task=task(loss_fn=brightness_loss, score_fn=brightness_score, metrics={"loss": "lower"}),
        snapshot_every="5 steps", optimizer__learning_rate=0.002,
    )  # fmt: skip
    train.train_and_evaluate(config, tmp_path)
    found = run_diagnose(tmp_path, "--images=2000", "--steps=48")["ensembles"]
    logged = [line["loss"] for line in read_metrics(tmp_path, "raw")]
    assert found["single"][0]["loss"] == pytest.approx(logged[-1], rel=1e-5)
    # One network alone predicts what the mean of one network does.
    assert found["predictions"][0]["loss"] == pytest.approx(found["weights"][0]["loss"], rel=1e-5)
