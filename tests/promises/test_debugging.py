"""Profiles and prints show what a run does."""

import gzip
import json

import jax
import pytest
from conftest import digits_config

import train


@pytest.mark.slow
def test_a_profile_holds_the_chosen_steps_and_changes_nothing_else(tmp_path):
    config = digits_config(steps_per_dispatch=1)  # of a chunk the trace holds the number of its first step only
    train.train_and_evaluate(config, tmp_path / "without")
    config.profile = (7, 9)
    train.train_and_evaluate(config, tmp_path / "with")
    [trace] = (tmp_path / "with" / "profile").rglob("perfetto_trace.json.gz")
    [_] = (tmp_path / "with" / "profile").rglob("*.xplane.pb")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {event["args"]["step_num"] for event in events if event.get("name") == "train"} == {"7", "8"}
    assert not (tmp_path / "without" / "profile").exists()
    assert (tmp_path / "with" / "metrics.jsonl").read_bytes() == (tmp_path / "without" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_profile_of_the_last_steps_is_written_at_the_end(tmp_path):
    train.train_and_evaluate(digits_config(profile=(19, 30)), tmp_path)
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))


@pytest.mark.slow
def test_a_profile_of_steps_that_are_done_already_is_said_to_be_left_out(tmp_path, capsys):
    train.train_and_evaluate(digits_config(), tmp_path)
    train.train_and_evaluate(digits_config(profile=(7, 9), duration="40 steps"), tmp_path)
    assert "Steps 7 .. 9 are not traced: the run continues at step 20" in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()


@pytest.mark.slow
def test_without_jit_a_run_shows_values_and_what_it_prints(tmp_path, capfd, task):
    labels = []

    def loss_fn(params, state, batch, **kwargs):
        objective, aux = train.loss_fn(params, state, batch, **kwargs)
        jax.debug.print("at step {} the objective is {}", state.step, objective)
        if not isinstance(batch["label"], jax.core.Tracer):  # as it is while shapes are inferred
            labels.extend(batch["label"].tolist())
        return objective, aux

    with jax.disable_jit():
        train.train_and_evaluate(digits_config(duration="1 steps", task=task(loss_fn=loss_fn)), tmp_path)
    assert "at step 0 the objective is" in capfd.readouterr().out
    assert len(labels) == 32


def test_prints_of_the_jitted_step_show_up_as_well(tmp_path, capfd, task):
    def loss_fn(params, state, batch, **kwargs):
        jax.debug.print("step {}", state.step)
        return train.loss_fn(params, state, batch, **kwargs)

    train.train_and_evaluate(digits_config(duration="2 steps", task=task(loss_fn=loss_fn)), tmp_path)
    jax.effects_barrier()
    printed = capfd.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("step ") and "/" not in line] == [
        "step 0",
        "step 1",
    ]
