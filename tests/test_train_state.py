import jax
import jax.numpy as jnp
import numpy as np
import optax

from streams import stream_key
from train_state import Average, CustomTrainState


def ema(name, decay, debias=True):
    return Average(name, "ema", (("decay", decay), ("debias", debias)))


def create(*averages, batch_stats=None):
    return CustomTrainState.create(
        apply_fn=None,
        params={"w": jnp.array([1.0, -2.0])},
        tx=optax.sgd(0.5),
        batch_stats={"mean": jnp.array([4.0])} if batch_stats is None else batch_stats,
        rng=jax.random.key(0),
        averages=averages,
    )


def gradient_step(state, gradient, mean):
    grads, batch_stats = {"w": jnp.asarray(gradient)}, {"mean": jnp.asarray(mean)}
    return state.apply_gradients(grads=grads, batch_stats=batch_stats)


def step(state, gradient, mean):
    return gradient_step(state, gradient, mean).apply_ema()


def test_without_averages_there_is_nothing_to_keep():
    state = step(create(), [1.0, 1.0], [0.0])
    assert (state.ema_params, state.ema_batch_stats, state.ema_count) == ({}, {}, {})


def test_a_rejected_step_leaves_everything_but_the_step_untouched():
    before = step(step(create(ema("ema", 0.5)), [1.0, 1.0], [2.0]), [1.0, 1.0], [3.0])
    candidate = gradient_step(before, [jnp.nan, 1.0], [jnp.inf])
    after = jax.jit(lambda state, ok, new: state.accept_if(ok, new).apply_ema(moved=ok))(
        before, jnp.bool_(False), candidate
    )
    assert after.step == before.step + 1
    assert {name: int(n) for name, n in after.rejected.items()} == {"total": 1, "streak": 1, "longest": 1}
    for field in ("params", "opt_state", "batch_stats", "ema_params", "ema_batch_stats", "ema_count"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, field), getattr(before, field))
    assert (jax.random.key_data(after.rng) == jax.random.key_data(before.rng)).all()


def test_an_accepted_step_is_the_candidate_and_ends_a_streak():
    before = create(ema("ema", 0.5))
    for ok in (False, False, True, False):
        candidate = gradient_step(before, [1.0, 1.0], [2.0])
        before = before.accept_if(jnp.bool_(ok), candidate).apply_ema(moved=ok)
    assert {name: int(n) for name, n in before.rejected.items()} == {"total": 3, "streak": 1, "longest": 2}
    assert before.step == 4
    assert before.ema_count["ema"] == 1
    np.testing.assert_array_equal(before.params["w"], [0.5, -2.5])


def test_exchanged_averages_are_kept_started_from_the_parameters_or_dropped():
    state = step(create(ema("kept", 0.9), ema("dropped", 0.9)), [1.0, 1.0], [2.0])
    state = step(state, [1.0, 1.0], [2.0])
    exchanged = state.with_averages((ema("kept", 0.99), ema("new", 0.5)))
    assert set(exchanged.ema_params) == set(exchanged.ema_batch_stats) == set(exchanged.ema_count) == {"kept", "new"}
    np.testing.assert_array_equal(exchanged.ema_params["kept"]["w"], state.ema_params["kept"]["w"])
    np.testing.assert_array_equal(exchanged.ema_params["new"]["w"], state.params["w"])
    np.testing.assert_array_equal(exchanged.ema_batch_stats["new"]["mean"], state.batch_stats["mean"])
    assert {name: int(n) for name, n in exchanged.ema_count.items()} == {"kept": 2, "new": 0}


def test_weights_are_raw_and_then_the_averages_as_configured():
    state = step(create(ema("z", 0.5), ema("a", 0.9)), [1.0, 1.0], [2.0])
    weights = state.weights()
    assert list(weights) == ["raw", "z", "a"]
    assert weights["raw"] == {"params": state.params, "batch_stats": state.batch_stats}
    assert weights["a"] == {"params": state.ema_params["a"], "batch_stats": state.ema_batch_stats["a"]}


def test_keys_differ_between_streams_and_steps_and_repeat_with_both():
    state = create()
    later = step(state, [1.0, 1.0], [2.0])
    keys = [state.step_key("a"), state.step_key("b"), later.step_key("a"), stream_key(state.rng, "a")]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4
    assert (jax.random.key_data(state.step_key("a")) == jax.random.key_data(create().step_key("a"))).all()


def test_a_new_state_can_be_donated():
    with_averages = jax.jit(lambda: create(ema("a", 0.5), ema("b", 0.9)))()
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: x, s.replace(step=s.step + 1)), donate_argnums=0)(with_averages)
    assert doubled.step == 1
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(doubled.replace(rng=None))]
    assert len(set(pointers)) == len(pointers)


def test_an_optimizer_that_draws_random_numbers_gets_a_key_of_its_own_stream_at_every_step():
    seen = []

    def update(updates, state, params=None, *, key, **extra):
        seen.append(key)
        return updates, state

    recorder = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    state = create().replace(tx=optax.chain(optax.sgd(0.5), recorder), opt_state=(optax.sgd(0.5).init({}), ()))
    expected = []
    for _ in range(3):
        expected.append(jax.random.fold_in(stream_key(state.rng, "optimizer"), state.step))
        state = step(state, [1.0, 1.0], [0.0])
    assert [jax.random.key_data(key).tolist() for key in seen] == [jax.random.key_data(k).tolist() for k in expected]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in seen}) == 3


def test_averages_start_anew_from_weights_that_are_put_in_place_of_the_present_ones():
    state = step(create(ema("ema", 0.5)), [1.0, 1.0], [2.0])
    after = state.with_weights({"w": jnp.array([7.0, 8.0])}, {"mean": jnp.array([9.0])})
    for params, batch_stats in (
        (after.params, after.batch_stats),
        (after.ema_params["ema"], after.ema_batch_stats["ema"]),
    ):
        np.testing.assert_array_equal(params["w"], [7, 8])
        np.testing.assert_array_equal(batch_stats["mean"], [9])
    assert after.ema_count["ema"] == 0
    jax.jit(lambda s: s, donate_argnums=0)(after)  # no buffer stands in it twice
