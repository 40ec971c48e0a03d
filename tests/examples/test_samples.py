"""Frechet distance, precision and recall of samples, and the classifier in whose features they are taken."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from conftest import ROOT, create_experiment, read_metrics
from PIL import Image

import train
from augmentation import Augmentation
from examples import classifier, distances, results, samples
from examples.gan import swing
from examples.gan.configs import default
from input_pipeline import EvalData, Images, Normalization, TrainData, find_source
from runtime import intervals
from runtime.errors import UserError


def normal(seed, num, dim=8, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).normal(size=(num, dim))


def test_the_distance_is_that_of_its_formula_in_float64():
    mixing = np.random.default_rng(0).normal(size=(32, 32))
    first, second = normal(1, 500, 32) @ mixing, normal(2, 700, 32, 0.3) @ mixing.T
    means, covs = zip(*((x.mean(axis=0), np.cov(x.T)) for x in (first, second)), strict=True)
    root = scipy.linalg.sqrtm(covs[0] @ covs[1])
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covs[0] + covs[1] - 2 * root.real)
    assert distances.frechet_distance(first, second)[0] == pytest.approx(expected, abs=1e-6)
    assert distances.frechet_distance(first, first)[0] == pytest.approx(0, abs=1e-6)


def test_items_are_pseudo_values_of_a_jackknife_over_groups():
    first, second = normal(1, 211), normal(2, 307, shift=0.2)
    distance, items = distances.frechet_distance(first, second)
    groups = [np.s_[group :: distances.NUM_GROUPS] for group in range(distances.NUM_GROUPS)]
    parts = [(np.delete(first, group, axis=0), np.delete(second, group, axis=0)) for group in groups]
    without = [distances.frechet_distance(*pair)[0] for pair in parts]
    pseudo = distances.NUM_GROUPS * distance - (distances.NUM_GROUPS - 1) * np.array(without)
    np.testing.assert_allclose(items, pseudo - pseudo.mean() + distance, rtol=1e-9)


def test_the_distance_of_two_gaussians_lies_within_its_interval():
    """A shift by 0.5 and a scale of 1.5 in each of 8 dimensions: 8 * (0.25 + 0.25)."""
    found = [
        intervals.mean_interval(
            distances.frechet_distance(normal(seed, 2000), normal(100 + seed, 3000, shift=0.5, scale=1.5))[1]
        )
        for seed in range(20)
    ]
    assert sum(low <= 4 <= high for _, low, high in found) >= 17  # of 20 intervals of 95 %
    widths = [high - low for _, low, high in found]
    spread = np.std([distance for distance, _, _ in found], ddof=1)
    assert np.mean(widths) / 2 == pytest.approx(2.09 * spread, rel=0.5)  # Student's quantile; a spread of 20 values


def test_what_is_not_finite_has_no_distance_and_covers_nothing():
    broken = normal(0, 100)
    broken[3] = np.nan
    assert np.isnan(distances.frechet_distance(broken, normal(1, 100))[1]).all()
    assert not distances.covered(broken[3:4], normal(1, 100)).any()


def test_precision_and_recall_of_made_cases():
    real = np.concatenate([normal(0, 200, 4), normal(1, 200, 4, shift=50)])
    one_mode, all_modes = normal(2, 300, 4), np.concatenate([normal(3, 300, 4), normal(4, 300, 4, shift=50)])
    half_wrong = np.concatenate([all_modes, normal(5, 600, 4, shift=-50)])

    def precision_and_recall(made):
        return distances.covered(made, real).mean(), distances.covered(real, made).mean()

    assert precision_and_recall(real) == (1, 1)
    precision, recall = precision_and_recall(one_mode)
    assert precision > 0.8  # at its edge a Gaussian is hardly covered
    assert 0.4 < recall <= 0.5  # and the other mode not at all
    precision, recall = precision_and_recall(half_wrong)
    assert 0.4 < precision <= 0.5
    assert recall > 0.8


def test_a_point_is_covered_up_to_the_third_neighbour():
    others = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    # The third neighbours of the first four are at 3, 2, 2 and 3; that of 10 is at 9.
    points = np.array([[-3.0], [-3.01], [6.0], [19.0], [19.01]])
    np.testing.assert_array_equal(distances.covered(points, others), [True, False, True, True, False])


@pytest.fixture(scope="module")
def small_data():
    image = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    label = np.arange(300, dtype=np.int32) % 3
    half = np.full(1, 127.5, np.float32)
    return jax.device_put(TrainData(image, label, Normalization(half, half), 3, 10, Augmentation()))


@pytest.mark.slow
def test_the_classifier_of_a_workdir_is_trained_once_and_guarded_by_its_digest(tmp_path, small_data, capsys):
    images = small_data.normalization(small_data.image[:7])
    first = classifier.features(small_data, tmp_path, num_steps=5)(images)
    assert first.shape == (7, 32)
    assert "Training the classifier" in capsys.readouterr().out
    np.testing.assert_array_equal(classifier.features(small_data, tmp_path, num_steps=50)(images), first)
    assert "Training the classifier" not in capsys.readouterr().out
    for other in ({"image": small_data.image.at[0, 0, 0, 0].add(1)}, {"label": small_data.label.at[0].set(2)}):
        with pytest.raises(UserError, match=r"classifier.npz is damaged or of other images"):
            classifier.features(small_data.replace(**other), tmp_path)
    stored = np.load(tmp_path / "classifier.npz")
    changed = stored["params"].copy()
    changed[0] += 1
    np.savez(tmp_path / "classifier.npz", params=changed, digest=stored["digest"])
    with pytest.raises(UserError, match=r"classifier.npz is damaged or of other images"):
        classifier.features(small_data, tmp_path)
    (tmp_path / "classifier.npz").write_bytes(b"half")
    with pytest.raises(UserError, match=r"classifier.npz is damaged"):
        classifier.features(small_data, tmp_path)


@pytest.mark.slow
def test_samples_are_judged_by_the_images_of_the_split(tmp_path, small_data):
    """Each of which is of another brightness and number."""
    parts = {"validation": small_data.images.take(np.arange(61)), "test": small_data.images.take(np.arange(100, 197))}
    parts["test"].image[:] = 127 + parts["test"].image // 2
    data = {name: EvalData.from_images(images, small_data.normalization, 40, 1) for name, images in parts.items()}
    run = types.SimpleNamespace(train_data=small_data, eval_data=data, workdir=tmp_path)
    features = classifier.features(small_data, tmp_path, num_steps=5)
    made = small_data.normalization(small_data.image[200:290])
    for split, images in parts.items():
        found, real = samples.judge(run, split, {"raw": made})["raw"], features(small_data.normalization(images.image))
        assert found["frechet"][0] == pytest.approx(distances.frechet_distance(features(made), real)[0], rel=1e-6)
        np.testing.assert_array_equal(found["recall"][1], distances.covered(real, features(made)))


@pytest.mark.slow
def test_real_images_are_better_than_noise_in_each_metric_and_a_few_of_them_lack_only_recall(tmp_path, small_data):
    images = find_source("digits").load("test")
    data = EvalData.from_images(Images(images.image[:300], images.label[:300]), small_data.normalization, 300, 1)
    classifier.features(small_data, tmp_path, num_steps=1)  # which is enough to tell these apart
    real = data.normalization(data.image)
    noise = jax.random.uniform(jax.random.key(0), real.shape, minval=-1, maxval=1)
    made = {"real": real, "few": jnp.tile(real[:8], (38, 1, 1, 1))[:300], "noise": noise}
    experiment = types.SimpleNamespace(eval_data={"test": data}, train_data=small_data, workdir=tmp_path)
    found = samples.judge(experiment, "test", made)
    value = {name: {metric: float(of[metric][0]) for metric in samples.METRICS} for name, of in found.items()}
    assert value["real"] == pytest.approx({"frechet": 0, "precision": 1, "recall": 1}, abs=1e-4)
    assert value["few"]["precision"] == 1
    assert value["few"]["recall"] < 0.5
    for metric, better in samples.METRICS.items():
        sign = 1 if better == "higher" else -1
        assert sign * value["real"][metric] > sign * value["noise"][metric], metric


@pytest.mark.slow
def test_images_are_shrunk_to_means_of_blocks_and_only_to_such():
    config = default.get_config()
    config.dataset, config.data.size = "digits", 4
    experiment = create_experiment(config)
    for split, data in {"train": experiment.train_data, **experiment.eval_data}.items():
        whole = find_source("digits").load(split).image.astype(np.float64)
        expected = whole.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
        np.testing.assert_allclose(data.image[: len(whole)], expected, atol=0.5)
        assert (data.normalization.mean, data.normalization.std) == (127.5, 127.5)
    batch, _ = experiment.train_data.batch(experiment.state)
    assert batch["image"].shape == (128, 4, 4, 1)
    assert float(batch["image"].min()) == -1
    config.data.size = 3
    with pytest.raises(UserError, match=r"data.size = 3: must divide the 8 x 8 of the images of digits"):
        create_experiment(config)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "phases"), [("diffusion", ("train", "evaluate", "saving")), ("gan", ("train",))])
def test_runs_killed_at_random_moments_end_bit_for_bit_as_if_they_had_been_left_alone(name, phases):
    fields = ["dataset=digits", "data.size=8", "data.num_samples=100", "model.features=16", "duration=120 steps"]
    fields += ["evaluate_sets_every=40 steps", "checkpoint_every=30 steps", "log_every=17 steps", "batch_size=32"]
    command = [sys.executable, "tests/chaos/chaos.py", f"--runs={len(phases)}", "--seed=0"]
    command += [f"--config=examples/{name}/configs/default.py", *(f"--override={field}" for field in fields)]
    command += [f"--phase={phase}" for phase in phases]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(phases)} of {len(phases)} runs ended bit for bit" in result.stdout


@pytest.mark.slow
def test_the_classifier_learns(mnist):
    experiment = create_experiment(default.get_config())
    data = experiment.train_data
    model = classifier.FastApply(classifier.Classifier(10))
    start = model.model.init(jax.random.key(0), data.normalization(data.image[:1]))
    trained = classifier.train(data, start, model, 300)
    test = experiment.eval_data["test"]
    logits = model(trained, test.normalization(test.image))[1]
    assert float(jnp.mean(logits.argmax(axis=1) == test.label)) > 0.93


@pytest.mark.slow
def test_seeds_are_read_from_their_runs_and_samples_drawn(tmp_path):
    for seed in (0, 1):
        config = default.get_config()
        config.dataset, config.data.size, config.data.num_samples = "digits", 8, 100
        config.duration, config.evaluate_sets_every, config.seed = "20 steps", "10 steps", seed
        train.train_and_evaluate(config, tmp_path / f"seed{seed}")
    workdirs = results.seeds(tmp_path)
    curves, steps = results.read(workdirs, swing.CURVES, samples.METRICS), results.steps(workdirs[0], "frechet")
    assert steps == [10, 20]
    assert np.shape(curves["ema05"]["recall"]) == (2, 2)
    lines = [line for line in read_metrics(tmp_path / "seed1", "mean") if "frechet" in line]
    assert curves["mean"]["frechet"][1] == [round(line["frechet"], 4) for line in lines]
    result = results.about(workdirs) | {"steps": steps, "curves": curves}
    assert 0 < result["floor"]["frechet"] < np.min(curves["raw"]["frechet"])
    assert swing.table(result).count("|\n") == 1 + len(swing.CURVES)
    np.testing.assert_allclose(swing.swing(curves["raw"]), np.abs(np.diff(curves["raw"]["frechet"]))[:, 0])
    swing.draw(result).savefig(tmp_path / "swing.png")
    samples.draw_run(workdirs[0], tmp_path / "samples.png")
    with Image.open(tmp_path / "samples.png") as picture:
        assert len(set(picture.convert("L").get_flattened_data())) > 10  # not blank
    stored = dict(np.load(tmp_path / "seed1" / "classifier.npz"))
    np.savez(tmp_path / "seed1" / "classifier.npz", **stored | {"digest": "0" * 64})
    with pytest.raises(UserError, match=r"the classifiers of .*seed0 and others differ"):
        results.about(workdirs)
    with pytest.raises(UserError, match=r"has no runs seed0, seed1"):
        results.seeds(tmp_path / "seed0")
