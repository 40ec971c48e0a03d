"""Which changes of its config a run may be continued with: run_config.check_same_run."""

import pytest
from conftest import digits_config, resolve

from runtime import run_config
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


def test_where_a_run_started_from_cannot_be_changed_even_if_accepted():
    old, new = (resolve(digits_config(init_from=folder)) for folder in ("", "runs/b"))
    with pytest.raises(UserError, match=r"runs/a holds a run with init_from = '', not 'runs/b'"):
        run_config.check_same_run(old, new, "runs/a", accept=True)
