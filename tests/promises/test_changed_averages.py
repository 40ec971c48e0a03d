import json

import jax
import numpy as np
import pytest
from conftest import digits_config

import train
from configs import default
from runtime.stored import find_checkpoint, list_stored


@pytest.mark.slow
def test_a_run_may_go_on_with_other_averages_and_none_starts_at_random(tmp_path, capsys):
    config = digits_config()
    config.averages.changed = default.average("soft_update", tau=0.5)
    config.averages.dropped = default.average("ema", decay=0.5)
    before, _ = train.train_and_evaluate(config, tmp_path)
    after = digits_config(duration="21 steps")
    after.averages.changed = default.average("soft_update", tau=0.25)
    after.averages.new = default.average("soft_update", tau=0.25)
    state, _ = train.train_and_evaluate(after, tmp_path)
    assert {name: int(count) for name, count in state.ema_count.items()} == {"ema": 21, "changed": 1, "new": 1}

    def moved(step_size, start):
        return jax.tree.map(lambda a, p: np.float64(a) + step_size * (np.float64(p) - a), start, state.params)

    for name, expected in {
        "ema": moved(0.1 / (1 - 0.9**21), before.ema_params["ema"]),
        "changed": moved(0.25, before.params),
        "new": moved(0.25, before.params),
    }.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-8), state.ema_params[name], expected)
    said = capsys.readouterr().out
    assert "averages.changed.tau: 0.5 before, 0.25 now" in said
    assert "averages.new.tau: absent before, 0.25 now" in said
    assert "averages.dropped.decay: 0.5 before, absent now" in said
    lines = (
        "The average 'changed' was soft_update(tau=0.5) and is now soft_update(tau=0.25): it starts anew from the "
        "restored parameters",
        "The average 'dropped' is dropped",
        "The average 'new' starts from the restored parameters",
    )
    assert "\n".join((f"Continuing {tmp_path} at step 20", *lines, "")) in said


@pytest.mark.slow
def test_an_average_switched_off_and_on_again_starts_from_the_restored_parameters(tmp_path):
    train.train_and_evaluate(digits_config(), tmp_path)
    off, _ = train.train_and_evaluate(digits_config(duration="25 steps", averages__ema__kind="none"), tmp_path)
    assert off.ema_params == {}
    on = digits_config(duration="26 steps", averages__ema__kind="soft_update", averages__ema__tau=0.25)
    on.averages.ema.decay = 0.999  # its default
    state, _ = train.train_and_evaluate(on, tmp_path)
    assert state.ema_count["ema"] == 1
    expected = jax.tree.map(lambda a, p: a + 0.25 * (p - a), off.params, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.ema_params["ema"], expected)


@pytest.mark.slow
def test_what_is_said_of_an_average_that_was_changed_is_exact(tmp_path, capsys):
    """Described from its new start on, its kernel makes it of the iterates since, as does the recursion in float64."""

    def run(duration, **fields):
        config = digits_config(duration=duration, snapshot_every="1 steps")
        config.averages.ema = default.average(**fields)
        state, _ = train.train_and_evaluate(config, tmp_path)
        return state, find_checkpoint(tmp_path, "latest").record

    run("20 steps", kind="ema", decay=0.9)
    changed = {"kind": "soft_update", "tau": 0.125}
    run("25 steps", **changed)
    assert "would lie on the random initialisation" not in capsys.readouterr().out  # it began with trained parameters
    state, record = run("30 steps", **changed)  # which the next start does not change again
    assert "starts anew" not in capsys.readouterr().out
    assert record.counts == {"ema": 10}
    described = json.loads((tmp_path / "averages.json").read_text())["ema"]
    assert (described["kind"], described["num_updates"], described["iterates_per_bin"]) == ("soft_update", 10, 1)
    stored = {place.record.step: place for place in list_stored(tmp_path)}
    raw = [stored[step].read_weights("raw", state)["params"] for step in range(20, 31)]
    recursion = jax.tree.map(np.float64, raw[0])
    for params in raw[1:]:
        recursion = jax.tree.map(lambda a, p: a + 0.125 * (np.float64(p) - a), recursion, params)
    kernel = [described["initial_weight"], *described["kernel"]]
    combined = jax.tree.map(lambda *leaves: np.tensordot(kernel, np.stack(leaves).astype(np.float64), 1), *raw)
    for expected, digits in ((recursion, 1e-6), (combined, 1e-5)):  # the kernel is stored with six digits
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, digits, digits),  # noqa: B023
            state.ema_params["ema"],
            expected,
        )
    # What was stored before says what the average was then.
    [average] = stored[15].record.averages
    assert (average.kind, dict(average.arguments)["decay"], stored[15].record.counts) == ("ema", 0.9, {"ema": 15})
    [average] = stored[23].record.averages
    assert (average.kind, dict(average.arguments), stored[23].record.counts) == (
        "soft_update",
        {"tau": 0.125},
        {"ema": 3},
    )
