import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import evaluation
import input_pipeline
from runtime import intervals, score_metrics, sharding


def linear(variables, image, train):
    assert not train
    return image.reshape(len(image), -1) @ variables["params"]


def eval_step(apply_fn, score_fn=evaluation.score_fn):
    batch_sharding = sharding.split_batch(sharding.create_mesh())
    return functools.partial(evaluation.eval_step, apply_fn=apply_fn, score_fn=score_fn, sharding=batch_sharding)


@pytest.fixture(scope="module")
def setting():
    """A linear model on 23 images, in padded batches of 6."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, size=(23, 2, 2, 1)).astype(np.uint8)
    images = input_pipeline.Images(image, rng.integers(0, 3, size=23).astype(np.int32))
    normalization = input_pipeline.Normalization.from_images(images)
    data = jax.device_put(input_pipeline.EvalData.from_images(images, normalization, batch_size=7, num_devices=2))
    assert (data.batch_size, int(data.mask.sum()), len(data.mask)) == (6, 23, 24)
    curves = {name: {"params": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)} for name in ("raw", "ema", "slow")}
    return images, normalization, data, curves


def test_metrics_are_those_of_a_plain_numpy_computation_over_all_images_at_once(setting):
    images, normalization, data, curves = setting
    metrics = evaluation.evaluate(curves, data, eval_step(linear))
    x = np.asarray(normalization(jnp.asarray(images.image)), np.float64).reshape(23, -1)
    for curve, variables in curves.items():
        logits = x @ np.asarray(variables["params"], np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        assert metrics[curve]["loss"] == pytest.approx(-log_p[np.arange(23), images.label].mean(), rel=1e-5)
        assert metrics[curve]["accuracy"] == np.mean(logits.argmax(axis=1) == images.label)
    assert list(metrics) == ["raw", "ema", "slow", "ema-raw", "slow-raw"]


@pytest.mark.parametrize("num_images", [1, 5, 23, 24])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_each_image_is_counted_once_whatever_the_batch_size(setting, num_images, batch_size):
    images, normalization, _, curves = setting
    images = input_pipeline.Images(np.resize(images.image, (num_images, 2, 2, 1)), np.resize(images.label, num_images))
    whole, batches = (
        jax.device_put(input_pipeline.EvalData.from_images(images, normalization, size, 1))
        for size in (num_images, batch_size)
    )
    reference, scores = (
        {name: evaluation.score({"raw": curve}, data, eval_step(linear))["raw"] for name, curve in curves.items()}
        for data in (whole, batches)
    )
    for curve in curves:
        assert len(scores[curve]["loss"]) == num_images
        # Batches of other sizes are multiplied in another order: float32 rounding of logits below 10.
        np.testing.assert_allclose(scores[curve]["loss"], reference[curve]["loss"], atol=1e-5)
        np.testing.assert_array_equal(scores[curve]["predicted"], reference[curve]["predicted"])


def test_changing_an_average_changes_its_score_and_no_other(setting):
    _, _, data, curves = setting
    before = evaluation.evaluate(curves, data, eval_step(linear))
    after = evaluation.evaluate(curves | {"ema": {"params": -curves["ema"]["params"]}}, data, eval_step(linear))
    assert before["raw"] == after["raw"]
    assert before["slow"] == after["slow"]
    assert before["slow-raw"] == after["slow-raw"]
    assert before["ema"] != after["ema"]
    assert before["ema-raw"] != after["ema-raw"]


def test_the_distance_is_that_of_the_parameters(setting):
    _, _, data, curves = setting
    metrics = evaluation.evaluate(curves, data, eval_step(linear))
    expected = np.linalg.norm(np.subtract(curves["slow"]["params"], curves["raw"]["params"], dtype=np.float64))
    assert metrics["slow-raw"]["distance"] == pytest.approx(expected, rel=1e-6)  # summed up in float32


def test_the_paired_difference_is_average_minus_raw(setting):
    _, _, data, curves = setting
    metrics = evaluation.evaluate(curves, data, eval_step(linear))
    for name in ("accuracy", "loss"):
        difference = metrics["ema"][name] - metrics["raw"][name]
        assert metrics["ema-raw"][name] == pytest.approx(difference, abs=1e-12)
        assert metrics["ema-raw"][f"{name}_low"] < difference < metrics["ema-raw"][f"{name}_high"]


def test_a_score_function_of_another_task_needs_a_loss_only(setting):
    _, _, data, curves = setting

    def squared_error(apply_fn, variables, batch):
        error = apply_fn(variables, batch["image"], train=False)[:, 0] - batch["label"]
        return {"loss": jnp.square(error)}

    metrics = evaluation.evaluate(curves, data, eval_step(linear, squared_error))
    assert set(metrics["raw"]) == {"loss"}
    assert set(metrics["ema-raw"]) == {"loss", "loss_low", "loss_high", "distance"}


TYPES = ("bool", "uint8", "int8", "int32", "float16", "bfloat16", "float32")


def scores_of_types(apply_fn, variables, batch):
    """Scores of every type, each also over a count of 1 for each image, as what a text of one token has."""
    x = jnp.abs(20 * variables["params"][0, 0] * batch["image"][:, 0, 0, 0])
    scores = {kind: x > 9 if kind == "bool" else x.astype(kind) for kind in TYPES}
    return scores | {f"{kind}_ratio": (score, jnp.ones(len(x), jnp.uint8)) for kind, score in scores.items()}


def test_means_and_intervals_are_those_of_float64_whatever_the_type_of_the_scores(setting):
    """Of scores of images, and of items of whole sets, in any container."""
    images, normalization, data, curves = setting
    batch = {"image": normalization(jnp.asarray(images.image))}
    given = {name: scores_of_types(linear, curve, batch) for name, curve in curves.items()}
    values = {name: {kind: np.asarray(of[kind], np.float64) for kind in TYPES} for name, of in given.items()}
    sets = {}
    for name, of_weights in given.items():
        items = {f"{kind}_array": np.asarray(of_weights[kind]) for kind in TYPES}
        items |= {f"{kind}_list": of_weights[kind].tolist() for kind in TYPES}
        items |= {f"{kind}_device": of_weights[kind] for kind in TYPES}
        items["mixed_set"] = of_weights["bool"].astype("int32" if name == "raw" else "bool")
        sets[name] = {metric: (float(values[name][_kind(metric)].mean()), x) for metric, x in items.items()}
    metrics = evaluation.evaluate(curves, data, eval_step(linear, scores_of_types), sets)
    names = [
        *TYPES,
        *(f"{kind}_{what}" for kind in TYPES for what in ("ratio", "array", "list", "device")),
        "mixed_set",
    ]
    for metric in names:
        raw, ema = (values[name][_kind(metric)] for name in ("raw", "ema"))
        assert (ema < raw).any()
        expected = [np.mean(ema - raw), *stats.t.interval(0.95, 22, np.mean(ema - raw), stats.sem(ema - raw))]
        if metric in ("bool", "bool_array", "bool_list", "bool_device"):
            expected = intervals.paired_proportions_interval(ema == 1, raw == 1)
        found = [metrics["ema-raw"][f"{metric}{end}"] for end in ("", "_low", "_high")]
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=metric)
        np.testing.assert_allclose([metrics[c][metric] for c in ("raw", "ema")], [raw.mean(), ema.mean()], rtol=1e-12)


def _kind(metric):
    return metric.partition("_")[0].replace("mixed", "bool")


def test_agreement_is_the_share_of_equal_predictions():
    ours = {"loss": np.zeros(4), "predicted": np.array([0, 1, 2, 2])}
    theirs = {"loss": np.zeros(4), "predicted": np.array([0, 1, 2, 0])}
    assert score_metrics.compare(ours, theirs)["agreement"] == 0.75


def test_the_interval_of_paired_proportions_is_agresti_and_mins():
    # 20 gained, 10 lost, of 100: their formula worked out by hand, with z = 1.959964.
    gained, lost, both = np.zeros((3, 100), bool)
    gained[:20] = lost[20:30] = both[30:80] = True
    difference, low, high = intervals.paired_proportions_interval(gained | both, lost | both)
    assert difference == pytest.approx(0.1)
    half_width = 1.959964 * np.sqrt(20.5 + 10.5 - 10**2 / 102) / 102
    assert low == pytest.approx(10 / 102 - half_width, abs=1e-7)
    assert high == pytest.approx(10 / 102 + half_width, abs=1e-7)


def test_the_interval_of_paired_proportions_holds_what_it_promises():
    """10,000 simulated test sets of 500 images with 3 % gained and 1 % lost: 95 % coverage."""
    rng = np.random.default_rng(0)
    cells = rng.choice(3, p=(0.03, 0.01, 0.96), size=(10_000, 500))
    covered = 0
    for row in cells:
        _, low, high = intervals.paired_proportions_interval(row == 0, row == 1)
        covered += low <= 0.02 <= high
    # 4 binomial standard errors at 95 % are 0.9 points; the interval is approximate, and known to lie within a point.
    assert 0.94 <= covered / 10_000 <= 0.97


def test_identical_predictions_still_have_an_interval():
    same = np.ones(50, bool)
    difference, low, high = intervals.paired_proportions_interval(same, same)
    assert difference == 0
    assert low < 0 < high


def test_the_interval_of_a_mean_is_students():
    # Four values with mean 2.5 and standard deviation 1.290994; t of 3 degrees of freedom is 3.182446.
    mean, low, high = intervals.mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - 3.182446 * 0.6454972, 2.5 + 3.182446 * 0.6454972), rel=1e-6)


def test_one_image_has_no_interval_and_causes_no_warning():
    scores = {"loss": np.array([0.5]), "accuracy": np.array([True]), "predicted": np.array([3])}
    metrics = score_metrics.compare(scores, {"loss": np.array([2.0]), "accuracy": np.array([False]), "predicted": [1]})
    assert (metrics["loss"], metrics["accuracy"], metrics["agreement"]) == (-1.5, 1.0, 0.0)
    bounds = [metrics[f"{name}_{end}"] for name in ("loss", "accuracy") for end in ("low", "high")]
    assert np.isnan(bounds).all()


def test_calibration_error_weighs_the_gap_of_each_bin_by_its_images():
    confidence = np.array([0.65, 0.65, 0.65, 0.95, 1.0])
    correct = np.array([True, False, False, True, True])
    # Bin (0.6, 0.667]: three images, sum of gaps 1 - 1.95. Bin (0.933, 1]: two images, 2 - 1.95.
    assert score_metrics.calibration_error(confidence, correct) == pytest.approx((0.95 + 0.05) / 5)
