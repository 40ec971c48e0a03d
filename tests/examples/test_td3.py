"""Actor and critics as a fork: what each learns from, which one moves, what judges them, and that it resumes."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import check, create_experiment, read_metrics, resolve
from random_keys import drawn_twice

import optimizers
import train
from configs import default as project
from examples.td3 import pendulum, targets
from examples.td3.configs import ddpg, default, sac
from examples.td3.episodes import play
from examples.td3.networks import ActorCritics
from examples.td3.train import TASK, create_data, explore, loss_fn
from runtime.errors import UserError
from train_state import Average, CustomTrainState

KEY = jax.random.key(0)


def td3_config(config=None, **averages):
    config = config or default.get_config()
    config.duration, config.batch_size = "40 steps", 16
    config.log_every = "10 steps"
    config.eval_every = config.checkpoint_every = "20 steps"
    config.data.warmup, config.data.buffer_size, config.model.hidden_sizes = 20, 64, (8, 8)
    config.averages = averages or config.averages
    return config


@functools.cache
def create_state(num_critics=2, stochastic=False):
    """A state whose average has weights of its own."""
    model = ActorCritics(1, pendulum.MAX_TORQUE, num_critics, (8, 8), stochastic)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 3)), train=False)["params"])
    params, other = map(init, jax.random.split(KEY))
    averages = (Average("target", "soft_update", (("tau", 0.005),)),)
    state = CustomTrainState.create(
        apply_fn=model.apply, params=params, tx=optax.identity(), rng=KEY, averages=averages
    )
    return state.replace(ema_params={"target": other})


def objective_of(state, batch, **fields):
    return jax.jit(lambda state: loss_fn(state.params, state, batch, **fields))(state)


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(1), 4)
    return {
        "observation": jax.random.normal(keys[0], (64, 3)),
        "action": jax.random.uniform(keys[1], (64, 1), minval=-2, maxval=2),
        "reward": jax.random.normal(keys[2], (64,)),
        "next_observation": 3 * jax.random.normal(keys[3], (64, 3)),
        "terminated": jnp.arange(64) % 4 == 0,
    }


def network(params, x, critic=()):
    """The outputs of two hidden layers and a linear one, in float64."""
    for number in range(3):
        dense = {name: np.asarray(value, np.float64)[critic] for name, value in params[f"Dense_{number}"].items()}
        x = (x if number == 0 else np.maximum(x, 0)) @ dense["kernel"] + dense["bias"]
    return x


def values(params, observation, action):
    inputs = np.concatenate([np.asarray(observation, np.float64), action], axis=1)
    num_critics = len(params["critics"]["Dense_0"]["bias"])
    return np.stack([network(params["critics"], inputs, i)[:, 0] for i in range(num_critics)])


def act(params, observation, key=None):
    """Actions and, if they are drawn, the logarithm of their density."""
    outputs = network(params["actor"], np.asarray(observation, np.float64))
    if key is None:
        return 2 * np.tanh(outputs), 0
    mean, std = outputs[:, :1], np.exp(np.clip(outputs[:, 1:], -5, 2))
    drawn = mean + std * np.asarray(jax.random.normal(key, mean.shape), np.float64)
    normal = np.exp(-(((drawn - mean) / std) ** 2) / 2) / std / np.sqrt(2 * np.pi)
    # By the change of variables, the density of 2 tanh(x) is that of x divided by the slope.
    return 2 * np.tanh(drawn), np.log(normal * np.cosh(drawn) ** 2 / 2)[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["target", "none"])
@pytest.mark.parametrize("num_critics", [1, 2])
def test_critics_learn_the_lowest_value_of_the_target_for_a_disturbed_action_of_the_target(batch, target, num_critics):
    state = create_state(num_critics)
    slow = state.params if target == "none" else state.ema_params["target"]
    drawn = np.asarray(jax.random.normal(jax.random.split(state.step_key("actions"), 3)[1], (64, 1)), np.float64)
    disturbed = act(slow, batch["next_observation"])[0] + 2 * np.clip(0.9 * drawn, -0.5, 0.5)
    assert (np.abs(0.9 * drawn) > 0.5).any()
    assert (np.abs(disturbed) > 2).any()
    following = values(slow, batch["next_observation"], np.clip(disturbed, -2, 2))
    assert num_critics == 1 or following.argmin(axis=0).any()  # not always the first one's
    aim = batch["reward"] + 0.9 * np.where(batch["terminated"], 0, following.min(axis=0))
    valued = values(state.params, batch["observation"], batch["action"])
    errors = np.square(valued - aim).sum(axis=0)
    worth = values(state.params, batch["observation"], act(state.params, batch["observation"])[0])[0]
    objective, (metrics, updates) = objective_of(state, batch, target=target, gamma=0.9, smoothing=0.9)
    assert float(objective) == pytest.approx(errors.mean() - worth.mean(), rel=1e-5)  # float32
    logged = {name: float(total) / count for name, (total, count) in metrics.items()}
    assert logged == pytest.approx({"loss": errors.mean(), "value": valued.mean()}, rel=1e-5)
    assert not updates


@pytest.mark.slow
def test_sac_draws_the_actors_own_next_action_and_adds_its_entropy(batch):
    state = create_state(stochastic=True)
    keys = jax.random.split(state.step_key("actions"), 3)
    action, log_prob = act(state.params, batch["next_observation"], keys[0])
    later = values(state.ema_params["target"], batch["next_observation"], action).min(axis=0) - 0.3 * log_prob
    aim = batch["reward"] + 0.99 * np.where(batch["terminated"], 0, later)
    errors = np.square(values(state.params, batch["observation"], batch["action"]) - aim).sum(axis=0)
    action, log_prob = act(state.params, batch["observation"], keys[2])
    worth = values(state.params, batch["observation"], action).min(axis=0) - 0.3 * log_prob
    objective, _ = objective_of(state, batch, target_actor=False, smoothing=0.0, temperature=0.3)
    assert float(objective) == pytest.approx(errors.mean() - worth.mean(), rel=1e-5)


@pytest.mark.slow
def test_a_stochastic_actor_returns_the_log_density_of_its_actions():
    state, observation = create_state(stochastic=True), 3 * jax.random.normal(KEY, (1000, 3))
    apply = jax.jit(functools.partial(state.apply_fn, method="act"))
    action, log_prob = apply({"params": state.params}, observation, KEY)
    expected, log_density = act(state.params, observation, KEY)
    np.testing.assert_allclose(action, expected, atol=1e-5)
    np.testing.assert_allclose(log_prob, log_density, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["target", "none"])
def test_each_loss_moves_its_own_player_only_and_not_what_it_learns_from(batch, target):
    """The gradient of the one objective is for each player that of its own loss, with all else as it is."""
    state = create_state()
    slow = state.params if target == "none" else state.ema_params["target"]
    following = values(slow, batch["next_observation"], act(slow, batch["next_observation"])[0]).min(axis=0)
    aim = jnp.float32(batch["reward"] + 0.99 * np.where(batch["terminated"], 0, following))

    def of_critics(critics):
        params = {"params": {"critics": critics}}
        found = state.apply_fn(params, batch["observation"], batch["action"], method="value")
        return jnp.mean((found[0] - aim) ** 2) + jnp.mean((found[1] - aim) ** 2)

    def of_actor(actor):
        action, _ = state.apply_fn({"params": {"actor": actor}}, batch["observation"], KEY, method="act")
        return -state.apply_fn({"params": state.params}, batch["observation"], action, method="value")[0].mean()

    found = jax.jit(jax.grad(lambda params: loss_fn(params, state, batch, target=target, smoothing=0.0)[0]))
    expected = {"actor": jax.jit(jax.grad(of_actor)), "critics": jax.jit(jax.grad(of_critics))}
    for player, gradient in found(state.params).items():
        own = expected[player](state.params[player])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), gradient, own)  # of float32


def moved(state, num_updates, tx):
    """By player, at which updates all of its parameters move, and at which its optimizer's state does."""
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params)))
    state, found = state.replace(tx=tx, opt_state=tx.init(state.params)), {}
    for update in range(1, num_updates + 1):
        after = step(state)
        for player in ("actor", "critics"):
            same = jax.tree.map(lambda x, y: bool((x == y).all()), after.params[player], state.params[player])
            assert len({*jax.tree.leaves(same)}) == 1
            found.setdefault(player, []).extend([] if jax.tree.leaves(same)[0] else [update])
        state = after
    return state, found


def tx_of(config):
    return optimizers.create_optimizer(**resolve(config).optimizer)


def test_the_delayed_actor_moves_at_every_second_update_only():
    state, found = moved(create_state(), 4, tx_of(td3_config()))
    assert found == {"actor": [2, 4], "critics": [1, 2, 3, 4]}
    # Of a constant gradient each of Adam's updates is the learning rate, and two were made.
    step = jax.tree.map(lambda new, old: (new - old) / 2, state.params["actor"], create_state().params["actor"])
    jax.tree.map(lambda x: np.testing.assert_allclose(x, -1e-3, rtol=1e-3), step)  # differences of float32


@pytest.mark.parametrize("frozen", ["actor", "critics"])
def test_a_rate_of_zero_freezes_exactly_that_player(frozen):
    config = td3_config(ddpg.get_config())
    config.optimizer.groups[frozen].factor = 0.0
    _, found = moved(create_state(), 2, tx_of(config))
    assert found == {"actor": [1, 2], "critics": [1, 2]} | {frozen: []}


def test_exploring_adds_noise_and_never_exceeds_the_motor():
    state, observation = create_state(), jnp.tile(jnp.array([[0.1, 0.2, 0.3]]), (2000, 1))
    explored = jax.jit(lambda noise: explore(state, jax.random.split(KEY), observation, noise=noise))
    alone = explored(0.0)
    np.testing.assert_allclose(alone, act(state.params, observation)[0], atol=1e-6)
    assert float((explored(0.1) - alone).std()) == pytest.approx(0.2, abs=6 * 0.2 / 4000**0.5)  # six standard errors
    assert np.abs(explored(2.0)).max() == 2


def test_no_key_of_a_step_is_drawn_from_twice(batch):
    state = create_state(stochastic=True)
    assert drawn_twice(lambda state: loss_fn(state.params, state, batch), state) == []
    keys = jax.random.split(KEY)
    assert drawn_twice(lambda keys: explore(state, keys, batch["observation"], noise=0.1), keys) == []


def test_the_buffer_begins_with_random_torques_and_never_takes_the_time_limit_for_the_end():
    config = resolve(td3_config())
    data = create_data(config, None, environments=10, buffer_size=4_000, warmup=3_000)
    buffer = jax.device_get(data.memory["buffer"])
    assert int(data.memory["seen"]) == 3_000
    assert not buffer["terminated"].any()
    assert np.abs(buffer["action"][:3_000]).max() <= 2
    assert buffer["action"][:3_000].std() == pytest.approx(4 / 12**0.5, rel=0.03)
    # Step 200 of each episode led to where its speed can have led to, by at most 0.05 (15 + 6), and to no new start.
    limit = slice(1_990, 2_000)
    change = buffer["next_observation"][limit, 2] - buffer["observation"][limit, 2]
    assert np.abs(change).max() <= 0.05 * (15 + 6)
    assert (buffer["next_observation"][limit] != buffer["observation"][2_000:2_010]).any(axis=1).all()
    assert (buffer["next_observation"][:10] == buffer["observation"][10:20]).all()


def constant(variables, observation, *inputs, method):
    """An actor that turns to one side, with three critics, called as `apply`."""
    del inputs
    shape = observation.shape[:-1]
    return (
        jnp.array([1.0, 2.0, 6.0]) if method == "value" else (jnp.full((*shape, 1), variables), jnp.full(shape, -0.5))
    )


def test_the_bias_is_the_mean_value_minus_the_rewards_that_follow_also_beyond_the_time_limit():
    gamma, temperature, beyond, torque = 0.9, 0.2, 50, 1.5
    returns, bias = play(constant, torque, jax.random.split(KEY, 2), gamma, temperature, beyond)
    for key, total, mean in zip(jax.random.split(KEY, 2), returns, bias, strict=True):
        angle, velocity = (float(x) for x in pendulum.reset(jax.random.split(key)[0])[1][:2])
        rewards = []
        for _ in range(200 + beyond):
            from_upright = np.arctan2(np.sin(angle), np.cos(angle))
            rewards.append(-(from_upright**2 + 0.1 * velocity**2 + 0.001 * torque**2))
            velocity = np.clip(velocity + 0.05 * (15 * np.sin(angle) + 3 * torque), -8, 8)
            angle += 0.05 * velocity
        assert float(total) == pytest.approx(sum(rewards[:200]), rel=1e-3)  # of float32 in 200 steps
        # Each action after the first brings its entropy, 0.5, times the temperature.
        worth = [sum(gamma**k * (r + 0.1 * (k > 0)) for k, r in enumerate(rewards[start:])) for start in range(200)]
        worth = np.array(worth) + [0.1 * gamma ** len(rewards[start:]) * 0 for start in range(200)]
        assert float(mean) == pytest.approx(3 - np.mean(worth), rel=1e-3)


def test_return_and_bias_are_those_of_each_weights_over_the_same_episodes():
    state, keys = create_state(), jax.random.split(jax.random.key(0), 3)
    experiment = types.SimpleNamespace(config=resolve(td3_config()), state=state, eval_data={"test": keys})
    found = TASK.evaluate(experiment, state.weights(), "test")
    assert found.keys() == {"raw", "target"}
    for metrics in found.values():
        for mean, items in metrics.values():
            assert items.shape == (3,)
            assert float(mean) == pytest.approx(items.mean())
    assert (found["raw"]["return"][1] != found["target"]["return"][1]).all()


@pytest.mark.parametrize("variant", targets.VARIANTS)
def test_a_variant_differs_in_target_and_critics_only(variant):
    config, published = (resolve(targets.config_of(name, 3)).to_dict() for name in (variant, "soft 0.005, clipped"))
    target, critics = variant.split(", ")
    assert config["model"].pop("num_critics") == {"single": 1, "clipped": 2}[critics]
    assert config["loss"].pop("target") == ("none" if target == "none" else "target")
    assert [average["kind"].split("_")[0] for average in config.pop("averages").values()] == (
        [] if target == "none" else [target.split()[0]]
    )
    published["model"].pop("num_critics"), published["loss"].pop("target"), published.pop("averages")
    assert config == published


def test_a_target_that_is_missing_is_named_before_anything_is_made():
    with pytest.raises(UserError, match=r"averages.target: kind = 'none', and the loss .* needs it"):
        check(td3_config(target=project.average("none")))


@pytest.mark.parametrize(
    ("group", "field", "value", "found"),
    [
        ("", "dataset", "MountainCarContinuous-v0", "must be 'Pendulum-v1', the only environment of this fork"),
        ("data", "environments", 0, "data.environments = 0, .*must be at least 1"),
        ("data", "acts", 0, "data.acts = 0, .*must be at least 1"),
        ("data", "buffer_size", 2, "data.buffer_size = 2: .*must hold what all environments do at once"),
        ("loss", "gamma", 1.0, "loss.gamma = 1.0: must be above 0 and below 1"),
        ("loss", "gamma", 0.0, "loss.gamma = 0.0: must be above 0 and below 1"),
        ("model", "num_critics", 0, "model.num_critics = 0: must be at least 1"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(group, field, value, found):
    config = td3_config()
    (config[group] if group else config)[field] = value
    with pytest.raises(UserError, match=found):
        create_experiment(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "average", [project.average("soft_update", tau=1.0), project.average("hard_update", period="1 steps")]
)
def test_a_target_that_keeps_nothing_is_no_target(tmp_path, average):
    with_target, _ = train.train_and_evaluate(td3_config(target=average), tmp_path / "target")
    config = td3_config(target=project.average("none"))
    config.loss.target = "none"
    without, _ = train.train_and_evaluate(config, tmp_path / "none")
    assert not without.ema_params
    # Another program, which may round otherwise.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), with_target.params, without.params
    )
    jax.tree.map(np.testing.assert_array_equal, with_target.params, with_target.ema_params["target"])


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [default, sac])
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_interrupted(tmp_path, algorithm):
    def config(duration):
        config = td3_config(algorithm.get_config())
        config.duration = duration
        return config

    whole, _ = train.train_and_evaluate(config("40 steps"), tmp_path / "whole")
    train.train_and_evaluate(config("21 steps"), tmp_path / "parts")  # in the middle of the actor's delay
    resumed, _ = train.train_and_evaluate(config("40 steps"), tmp_path / "parts")
    for field in ("params", "opt_state", "ema_params", "memory"):
        jax.tree.map(np.testing.assert_array_equal, getattr(whole, field), getattr(resumed, field))
    assert read_metrics(tmp_path / "whole", "raw")[-1] == read_metrics(tmp_path / "parts", "raw")[-1]
    assert {"return", "bias"} <= read_metrics(tmp_path / "whole", "raw")[-1].keys()
    assert int(whole.memory["written"]) == (20 + 4 * 40) % 64
