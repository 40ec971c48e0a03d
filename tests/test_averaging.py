import jax
import jax.numpy as jnp
import numpy as np
import pytest

import averaging


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
def test_bias_corrected_ema_has_the_closed_form_of_adam(decay):
    t = np.arange(1, 5001)
    # 1 - d**t itself loses digits to cancellation, at most 2**-53 / (1 - d) of it.
    np.testing.assert_allclose(
        averaging.ema(decay)(t), (1 - decay) / (1 - decay ** t.astype(np.float64)), rtol=2 * 2**-53 / (1 - decay)
    )


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999, 0.999999])
def test_the_first_step_size_of_a_bias_corrected_ema_is_exactly_one(decay):
    assert averaging.ema(decay)(1) == 1
    assert jax.jit(averaging.ema(decay))(jnp.int32(1)) == 1


def test_ema_without_bias_correction_has_a_constant_step_size():
    np.testing.assert_array_equal(averaging.ema(0.75, debias=False)(np.arange(1, 9)), np.full(8, 0.25))


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
def test_a_traced_count_gives_the_float64_step_size_rounded(decay):
    t = np.arange(1, 5001)
    traced = jax.jit(averaging.ema(decay))(jnp.asarray(t))
    assert averaging.ema(decay)(t).dtype == np.float64
    # A few float32 roundings: of t * log(d), of expm1, of the quotient.
    np.testing.assert_allclose(traced, averaging.ema(decay)(t), rtol=5e-7)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        averaging.ema(decay)


def test_a_weight_halves_within_the_half_life():
    assert averaging.half_life_to_decay(7.5) ** 7.5 == pytest.approx(0.5, rel=1e-15)


def test_three_unit_steps_at_decay_one_half_give_2_125():
    # 0 -> 0.5 -> 1.25 -> 2.125 for the parameters 1, 2, 3: an average that runs one update early or late differs.
    average = jnp.zeros(())
    for t, p in enumerate((1.0, 2.0, 3.0), start=1):
        average = averaging.update(average, jnp.float32(p), averaging.ema(0.5, debias=False)(t))
    assert average == 2.125


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999])
def test_float32_recursion_is_the_weighted_sum_that_the_schedule_implies(decay, debias):
    """Over 5,000 updates, against float64 weights w_i = s(i) * prod_{j > i} (1 - s(j))."""
    schedule = averaging.ema(decay, debias)
    num_updates = 5000
    iterates = np.random.default_rng(0).normal(size=(num_updates + 1, 16)).astype(np.float32)
    s = schedule(np.arange(1, num_updates + 1))
    later = np.append(np.cumprod((1 - s)[::-1])[::-1], 1.0)
    weights = np.append(1.0, s) * later
    assert weights.sum() == pytest.approx(1, abs=1e-12)

    @jax.jit
    def recursion(average):
        def body(t, average):
            return averaging.update(average, jnp.asarray(iterates)[t], schedule(t))

        return jax.lax.fori_loop(1, num_updates + 1, body, average)

    expected = weights @ iterates.astype(np.float64)
    error = np.linalg.norm(recursion(jnp.asarray(iterates[0])) - expected) / np.linalg.norm(expected)
    assert error <= 5e-6


def test_a_step_size_of_one_copies_exactly():
    # Here a + 1 * (p - a) is 0 in float32.
    average, params = jnp.float32(1e8), jnp.float32(0.1)
    assert averaging.update(average, params, 1.0) == params
    assert averaging.update(average, params, jnp.float32(1)) == params


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("step_size", [0.25, np.float64(0.25), jnp.float32(0.25)])
def test_an_update_keeps_the_dtype_of_every_leaf(dtype, step_size):
    average = averaging.update({"w": jnp.zeros(3, dtype)}, {"w": jnp.ones(3, dtype)}, step_size)
    assert average["w"].dtype == dtype
    np.testing.assert_array_equal(average["w"].astype(np.float32), 0.25)


def test_leaves_that_are_not_floats_are_copied():
    params = {"count": jnp.int32(7), "flag": jnp.bool_(True), "key": jax.random.key(3), "nothing": None}
    start = {"count": jnp.int32(0), "flag": jnp.bool_(False), "key": jax.random.key(0), "nothing": None}
    average = averaging.update(start, params, 0.5)
    assert average["count"] == 7
    assert average["flag"]
    assert (jax.random.key_data(average["key"]) == jax.random.key_data(params["key"])).all()
    assert average["nothing"] is None


def test_an_average_of_bfloat16_parameters_is_float32_and_keeps_moving():
    params = jnp.ones(4, jnp.bfloat16)
    average = averaging.init(jnp.zeros(4, jnp.bfloat16))
    assert average.dtype == jnp.float32
    schedule = jax.jit(lambda a, t: averaging.update(a, params, averaging.ema(0.999, debias=False)(t)))
    for t in range(1, 5001):
        average = schedule(average, t)
    # A bfloat16 average would stop near 0.5, where a step falls below half a unit in the last place.
    np.testing.assert_allclose(average, 1 - 0.999**5000, rtol=1e-4)


def test_a_new_average_shares_no_buffer_with_the_parameters():
    params = {"w": jnp.ones(3), "n": jnp.int32(1)}
    average = averaging.init(params)
    for a, p in zip(jax.tree.leaves(average), jax.tree.leaves(params), strict=True):
        assert a.unsafe_buffer_pointer() != p.unsafe_buffer_pointer()
