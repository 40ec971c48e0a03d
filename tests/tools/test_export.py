import json
import shutil
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.flax
from conftest import ROOT, climbing_from, digits_config, read_metrics
from flax import linen as nn

import input_pipeline
import models
import settings
import tools.export
import train
from configs import default
from runtime.errors import UserError
from runtime.stored import find_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A CNN with batch norm, whose best step is not its last."""
    workdir = tmp_path_factory.mktemp("run")
    config = digits_config(
        model__name="cnn", model__hidden_sizes=(256, 256), model__batch_norm=True, recompute_batches=3,
        duration="12 steps", eval_every="4 steps", checkpoint_every="4 steps", best_curve="raw", best_metric="loss",
    )  # fmt: skip
    config.averages.recomputed = default.average("ema", decay=0.9, batch_stats="recompute")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.TASKS, "classification", train.Task(loss_fn=climbing_from(8)))
        state, _ = train.train_and_evaluate(config, workdir)
    assert find_checkpoint(workdir, "best").record.step == 8
    return workdir, state


def export(workdir, *flags):
    command = [sys.executable, "-m", "tools.export", str(workdir), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("average", ["raw", "ema", "recomputed"])
def test_exported_weights_score_what_the_run_says_of_them(run, average, tmp_path):
    workdir, state = run
    result = export(workdir, f"--average={average}", f"--out={tmp_path / 'exported'}")
    assert result.returncode == 0, result.stderr
    test = input_pipeline.find_source("digits").load("test")
    about = json.loads((tmp_path / "exported/weights.json").read_text())
    flat = safetensors.flax.load_file(tmp_path / "exported/weights.safetensors")
    variables = flax.traverse_util.unflatten_dict(flat, sep="/")
    model = models.create_model(num_classes=about["num_classes"], **about["config"]["model"])
    images = (test.image - jnp.array(about["mean"])) / jnp.array(about["std"])
    logits = model.apply(variables, images, train=False)
    scores = read_metrics(workdir, average)[-1]
    assert np.mean(np.asarray(logits).argmax(axis=1) == test.label) == scores["accuracy"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, test.label)
    assert float(losses.mean()) == pytest.approx(scores["loss"], rel=1e-5)  # sums in float32
    assert about["step"] == 12
    assert about["scores"][average] == {key: scores[key] for key in ("loss", "accuracy", "calibration_error")}
    assert (about["average"] or {"name": "raw"})["name"] == average
    # Both files hold the same; nothing else of the state is in them.
    packed = flax.serialization.msgpack_restore((tmp_path / "exported/weights.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, packed, variables)
    assert set(packed) == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, packed["params"], state.weights()[average]["params"])


@pytest.mark.slow
def test_what_is_exported_says_what_its_classes_are_called(tmp_path, monkeypatch):
    digits, names = input_pipeline.find_source("digits"), ["zero", *"123456789"]

    def named():
        return input_pipeline.Source.from_arrays("named", digits.load("train"), digits.load("test"), names)

    monkeypatch.setattr(input_pipeline, "SOURCES", {"named": named})
    train.train_and_evaluate(digits_config(dataset="named", duration="1 steps"), tmp_path / "run")
    tools.export.export(tmp_path / "run", "raw", tmp_path / "exported", "latest")
    assert json.loads((tmp_path / "exported/weights.json").read_text())["class_names"] == names


@pytest.mark.slow
@pytest.mark.parametrize("average", ["raw", "recomputed"])
def test_what_an_export_predicts_has_the_accuracy_that_it_says(run, average, tmp_path):
    tools.export.export(run[0], average, tmp_path, "best")  # later the loss has climbed out of what has a logarithm
    test = input_pipeline.find_source("digits").load("test")
    probabilities, names = tools.export.predict(tmp_path, test.image)
    about = json.loads((tmp_path / "weights.json").read_text())
    assert np.mean(probabilities.argmax(axis=1) == test.label) == about["scores"][average]["accuracy"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    loss = -np.log(probabilities[range(len(test)), test.label]).mean()
    assert loss == pytest.approx(about["scores"][average]["loss"], rel=1e-5)
    assert names == [*"0123456789"]
    few, _ = tools.export.predict(str(tmp_path), test.image[:2])
    np.testing.assert_allclose(few, probabilities[:2], rtol=1e-5)


@pytest.mark.slow
def test_what_an_export_cannot_predict_is_refused_with_what_it_takes(run, tmp_path):
    tools.export.export(run[0], "ema", tmp_path / "exported", "latest")
    for images, found in (
        (np.zeros((2, 8, 8, 1), np.float32), r"float32 \[2, 8, 8, 1\]"),
        (np.zeros((2, 9, 8, 1), np.uint8), r"uint8 \[2, 9, 8, 1\]"),
        (np.zeros((8, 8, 1), np.uint8), r"uint8 \[8, 8, 1\]"),
        (np.zeros((0, 8, 8, 1), np.uint8), r"uint8 \[0, 8, 8, 1\]"),
    ):
        with pytest.raises(UserError, match=rf"images are {found}; the export in .* takes uint8 \[n, 8, 8, 1\], n > 0"):
            tools.export.predict(tmp_path / "exported", images)
    with pytest.raises(UserError, match=r"no holds no export .*weights.json"):
        tools.export.predict(tmp_path / "no", np.zeros((1, 8, 8, 1), np.uint8))
    about = json.loads((tmp_path / "exported" / "weights.json").read_text())
    about["scores"] = {"raw": {"loss": 0.5}}  # as of a regression
    (tmp_path / "exported" / "weights.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="holds no classifier of images"):
        tools.export.predict(tmp_path / "exported", np.zeros((1, 8, 8, 1), np.uint8))


@pytest.mark.slow
def test_a_model_that_pytorch_has_no_names_for_is_refused_and_nothing_written(run, tmp_path):
    result = export(run[0], "--average=raw", f"--out={tmp_path / 'out'}", "--format=torch")
    assert result.returncode == 1
    known = "ResNet-18, 34, 50 and 101"
    assert f"error: --format=torch: the model is none of those whose names are known: {known}" in result.stderr
    assert not (tmp_path / "out").exists()


class Counting(nn.Module):
    """Takes the number of images for a plain number."""

    def __call__(self, images, train):
        return jnp.zeros(len(images))


def test_a_model_of_something_else_than_any_number_of_images_is_not_made_a_stablehlo_program(monkeypatch):
    about = {"config": {"task": "classification"}}
    with pytest.raises(UserError, match="--format=stablehlo: task 'classification' has data of its own"):
        tools.export.as_stablehlo({}, about)
    monkeypatch.setattr(settings, "create_model", lambda *_: Counting())
    about |= {"image_shape": (2, 2, 1), "num_classes": 3, "mean": [0.0], "std": [1.0]}
    with pytest.raises(UserError, match=r"is no function of any number of images .docs/finetune.md.: TypeError: "):
        tools.export.as_stablehlo({}, about)


ELSEWHERE = """
import json, pathlib, sys
import jax, numpy as np

folder, with_images = map(pathlib.Path, sys.argv[1:])
program = jax.export.deserialize((folder / "model.stablehlo").read_bytes())
found = [np.asarray(program.call(images)).tolist() for images in np.load(with_images).values()]
assert not {"flax", "models", "train", "tools"} & {*sys.modules}
print(json.dumps([found, program.platforms]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"name": "cnn", "batch_norm": True, "dtype": "bfloat16"},
        {"name": "resnet", "depth": 20, "width": 1, "stem": "cifar"},
        {"name": "vit", "depth": 2, "width": 1, "patch": 4},
    ],
    ids=lambda model: model["name"],
)
def test_a_stablehlo_program_computes_elsewhere_without_this_project_what_the_average_does_here(model, tmp_path):
    fields = {f"model__{key}": value for key, value in {"hidden_sizes": (256, 256), **model}.items()}
    train.train_and_evaluate(digits_config(duration="3 steps", batch_size=16, **fields), tmp_path / "run")
    tools.export.export(tmp_path / "run", "ema", tmp_path / "exported", "latest", ["stablehlo"])
    test = input_pipeline.find_source("digits").load("test").image[:20]
    expected, _ = tools.export.predict(tmp_path / "exported", test)
    np.savez(tmp_path / "images.npz", one=test[:1], all=test)
    script = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "exported"), str(tmp_path / "images.npz")]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    (one, every), platforms = json.loads(done.stdout)
    atol = 0.02 if "dtype" in model else 1e-5  # one program rounds otherwise than many; bfloat16 has 8 bits
    np.testing.assert_allclose(jax.nn.softmax(np.array(every, np.float32)), expected, atol=atol)
    np.testing.assert_allclose(jax.nn.softmax(np.array(one, np.float32)), expected[:1], atol=atol)
    assert platforms == ["cpu", "cuda", "rocm", "tpu"]


@pytest.mark.slow
def test_no_file_of_an_earlier_export_is_left_beside_those_of_another_one(run, tmp_path):
    (tmp_path / "model.safetensors").write_text("not of an export")
    tools.export.export(run[0], "raw", tmp_path, "latest", ["stablehlo"])
    written = {path.name for path in tmp_path.iterdir()}
    assert written > {"model.stablehlo", "model.safetensors"}
    tools.export.export(run[0], "ema", tmp_path, "latest")
    assert written - {path.name for path in tmp_path.iterdir()} == {"model.stablehlo", "model.safetensors"}


@pytest.mark.slow
def test_the_best_checkpoint_can_be_exported(run, tmp_path):
    workdir, _ = run
    result = export(workdir, "--average=recomputed", f"--out={tmp_path}", "--checkpoint=best")
    assert result.returncode == 0, result.stderr
    about = json.loads((tmp_path / "weights.json").read_text())
    assert (about["step"], about["average"]["name"]) == (8, "recomputed")
    for curve, scores in about["scores"].items():
        [line] = [line for line in read_metrics(workdir, curve) if line["step"] == 8]
        assert line == {"step": 8, "curve": curve, "split": "test"} | scores
    assert {*about["scores"]} == {"raw", "recomputed", "recomputed-raw"}


@pytest.mark.slow
def test_an_average_that_the_run_dropped_later_is_exported_as_what_it_was(tmp_path):
    config = digits_config(eval_every="10 steps", checkpoint_every="10 steps")
    config.averages.old = default.average("soft_update", tau=0.5)
    train.train_and_evaluate(config, tmp_path / "run")
    score = read_metrics(tmp_path / "run", "old")[-1]["loss"]
    shutil.copytree(tmp_path / "run", tmp_path / "dropped")
    (tmp_path / "dropped" / "config.json").write_text(
        (tmp_path / "run" / "config.json").read_text().replace('"old"', '"new"')
    )
    result = export(tmp_path / "dropped", "--average=old", f"--out={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    about = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert about["average"]["arguments"] == {"tau": 0.5}
    assert about["scores"]["old"]["loss"] == score


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "average", "message"),
    [
        ("run", "slow", "--average=slow: the checkpoint at step 12 has raw, ema, recomputed"),
        ("no", "ema", "holds no run"),
    ],
)
def test_what_is_not_there_is_refused_and_nothing_written(run, tmp_path, folder, average, message):
    workdir = run[0] if folder == "run" else tmp_path / "no"
    result = export(workdir, f"--average={average}", f"--out={tmp_path / 'out'}")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
