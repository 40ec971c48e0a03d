import re
from fractions import Fraction

import ml_collections
import pytest
from conftest import check, digits_config, resolve

import averaging
import input_pipeline
import settings
import train
from configs import default
from runtime import averages, run_config
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("seed", -1, "in [0, 2**32)"),
        ("num_validation", -1, "at least 0"),
        ("label_noise", 1.0, "in [0, 1)"),
        ("batch_size", 0, "at least 1"),
        ("duration", "ten epochs", '"10 epochs"'),
        ("duration", "50%", "percentage of itself"),
        ("duration", "0 steps", "longer than 0"),
        ("log_every", "0%", "longer than 0"),
        ("eval_every", "often", '"10 epochs"'),
        ("checkpoint_every", "", '"10 epochs"'),
        ("keep_checkpoints", 0, "at least 1"),
        ("best_curve", "average", "raw, ema"),
        ("best_metric", "error", "'accuracy', 'loss'"),
        ("max_rejected_steps", 0, "at least 1"),
        ("steps_per_dispatch", -1, "at least 0"),
        ("model__name", "rnn", "'mlp', 'cnn'"),
        ("model__dtype", "float16", "'float32', 'bfloat16'"),
        ("model__hidden_sizes", (8, 0), "positive integers"),
        ("model__dropout", 0.5, "--config.model.dropout=0.0"),
        ("model__depth", 18, "--config.model.depth=20"),
        ("accumulate", 0, "at least 1"),
        ("init_weights", "ema", "init_from is empty"),
        ("profile", (3, 2), "first below end"),
        ("profile", (1, 2, 3), "first below end"),
        ("profile", (1.5, 3), "two integers"),
        ("profile", ("a", "b"), "two integers"),
        ("augment__crop_padding", -1, "in [0, 1000]"),
        ("augment__cutout", -1, "in [0, 1000]"),
        ("augment__mixup", -0.5, "at least 0"),
        ("augment__cutmix", -0.5, "at least 0"),
        ("augment__erasing", 1.1, "in [0, 1]"),
        ("augment__rand_augment", 11, "in [0, 10]"),
        ("augment__magnitude", 11, "in [0, 10]"),
        ("augment__magnitude", 5, "augment.rand_augment is 0; leave it at its default, --config.augment.magnitude=9"),
        ("loss__label_smoothing", 1.0, "in [0, 1)"),
        ("loss__l2_penalty", -1.0, "at least 0"),
        ("optimizer__learning_rate", float("nan"), "finite"),
        ("optimizer__schedule", "linear", "'constant', 'cosine', 'one_cycle', 'wsd'"),
        ("optimizer__warmup", "a while", '"10 epochs"'),
        ("optimizer__momentum", 1.0, "in [0, 1)"),
        ("optimizer__clip_norm", -1.0, "at least 0"),
        ("optimizer__name", "adam", "'sgd', 'adamw', 'lion', 'muon'"),
        ("optimizer__b1", 0.5, "optimizer 'sgd' has no such field; leave it at its default, --config.optimizer.b1=0.9"),
        ("optimizer__weight_decay", -1.0, "at least 0"),
        ("optimizer__gradient_noise", -1.0, "at least 0"),
        ("optimizer__decay", "10%", "schedule 'constant' has no such field"),
        ("optimizer__decay", "0%", "longer than 0"),
        ("averages__ema__half_life", "long", '"10 epochs"'),
        ("averages__ema__kind", "emma", "'none', 'ema', 'warmup_ema', 'running_mean'"),
        (
            "averages__ema__tau",
            0.5,
            "kind 'ema' has no such field; leave it at its default, --config.averages.ema.tau=0.005",
        ),
        ("averages__ema__period", "0 steps", "longer than 0"),
        ("averages__ema__start", "later", '"10 epochs"'),
        ("averages__ema__every", "0%", "longer than 0"),
        ("averages__ema__restart_every", "never", '"10 epochs"'),
        ("averages__ema__batch_stats", "copied", "'average', 'copy', 'recompute'"),
        ("recompute_batches", 0, "at least 1"),
        ("recompute_batches", 7, "no average has batch_stats = 'recompute'"),
        ("snapshot_every", "0 steps", "longer than 0"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field_and_what_would_be_right(field, value, right):
    with pytest.raises(UserError) as error:
        check(digits_config(**{field: value}))
    message = str(error.value)
    assert field.replace("__", ".") in message
    assert str(value) in message
    assert right in message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("average", "message"),
    [
        ({"kind": "ema", "decay": 1.0}, "averages.a.decay = 1.0: must be in [0, 1)"),
        ({"kind": "polynomial_decay_mean", "eta": -1.0}, "averages.a.eta = -1.0: must be at least 0"),
        ({"kind": "power_ema", "width": 0.3}, "averages.a.width = 0.3: must be above 0 and at most 1 / sqrt(12)"),
        ({"kind": "soft_update", "tau": 0.0}, "averages.a.tau = 0.0: must be in (0, 1]"),
    ],
)
def test_what_the_formula_of_an_average_does_not_allow_is_refused(average, message):
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(digits_config(averages={"a": average}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__name": "resnet", "model__depth": 152}, "model.depth = 152: must be one of 18, 20, 34, 50, 56, 101"),
        ({"model__name": "wide_resnet", "model__depth": 20}, "model.depth = 20: must be 6 n + 4"),
        ({"optimizer__momentum": 0.0, "optimizer__nesterov": True}, "optimizer.nesterov = True: there is no momentum"),
        (
            {"averages": {"a": {"kind": "hard_update", "every": "2 steps"}}},
            "averages.a.every = '2 steps': kind 'hard_update' moves at its own period",
        ),
        ({"optimizer__schedule": "one_cycle"}, "optimizer.warmup = '0 steps': schedule 'one_cycle' rises during it"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check(digits_config(**{"model__hidden_sizes": (256, 256)} | overrides))


def test_every_wrong_field_is_named_at_once():
    with pytest.raises(UserError) as error:
        check(digits_config(batch_size=0, label_noise=2.0, duration="soon"))
    for field in ("batch_size", "label_noise", "duration"):
        assert field in str(error.value)


def test_an_unknown_field_is_refused_with_the_nearest_one():
    config = digits_config()
    config.averages.ema["decy"] = 0.9
    config["sed"] = 1
    with pytest.raises(UserError) as error:
        check(config)
    assert "averages.ema.decy is unknown; did you mean averages.ema.decay?" in str(error.value)
    assert "sed is unknown; did you mean seed?" in str(error.value)


def test_a_wrong_type_or_a_missing_field_is_refused():
    config = digits_config().to_dict()
    config["batch_size"] = 32.0
    del config["seed"]
    with pytest.raises(UserError) as error:
        check(config)
    assert "batch_size = 32.0 is of type float; must be of type int, such as 128" in str(error.value)
    assert "seed is missing; its default is 0" in str(error.value)


@pytest.mark.parametrize("name", ["raw", "train", "a b", "up/down"])
def test_an_average_has_a_name_of_its_own(name):
    config = digits_config()
    config.averages[name] = default.average("ema")
    with pytest.raises(UserError, match="the name must be"):
        check(config)


@pytest.mark.parametrize(
    ("overrides", "num_devices", "message"),
    [
        ({"batch_size": 902}, 1, "batch_size = 902: must be at most 901"),
        ({"batch_size": 32, "num_validation": 880}, 1, "batch_size = 32: must be at most 21"),
        ({"num_validation": 901}, 1, "num_validation = 901: must be below the 901 training images"),
        ({"batch_size": 34}, 8, "batch_size = 34: must be a multiple of 8, .*nearest is 32"),
        ({"batch_size": 34, "accumulate": 3}, 1, "multiple of 3, the number of devices times accumulate; .* is 33"),
        ({"batch_size": 900, "accumulate": 7}, 1, "must be a multiple of 7, .*; the nearest is 896"),
        (
            {"batch_size": 32, "accumulate": 1000},
            1,
            "must be a multiple of 1000, .*; the data set has only 901 examples",
        ),
        ({"profile": (20, 25)}, 1, r"profile = \(20, 25\): training ends at step 20"),
        ({"batch_size": 32, "accumulate": 3}, 2, "multiple of 6, .*; the nearest is 30"),
        (
            {"optimizer__schedule": "wsd", "optimizer__decay": "60%", "optimizer__warmup": "50%"},
            1,
            "'50%' and optimizer.decay = '60%': too long for the training of 20 steps",
        ),
        ({"optimizer__warmup": "21 steps"}, 1, "optimizer.warmup = '21 steps': too long for the training of 20 steps"),
        (
            {"optimizer__warmup": "100%", "optimizer__schedule": "cosine"},
            1,
            "optimizer.warmup = '100%': too long for the training of 20 steps",
        ),
    ],
)
def test_what_does_not_fit_the_data_or_the_devices_is_refused(overrides, num_devices, message):
    with pytest.raises(UserError, match=message):
        resolve(digits_config(**overrides), num_devices=num_devices)


def test_durations_become_exact_numbers_of_steps():
    config = resolve(
        digits_config(
            duration="10 epochs", log_every="2%", eval_every="1 epoch", checkpoint_every="3200 examples",
            optimizer__warmup="1%", optimizer__schedule="cosine", num_validation=1,
        )
    )  # fmt: skip
    assert config.duration == 282  # 281.25 rounded up
    assert config.log_every == Fraction("5.625")
    assert config.eval_every == Fraction("28.125")
    assert config.checkpoint_every == 100
    assert config.optimizer.warmup == 3  # 2.8125 rounded up
    assert config.optimizer.decay == 279


@pytest.mark.parametrize(
    ("schedule", "phases"),
    [("constant", (3, 0, 0)), ("cosine", (3, 0, 17)), ("one_cycle", (3, 0, 17)), ("wsd", (3, 12, 5))],
)
def test_the_phases_of_the_learning_rate_fill_the_training(schedule, phases):
    config = digits_config(optimizer__schedule=schedule, optimizer__warmup="11%")  # of 20 steps: 2.2
    if schedule == "wsd":
        config.optimizer.decay = "5 steps"
    optimizer = resolve(config).optimizer
    assert (optimizer.warmup, optimizer.stable, optimizer.decay) == phases


def test_a_half_life_means_the_same_share_of_training_whatever_the_batch_size():
    for batch_size in (16, 32, 64):
        config = digits_config(batch_size=batch_size, duration="64 epochs", averages__ema__half_life="5%")
        num_steps = 64 * 901 / batch_size
        assert resolve(config).averages.ema.decay ** (0.05 * num_steps) == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("every", ["1 steps", "4 steps", "3%"])
@pytest.mark.parametrize("kind", ["ema", "warmup_ema"])
def test_a_half_life_is_the_same_share_of_training_whatever_the_interval(kind, every):
    config = digits_config(duration="1000 steps")
    config.averages = {"a": {"kind": kind, "half_life": "5%", "every": every}}
    average = averages.create("a", resolve(config).averages.a)
    firings = 50 / average.every
    assert dict(average.arguments)["decay"] ** firings == pytest.approx(0.5, rel=1e-12)


def test_an_average_that_is_no_dict_or_too_long_to_count_is_refused():
    config = digits_config()
    config.averages = {"a": "ema"}
    with pytest.raises(UserError, match=r"averages.a = 'ema': must be a dict such as default.average"):
        check(config)
    config.averages = {"a": default.average("hard_update", period=50)}
    with pytest.raises(
        UserError, match=r"averages.a.period = 50 is of type int; must be of type str, such as '1000 steps'"
    ):
        check(config)
    with pytest.raises(UserError) as error:
        resolve(digits_config(averages__ema__start="5000000000 steps", profile=(7000, 7001)))
    assert str(error.value).splitlines() == [
        "profile = (7000, 7001): training ends at step 20",
        "averages.ema.start = '5000000000 steps': is 5e+09 steps; must be below 2**31 steps",
    ]


def test_what_a_wrong_field_makes_wrong_elsewhere_is_not_reported_with_it():
    config = digits_config(seed=-1, model__name="resent", optimizer__name="sgdd", best_curve="x", optimizer__b1=0.5)
    config.averages["a/b"] = default.average("ema")
    config.sed = 1
    with pytest.raises(UserError) as error:
        check(config)
    names = [re.split("[ :]", line)[0] for line in str(error.value).splitlines()[1:]]
    # Not what depends on other fields: `optimizer.b1`, which sgd does not have, `best_curve` and the average's name.
    assert sorted(names) == ["model.name", "optimizer.name", "sed", "seed"]
    assert "did you mean 'resnet'?" in str(error.value)


@pytest.mark.parametrize("name", ["../mnist", "mnist/../x", "/mnist", "huggingface:mnist", "mnist:latest", "", "a b"])
def test_the_name_of_a_data_set_leads_nowhere_else(name):
    with pytest.raises(UserError, match="must be a name, as in 'mnist'"):
        input_pipeline.find_source(name)


def test_a_decay_that_a_half_life_overrules_is_said_to_be_unused():
    assert check(digits_config(averages__ema__half_life="5%")) == [
        "averages.ema.decay = 0.9 is not used: half_life = '5%' sets it"
    ]
    assert check(digits_config()) == []
    config = digits_config()
    config.averages.ema = default.average("ema", half_life="5%")
    assert check(config) == []


def test_a_kind_of_ones_own_needs_its_fields_and_its_numbers_are_checked(monkeypatch):
    def cyclic_mean(cycle):
        if cycle < 1:
            raise ValueError(f"cycle = {cycle}: must be at least 1")
        return averaging.restart_every(averaging.running_mean(), cycle)

    monkeypatch.setattr(averaging, "SCHEDULES", {**averaging.SCHEDULES, "cyclic_mean": cyclic_mean})
    monkeypatch.setitem(settings.RULES, "averages.*.kind", lambda value: "")
    config = digits_config()
    config.averages = {"a": {"kind": "cyclic_mean"}}
    with pytest.raises(
        UserError, match=r"SCHEDULES\['cyclic_mean'\] takes cycle, which configs/default.py does not have"
    ):
        check(config)

    def average(kind, **fields):
        return ml_collections.ConfigDict({**original(kind).to_dict(), "cycle": "10%", **fields})

    original = default.average
    monkeypatch.setattr(default, "average", average)
    config = digits_config()
    config.averages = {"a": {"kind": "cyclic_mean"}}
    assert averages.create("a", resolve(config).averages.a).arguments == (("cycle", 2),)
    config.averages.a = {"kind": "cyclic_mean", "cycle": "0 steps"}
    with pytest.raises(UserError, match=r"averages.a.cycle = 0: must be at least 1"):
        resolve(config)


def test_horizons_round_up_to_whole_updates():
    config = digits_config(duration="1001 steps")
    horizons = {"start": "10%", "every": "0.5%", "restart_every": "33%"}
    config.averages = {"a": {"kind": "running_mean", **horizons}, "b": {"kind": "hard_update", "period": "7%"}}
    a, b = (averages.create(name, average) for name, average in resolve(config).averages.items())
    assert (a.start, a.every, a.restart_every) == (101, 6, 331)
    assert b.arguments == (("period", 71),)


def test_a_resolved_config_can_be_read_back(tmp_path):
    config = digits_config(log_every="0.5 epochs", snapshot_every="33%", init_from="1/2", averages__ema__half_life="3%")
    resolved = resolve(config)
    run_config.write(resolved, tmp_path)
    assert run_config.read(tmp_path) == resolved
    assert run_config.to_json(run_config.read(tmp_path)) == run_config.to_json(resolved)


def test_removed_averages_are_gone_and_the_best_curve_is_what_is_left():
    config = digits_config()
    config.averages.added = default.average("ema")  # first in the alphabet, and still not the best curve
    config.averages.slow = default.average("ema")
    assert resolve(config).best_curve == "ema"
    config.averages.added.kind = "none"
    config.averages.ema.kind = "none"
    assert list(resolve(config).averages) == ["slow"]
    assert resolve(config).best_curve == "slow"
    config.averages.slow.kind = "none"
    assert resolve(config).best_curve == "raw"
    assert dict(resolve(config).averages) == {}


def test_a_workdir_that_cannot_be_used_is_refused_before_a_data_set_is_looked_for(tmp_path, monkeypatch):
    """Which may take a download."""
    monkeypatch.delattr(input_pipeline, "find_source")
    config = digits_config(dataset="imagenet")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        settings.prepare(config, train.find_task(config.task), tmp_path, "refuse")
    (tmp_path / "config.json").unlink()
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="has metrics or snapshots of a run and no checkpoint"):
        settings.prepare(config, train.find_task(config.task), tmp_path, "refuse")
