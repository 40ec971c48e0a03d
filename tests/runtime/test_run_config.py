"""Which changes of its config a run may be continued with: run_config.check_same_run."""

import functools
import importlib
import json
import re

import pytest
from conftest import create_experiment, digits_config, get_config, resolve

from runtime import fields, run_config
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({}, []),
        ({"duration": "640 examples"}, []),  # 20 steps in other words
        ({"duration": "30 steps"}, ["duration: 20 before, 30 now"]),
        ({"log_every": "1 steps"}, ["log_every: 5 before, 1 now"]),
        ({"averages__ema__decay": 0.5}, ["averages.ema.decay: 0.9 before, 0.5 now"]),
    ],
)
def test_a_run_may_be_continued_with_what_changes_no_result_so_far(overrides, said):
    old, new = (resolve(config) for config in (digits_config(), digits_config(**overrides)))
    assert run_config.check_same_run(old, new, "runs/a") == said


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"seed": 1}, "seed: 0 before, 1 now"),
        ({"optimizer__learning_rate": 0.2}, "optimizer.learning_rate: 0.1 before, 0.2 now"),
        ({"duration": "10 steps"}, "duration: 20 before, 10 now"),
        ({"eval_every": "50%", "duration": "30 steps"}, "eval_every: 10 before, 15 now"),
    ],
)
def test_another_run_is_refused_with_the_differing_fields(overrides, field):
    old, new = (resolve(config) for config in (digits_config(), digits_config(**overrides)))
    with pytest.raises(UserError, match=field):
        run_config.check_same_run(old, new, "runs/a")


@pytest.mark.parametrize(("name", "needed"), [("digits", ()), ("examples.dqn", ("target",))])
def test_a_field_may_change_only_where_no_result_so_far_depends_on_it(name, needed):
    """Any field of the config, and any that a fork may add to it, of which the name only begins alike."""
    free = {
        "log_every", "snapshot_every", "steps_per_dispatch", "eval_batch_size", "keep_checkpoints", "best_metric",
        "best_curve", "profile", "recompute_batches", "data.mode", "data.workers",
    }  # fmt: skip
    made = get_config("digits") if name == "digits" else importlib.import_module(f"{name}.configs.default").get_config()
    found = fields.flatten(json.loads(run_config.to_json(resolve(made))))
    assert free <= found.keys() or name != "digits"
    assert name == "digits" or {"data.acts", "averages.target.tau"} <= found.keys()
    others = {"duration", "num_train"}  # of which other tests tell
    for changed in {*found, *(f"{field}_too" for field in found)} - others:
        old, new = (nested({**found, changed: value}) for value in (1, 2))
        is_needed = changed.startswith(tuple(f"averages.{average}." for average in needed))
        if changed in free or (changed.startswith(("metrics.", "averages.")) and not is_needed):
            changes = run_config.check_same_run(old, new, "runs/a", needed=needed)
            assert changes == [f"{changed}: 1 before, 2 now"]
        else:
            with pytest.raises(UserError, match=re.escape(changed)):
                run_config.check_same_run(old, new, "runs/a", needed=needed)


def nested(flat):
    """A config of its fields by name."""
    config = {}
    for name, value in flat.items():
        *groups, field = name.split(".")
        functools.reduce(lambda group, key: group.setdefault(key, {}), groups, config)[field] = value
    return config


def test_a_longer_duration_is_refused_where_the_learning_rate_is_annealed_to_its_end():
    configs = (digits_config(optimizer__schedule="cosine", duration=d) for d in ("20 steps", "30 steps"))
    old, new = (resolve(config) for config in configs)
    with pytest.raises(UserError, match=r"optimizer.decay: 20 before, 30 now"):
        run_config.check_same_run(old, new, "runs/a")


def test_a_longer_duration_is_refused_with_what_percentages_have_to_do_with_it():
    configs = (digits_config(eval_every="10%", duration=d) for d in ("20 steps", "30 steps"))
    old, new = (resolve(config) for config in configs)
    with pytest.raises(UserError) as error:
        run_config.check_same_run(old, new, "runs/a")
    # What was changed comes first.
    assert str(error.value).splitlines()[1:4] == [
        "duration: 20 before, 30 now",
        "eval_every: 2 before, 3 now",
        "(Fields given in % follow from the duration; in steps or epochs they do not.)",
    ]


def test_fractions_of_steps_are_written_as_decimals():
    configs = (digits_config(eval_every=every) for every in ("2 epochs", "80 examples"))
    old, new = (resolve(config) for config in configs)
    with pytest.raises(UserError, match=r"\neval_every: 56.3125 before, 2.5 now\n"):
        run_config.check_same_run(old, new, "runs/a")


def test_the_config_of_a_run_differs_in_nothing_from_itself(tmp_path, capsys):
    """Although some of what it stores comes to be known only after it has been compared."""
    run_config.write(create_experiment(digits_config()).config, tmp_path)
    assert "proportions" in json.loads((tmp_path / "config.json").read_text())
    create_experiment(digits_config(), tmp_path)
    assert "Differs" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        ({}, None),
        ({"averages__ema__decay": 0.5}, None),  # of which an older run has nothing that is newer
        ({"max_rejected_steps": 7}, "max_rejected_steps: absent before, 7 now"),
        ({"augment__flip": True}, "augment.flip: absent before, True now"),
    ],
)
def test_a_field_that_is_newer_than_a_run_keeps_none_from_continuing_while_it_has_its_default(
    tmp_path, capsys, overrides, refused
):
    run_config.write(resolve(digits_config()), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for name in ("splits", "evaluate_sets_every", "max_rejected_steps", "chunked", "num_train", "metrics"):
        del stored[name]
    del stored["augment"]["flip"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = digits_config(**overrides)
    if refused:
        with pytest.raises(UserError, match=refused):
            create_experiment(config, tmp_path)
    else:
        create_experiment(config, tmp_path)
        expected = ["averages.ema.decay: 0.9 before, 0.5 now"] if overrides else []
        out = capsys.readouterr().out
        assert [line for line in out.splitlines() if "Differs" in line] == [
            f"Differs from the run's config: {change}" for change in expected
        ]


@pytest.mark.parametrize("every", ["3 steps", "1 epochs"])
@pytest.mark.parametrize("num_train", [900, 902])
def test_other_data_are_named_before_what_follows_from_them(num_train, every):
    config = digits_config(checkpoint_every=every, duration="2 epochs")
    old, new = resolve(config), resolve(config, num_train=num_train)
    message = f"runs/a holds a run of another config:\nthe data set has 901 training examples before, {num_train} now"
    with pytest.raises(UserError, match=message):
        run_config.check_same_run(old, new, "runs/a")
    changes = run_config.check_same_run(old, new, "runs/a", accept=True)
    assert changes[0].startswith("the data set has")
    assert any(change.startswith("checkpoint_every") for change in changes) == (every == "1 epochs")


def test_where_a_run_started_from_cannot_be_changed_even_if_accepted():
    old, new = (resolve(digits_config(init_from=folder)) for folder in ("", "runs/b"))
    with pytest.raises(UserError, match=r"runs/a holds a run with init_from = '', not 'runs/b'"):
        run_config.check_same_run(old, new, "runs/a", accept=True)
