"""Q-learning as a fork: its replay, its targets, its evaluation, and that it resumes."""

import importlib.util
import json
import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, check, command, copy, create_experiment, read_metrics
from random_keys import drawn_twice

import train
from configs import default as project
from examples import replay
from examples.dqn import cartpole, environments
from examples.dqn.configs import default, minatar_breakout
from examples.dqn.train import TASK, choose, create_model, loss_fn, play
from runtime.errors import UserError
from runtime.stored import find_checkpoint
from tools.finished import FinishedRun

CARTPOLE = environments.find("CartPole-v1")


def dqn_config(**averages):
    config = default.get_config()
    config.duration = "40 steps"
    config.log_every = "10 steps"
    config.eval_every = config.checkpoint_every = "20 steps"
    config.data.environments, config.data.warmup, config.data.buffer_size = 4, 20, 64
    config.averages = averages or config.averages
    return config


@pytest.fixture(scope="module")
def experiment():
    return create_experiment(dqn_config())


def test_the_buffer_holds_what_actions_led_to_and_tells_the_time_limit_from_a_fall(experiment):
    memory = experiment.state.memory
    upright = cartpole.State(*jnp.zeros((4, 4)), time=jnp.int32([0, 498, 499, 499]))
    fallen = upright._replace(angle=jnp.array([0.0, 0.0, 0.0, 0.3]))  # 17 degrees
    observation = jnp.stack(fallen[:4], axis=1)
    memory = memory | {"environments": fallen, "observation": observation, "written": jnp.int32(62)}
    after = replay.advance(cartpole, memory, jax.random.key(0), lambda keys, observation: jnp.ones(4, jnp.int32))
    rows = [62, 63, 0, 1]  # of 64: the latest overwrite the oldest
    stored = jax.tree.map(lambda x: np.asarray(x)[rows], after["buffer"])
    np.testing.assert_array_equal(stored["action"], [1, 1, 1, 1])
    np.testing.assert_array_equal(stored["observation"], observation)
    np.testing.assert_array_equal(stored["terminated"], [False, False, False, True])
    # Pushed from rest, a cart is where it was and moves; the start of a new episode would be elsewhere.
    np.testing.assert_array_equal(stored["next_observation"][:, 0], np.zeros(4))
    assert (stored["next_observation"][:, 1] > 0.1).all()
    np.testing.assert_array_equal(after["environments"].time, [1, 499, 0, 0])
    np.testing.assert_array_equal(after["observation"], jnp.stack(after["environments"][:4], axis=1))
    assert int(after["written"]) == 2


def test_only_transitions_that_happened_are_drawn(experiment):
    assert int(experiment.state.memory["seen"]) == 20
    untouched = experiment.state.memory["buffer"]["reward"][24:]
    assert not untouched.any()
    make_batch = jax.jit(experiment.train_data.batch)
    for step in range(5):
        batch, memory = make_batch(experiment.state.replace(step=jnp.int32(step)))
        assert batch["observation"].shape == (128, 4)
        np.testing.assert_array_equal(batch["reward"], np.ones(128))
        assert int(memory["seen"]) == 24


def test_no_key_of_a_step_is_drawn_from_twice(experiment):
    assert drawn_twice(experiment.train_program, experiment.state, experiment.train_data) == []


def test_random_actions_become_rare():
    values = jnp.tile(jnp.array([0.0, 1.0]), (2000, 1))

    def share_of_worse_actions(epsilon):
        return float(np.mean(np.asarray(choose(jax.random.split(jax.random.key(1)), values, epsilon)) == 0))

    assert share_of_worse_actions(0.0) == 0
    # Half of the random ones, of 2,000; six standard errors.
    assert share_of_worse_actions(1.0) == pytest.approx(0.5, abs=6 * 0.5 / 2000**0.5)
    assert share_of_worse_actions(0.2) == pytest.approx(0.1, abs=6 * 0.3 / 2000**0.5)


def gradient(experiment, **fields):
    batch, _ = experiment.train_data.batch(experiment.state)
    loss = jax.jit(jax.grad(lambda params, state: loss_fn(params, state, batch, **fields)[0]))
    return loss(experiment.state.params, experiment.state)


@pytest.mark.slow
def test_without_a_target_the_gradient_does_not_go_through_what_is_learned_from(experiment):
    """At the start the target is a copy of the network, so both have the same values to learn from."""
    for double in (False, True):
        frozen = gradient(experiment, target="target", double=double)
        own = gradient(experiment, target="none", double=double)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), own, frozen)  # of float32


@pytest.mark.slow
def test_double_q_learning_chooses_by_the_network_and_values_by_the_target(experiment):
    state, batch = experiment.state, experiment.train_data.batch(experiment.state)[0]
    other = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), state.params)
    state = state.replace(ema_params={"target": other})
    own, slow, now = (
        np.asarray(state.apply_fn({"params": params}, batch[name], train=False), np.float64)
        for params, name in (
            (state.params, "next_observation"),
            (other, "next_observation"),
            (state.params, "observation"),
        )
    )
    assert (own.argmax(axis=1) != slow.argmax(axis=1)).any()
    taken = now[np.arange(128), batch["action"]]
    for double, chosen in ((False, slow.argmax(axis=1)), (True, own.argmax(axis=1))):
        later = np.where(batch["terminated"], 0, slow[np.arange(128), chosen])
        expected = np.mean((taken - 1 - 0.9 * later) ** 2)
        objective, (metrics, _) = loss_fn(state.params, state, batch, gamma=0.9, double=double)
        assert float(objective) == pytest.approx(expected, rel=1e-5)  # float32
        logged = {name: float(total) / count for name, (total, count) in metrics.items()}
        assert logged == pytest.approx({"loss": expected, "value": taken.mean()}, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "average", [project.average("soft_update", tau=1.0), project.average("hard_update", period="1 steps")]
)
def test_a_target_that_keeps_nothing_is_no_target(tmp_path, average):
    with_target, _ = train.train_and_evaluate(dqn_config(target=average), tmp_path / "target")
    config = dqn_config(target=project.average("none"))
    config.loss.target = "none"
    without, _ = train.train_and_evaluate(config, tmp_path / "none")
    assert not without.ema_params
    # Another program, which may round otherwise, and actions that may tip: in 40 steps neither happens.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), with_target.params, without.params
    )
    jax.tree.map(np.testing.assert_array_equal, with_target.params, with_target.ema_params["target"])


def test_the_target_is_no_other_name_of_the_network(experiment):
    state = copy(experiment.state)
    advanced, _ = train.train_step(state, experiment.train_data.batch(state)[0], experiment.loss_fn)
    apart = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), advanced.params, advanced.ema_params["target"])
    assert all(jax.tree.leaves(apart))
    expected = jax.tree.map(lambda old, new: old + 0.04 * (new - old), state.params, advanced.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7), advanced.ema_params["target"], expected)


def test_a_target_that_is_missing_is_named_before_anything_is_made():
    with pytest.raises(UserError, match=r"averages.target: kind = 'none', and the loss .* needs it"):
        check(dqn_config(target=project.average("none")))


def test_returns_are_those_of_greedy_episodes_in_gymnasium(experiment):
    """The same policy from the same starts, with gymnasium's own float64 physics."""
    state = experiment.state
    keys = jax.random.split(jax.random.key(3), 3)
    variables = {"params": state.params}
    rewards, values = play(state.apply_fn, variables, keys, CARTPOLE)
    for key, total, value in zip(keys, rewards.sum(axis=1), values, strict=True):
        environment = gymnasium.make("CartPole-v1")
        environment.reset(seed=0)
        observation = np.asarray(cartpole.reset(key)[0], np.float64)
        environment.unwrapped.state = observation
        start = np.asarray(state.apply_fn(variables, jnp.float32(observation), train=False))
        assert float(value) == pytest.approx(float(start.max()), rel=1e-6)
        expected, ended = 0, False
        while not ended:
            action = int(np.argmax(state.apply_fn(variables, jnp.float32(observation), train=False)))
            observation, reward, terminated, truncated, _ = environment.step(action)
            expected, ended = expected + reward, terminated or truncated
        assert float(total) == expected


def test_overestimation_is_the_value_above_the_discounted_return(experiment):
    weights = experiment.state.weights()
    found = TASK.evaluate(experiment, weights, "test")
    rewards, values = play(experiment.state.apply_fn, weights["raw"], experiment.eval_data["test"], CARTPOLE)
    returns = rewards.sum(axis=1)
    discounted = [sum(0.99**t for t in range(int(total))) for total in returns]
    value, items = found["raw"]["overestimation"]
    assert value == pytest.approx(np.mean(np.asarray(values, np.float64) - discounted), abs=1e-4)
    assert items is None
    np.testing.assert_array_equal(found["raw"]["return"][1], returns)
    assert len(returns) == replay.NUM_EPISODES


def test_an_environment_of_gymnax_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)  # what an import finds where it is not installed
    config = minatar_breakout.get_config()
    with pytest.raises(UserError, match=r"'Breakout-MinAtar': only 'CartPole-v1' .*: pip install .*gymnax>=1,<2"):
        create_experiment(config)


def test_convolutions_see_images_of_any_number_of_leading_axes_and_refuse_what_is_none():
    observation = jax.random.normal(jax.random.key(0), (2, 3, 10, 10, 4))
    example = observation[0, :1], jnp.zeros((1, 3))
    model = create_model(example, hidden_sizes=(8,), convolutions=(4,))
    variables = model.init(jax.random.key(1), example[0], train=False)
    values = model.apply(variables, observation, train=False)
    assert values.shape == (2, 3, 3)
    alone = model.apply(variables, observation[1, 2], train=False)
    np.testing.assert_allclose(values[1, 2], alone, rtol=1e-5, atol=1e-6)  # float32
    with pytest.raises(UserError, match=r"model.convolutions = \(4,\): observations are \[4\], no images; set it to"):
        create_model((jnp.zeros((1, 4)), jnp.zeros((1, 2))), convolutions=(4,))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("gymnax"), reason="gymnax is optional and not installed")
def test_an_environment_of_gymnax_is_learned_from_by_one_field(tmp_path):
    config = minatar_breakout.get_config()
    config.duration, config.eval_every = "40 steps", "40 steps"
    config.data.environments, config.data.warmup, config.data.buffer_size = 4, 20, 64
    state, scores = train.train_and_evaluate(config, tmp_path / "run")
    assert state.memory["buffer"]["observation"].shape == (64, 10, 10, 4)
    assert scores["raw"]["return"] >= 0
    for name, found in (("Pong", r"'Pong': must be one of .*Breakout-MinAtar"), ("Pendulum-v1", "actions are numbers")):
        with pytest.raises(UserError, match=found):
            environments.find(name)


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_interrupted(tmp_path):
    config = dqn_config()
    config.data.exploration = "10 steps"
    whole, _ = train.train_and_evaluate(config, tmp_path / "whole")
    config.duration = "20 steps"
    train.train_and_evaluate(config, tmp_path / "parts")
    config.duration = "40 steps"
    resumed, _ = train.train_and_evaluate(config, tmp_path / "parts")
    for field in ("params", "opt_state", "ema_params", "memory"):
        jax.tree.map(np.testing.assert_array_equal, getattr(whole, field), getattr(resumed, field))
    assert read_metrics(tmp_path / "whole", "raw") == read_metrics(tmp_path / "parts", "raw")


@pytest.mark.slow
def test_every_command_works_on_its_workdir(tmp_path):
    def run(*arguments: str) -> str:
        found = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    short = ["--config.duration=40 steps", "--config.eval_every=20 steps", "--config.snapshot_every=10 steps"]
    config, workdir = "examples/dqn/configs/default.py", f"{tmp_path}/run"
    train_it = command(f"--workdir={workdir}", *short, config=config)[1:]
    assert "return" in run(*train_it)
    assert "return" in run("main.py", f"--config={workdir}/config.json", f"--workdir={workdir}", "--mode=eval")
    assert "return" in run("-m", "tools.report", workdir)
    run("-m", "tools.posthoc", workdir, "--average=ema:half_life=50%", "--max_error=1")
    assert '"curve": "ema:half_life=50%"' in (tmp_path / "run" / "posthoc.jsonl").read_text()
    run("-m", "tools.export", workdir, "--average=target", f"--out={tmp_path}/out")
    assert "return" in json.loads((tmp_path / "out" / "weights.json").read_text())["scores"]["target"]
    refused = subprocess.run(
        [sys.executable, "-m", "tools.diagnose", workdir], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert FinishedRun.read(tmp_path / "run").config.task == "examples.dqn.train"
    assert find_checkpoint(tmp_path / "run", "latest").record.step == 40


@pytest.mark.parametrize(("task", "found"), [(None, "has no TASK"), (3, "has a TASK that is a int")])
def test_a_fork_without_a_task_is_refused(monkeypatch, task, found):
    monkeypatch.setattr("examples.dqn.train.TASK", task)
    with pytest.raises(UserError, match=rf"examples/dqn/train.py {found}; expected TASK = train.Task\(...\)"):
        train.find_task("examples.dqn.train")


@pytest.mark.slow
def test_a_sweep_without_validation_examples_is_refused_unless_the_test_set_is_asked_to_judge(tmp_path):
    config = "--config=examples/dqn/configs/default.py"
    grid = ("--grid", "loss.gamma=0.9,0.99", "--config.duration=20 steps")
    arguments = [sys.executable, "-m", "tools.sweep", config, f"--workdir={tmp_path / 'sweep'}", *grid]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "no examples are set aside for validation" in result.stderr
    assert not (tmp_path / "sweep").exists()
