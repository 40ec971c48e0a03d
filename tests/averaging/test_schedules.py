import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapters import AVERAGES, late, rare, reference

import averaging

NAMES = list(AVERAGES)


@pytest.mark.parametrize("name", NAMES)
def test_the_step_size_is_what_the_formula_says(name):
    average, formula = AVERAGES[name]
    expected = [formula(t) for t in range(1, 1001)]
    found = average.schedule(np.arange(1, 1001))
    assert found.dtype == np.float64
    # The formulas themselves lose digits where 1 - d**t cancels: at most 2**-53 / (1 - d), of d = 0.999; and where
    # 1 + cos(x) does: a few times tau * 2**-53, of tau = 0.02.
    np.testing.assert_allclose(found, expected, rtol=2e-13, atol=1e-17)


@pytest.mark.parametrize("name", NAMES)
def test_an_int_an_array_and_a_traced_count_give_the_same_step_size(name):
    schedule, t = AVERAGES[name][0].schedule, np.arange(1, 501)
    expected = schedule(t)
    np.testing.assert_array_equal([schedule(int(n)) for n in t], expected)
    traced = jax.jit(jax.vmap(schedule))(jnp.asarray(t))
    assert traced.dtype == jnp.float32
    # A few float32 roundings: of t * log(d) or log1p(-1/t), of expm1, of the quotient.
    np.testing.assert_allclose(traced, expected, rtol=1e-6)
    # Where it is 1 or 0 it is so exactly, or the average would keep a trace of what it forgets.
    np.testing.assert_array_equal((traced == 1, traced == 0), (expected == 1, expected == 0))


@pytest.mark.parametrize(
    "schedule",
    [
        *[averaging.ema(decay) for decay in (0.0, 0.5, 0.9999, 0.999999)],
        averaging.running_mean(),
        *[averaging.polynomial_decay_mean(eta) for eta in (0.0, 0.1, 3.0, 12.7)],
        *[averaging.power_ema(averaging.gamma_to_width(gamma)) for gamma in (0.0, 0.3, 6.94, 200.0)],
        averaging.power_ema(0.05),
        averaging.soft_update(1),
        averaging.ema(0),
        averaging.hard_update(1),
    ],
)
def test_the_first_step_size_is_exactly_one_where_the_formula_says_one(schedule):
    assert schedule(1) == 1
    assert schedule(np.arange(1, 3)).dtype == np.float64
    assert jax.jit(schedule)(jnp.int32(1)) == 1


def test_running_means_of_different_origin_are_the_same():
    t = np.arange(1, 200)
    for schedule in (averaging.polynomial_decay_mean(0), averaging.power_ema(12**-0.5)):
        np.testing.assert_allclose(schedule(t), averaging.running_mean()(t), rtol=1e-14)


def test_a_hard_update_is_optax_periodic_update():
    new, old = jnp.float32(1), jnp.float32(0)
    for t in range(1, 22):
        expected = optax.periodic_update(new, old, jnp.int32(t), 7)
        assert averaging.hard_update(7)(t) == expected


@pytest.mark.parametrize("tau", [0.004, 1.0])
def test_a_cosine_update_comes_to_rest_and_float32_follows_its_kernel(tau):
    schedule, t = averaging.cosine_update(tau, 4000), np.arange(1, 5001)
    # Half of the way down in the middle, and nothing left from the end on.
    np.testing.assert_allclose(schedule(np.array([2000, 1])), [tau / 2, tau * np.cos(np.pi / 8000) ** 2], rtol=1e-15)
    assert (np.diff(schedule(t[:4000])) < 0).all()
    assert (schedule(t[3999:]) == 0).all()
    iterates = np.random.default_rng(0).normal(1.0, 1.0, size=(5001, 16)).astype(np.float32)

    @jax.jit
    def loop(iterates):
        def body(t, average):
            return averaging.update(average, iterates[t], schedule(t))

        return jax.lax.fori_loop(1, 5001, body, iterates[0])

    expected = averaging.kernel(schedule, 5000) @ iterates.astype(np.float64)
    assert np.linalg.norm(loop(iterates) - expected) <= 5e-6 * np.linalg.norm(expected)


def test_swa_is_the_mean_of_every_interval_th_iterate_after_the_start():
    weights = averaging.kernel(averaging.swa(60, 4), 100)
    np.testing.assert_allclose(weights[[64, 68, 72, 76, 80, 84, 88, 92, 96, 100]], 0.1, rtol=1e-13)
    assert np.count_nonzero(weights) == 10
    composed = averaging.starting_at(averaging.every(averaging.running_mean(), 4), 60)
    np.testing.assert_array_equal(averaging.swa(60, 4)(np.arange(1, 200)), composed(np.arange(1, 200)))


def test_a_restarted_average_forgets_what_was_before():
    weights = averaging.kernel(averaging.restart_every(averaging.ema(0.5, debias=False), 10), 25)
    assert (weights[:21] == 0).all()
    np.testing.assert_allclose(weights[21:], [2**-4, 2**-4, 2**-3, 2**-2, 2**-1], rtol=1e-15)
    # The first cycle is that of the schedule itself, initial parameters included.
    np.testing.assert_array_equal(
        averaging.restart_every(averaging.soft_update(0.1), 10)(np.arange(1, 13)), [0.1] * 10 + [1, 0.1]
    )


def test_a_start_of_0_and_an_interval_of_1_change_nothing():
    t = np.arange(1, 50)
    for schedule in (averaging.ema(0.9), averaging.soft_update(0.1), averaging.hard_update(3)):
        np.testing.assert_array_equal(averaging.starting_at(schedule, 0)(t), schedule(t))
        np.testing.assert_array_equal(averaging.every(schedule, 1)(t), schedule(t))


@pytest.mark.parametrize("start", [1, 5])
@pytest.mark.parametrize("interval", [1, 3])
def test_start_and_interval_count_updates_from_one(start, interval):
    inner = averaging.soft_update(0.25)
    formula = late(rare(lambda t: 0.25, interval), start)
    found = averaging.starting_at(averaging.every(inner, interval), start)(np.arange(1, 20))
    np.testing.assert_array_equal(found, [formula(t) for t in range(1, 20)])


@pytest.mark.parametrize("num_updates", [0, 1, 100, 1000, 5000])
@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_holds_the_weight_of_every_iterate(name, num_updates):
    """The recursion is linear, so that its response to each of some random inputs is that of the kernel."""
    average, formula = AVERAGES[name]
    iterates = np.random.default_rng(0).normal(1.0, 1.0, size=(num_updates + 1, 4))
    weights = averaging.kernel(average.schedule, num_updates)
    assert weights.shape == (num_updates + 1,)
    assert weights.dtype == np.float64
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    # 5,000 float64 roundings of numbers of order 1.
    np.testing.assert_allclose(weights @ iterates, reference(formula, iterates), rtol=1e-12)


@pytest.mark.parametrize("num_updates", [100, 1000, 5000])
@pytest.mark.parametrize("name", NAMES)
def test_the_weight_left_on_the_initial_parameters_is_what_the_recursion_leaves(name, num_updates):
    """A float32 average that starts at 1 and sees only 0 is the weight on its start."""
    schedule = AVERAGES[name][0].schedule

    @jax.jit
    def loop(start):
        def body(t, average):
            return averaging.update(average, jnp.zeros(()), schedule(t))

        return jax.lax.fori_loop(1, num_updates + 1, body, start)

    expected = averaging.kernel(schedule, num_updates)[0]
    # Each of the updates rounds the average and its factor once: 2**-24 each.
    assert float(loop(jnp.float32(1))) == pytest.approx(expected, rel=2.5 * num_updates * 2**-24, abs=1e-37)


def test_the_power_function_kernel_is_karras_and_others():
    gamma, num_updates = 6.94, 300
    t = np.arange(num_updates + 1) / num_updates
    expected = np.diff(t ** (gamma + 1))
    np.testing.assert_allclose(
        averaging.kernel(averaging.power_ema(averaging.gamma_to_width(gamma)), num_updates)[1:], expected, rtol=1e-10
    )


def test_an_ema_is_described_by_its_closed_forms():
    # In 2,000 updates a half-life of 20 forgets everything but 2**-100.
    decay = averaging.half_life_to_decay(20)
    found = averaging.describe(averaging.ema(decay), 2000)
    assert found.num_updates == 2000
    assert found.initial_weight == 0
    assert found.mean_age == pytest.approx(decay / (1 - decay), rel=1e-12)
    assert found.half_life == pytest.approx(20, rel=1e-12)
    assert found.relative_width == pytest.approx(decay**0.5 / (1 - decay) / 2000, rel=1e-12)
    assert found.effective_number == pytest.approx((1 + decay) / (1 - decay), rel=1e-12)


def test_means_and_biased_averages_are_described_by_their_closed_forms():
    mean = averaging.describe(averaging.running_mean(), 100)
    assert (mean.initial_weight, mean.half_life) == (0, pytest.approx(50))
    assert (mean.mean_age, mean.effective_number) == (pytest.approx(49.5), pytest.approx(100))
    assert mean.relative_width == pytest.approx(np.sqrt((100**2 - 1) / 12) / 100)
    soft = averaging.describe(averaging.soft_update(0.005), 100)
    assert soft.initial_weight == pytest.approx(0.995**100)
    power = averaging.describe(averaging.power_ema(0.1), 10_000)
    assert power.relative_width == pytest.approx(0.1, rel=1e-6)  # of 10,000 discrete updates, not of a continuum


def test_conversions_are_each_others_inverse_and_have_their_closed_forms():
    assert averaging.half_life_to_decay(7.5) ** 7.5 == pytest.approx(0.5, rel=1e-15)
    # Fired every 4 updates, the same half-life in updates.
    assert averaging.half_life_to_decay(8, interval=4) ** 2 == pytest.approx(0.5, rel=1e-15)
    for interval in (1, 3):
        decay = averaging.half_life_to_decay(12.5, interval)
        assert averaging.decay_to_half_life(decay, interval) == pytest.approx(12.5, rel=1e-12)
    assert averaging.scale_decay(0.99, 8) == 0.99**8
    assert averaging.scale_decay(averaging.half_life_to_decay(80), 8) == pytest.approx(averaging.half_life_to_decay(10))


def test_widths_and_exponents_are_those_of_the_paper():
    # Karras et al. 2024, section 3.1 and appendix: the widths 5 % and 10 % are the exponents 16.97 and 6.94.
    assert averaging.width_to_gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert averaging.width_to_gamma(0.10) == pytest.approx(6.94, abs=0.005)
    for gamma in (0.0, 0.5, 6.94, 100.0):
        assert averaging.width_to_gamma(averaging.gamma_to_width(gamma)) == pytest.approx(gamma, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        *[(lambda d=d: averaging.ema(d), "decay") for d in (-0.1, 1.0, float("nan"))],
        (lambda: averaging.warmup_ema(1.0), "decay"),
        (lambda: averaging.polynomial_decay_mean(-1), "eta"),
        *[(lambda w=w: averaging.power_ema(w), "width") for w in (0.0, 0.3)],
        *[(lambda t=t: averaging.soft_update(t), "tau") for t in (0.0, 1.5)],
        *[(lambda t=t: averaging.cosine_update(t, 10), "tau") for t in (0.0, 1.5)],
        (lambda: averaging.cosine_update(0.5, 0), "duration"),
        (lambda: averaging.hard_update(0), "period"),
        (lambda: averaging.starting_at(averaging.running_mean(), -1), "start"),
        (lambda: averaging.every(averaging.running_mean(), 0), "interval"),
        (lambda: averaging.restart_every(averaging.running_mean(), 0), "period"),
        (lambda: averaging.half_life_to_decay(0), "half_life"),
        (lambda: averaging.decay_to_half_life(1.0), "decay"),
        (lambda: averaging.scale_decay(0.9, 0), "batch_ratio"),
        (lambda: averaging.gamma_to_width(-0.5), "gamma"),
        (lambda: averaging.kernel(averaging.running_mean(), -1), "num_updates"),
        (lambda: averaging.describe(averaging.running_mean(), 0), "num_updates"),
        (lambda: averaging.synthesize(averaging.running_mean(), 5, []), "snapshots"),
        (lambda: averaging.synthesize(averaging.running_mean(), 5, [(averaging.running_mean(), 6)]), "snapshot"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_name(call, name):
    with pytest.raises(ValueError, match=name):
        call()


def test_a_plain_ema_is_synthesized_from_two_power_functions():
    num_updates = 2814  # of configs/mnist.py
    steps = [round(num_updates * k / 16) for k in range(1, 17)]
    snapshots = [(averaging.power_ema(width), step) for width in (0.05, 0.10) for step in steps]
    target = averaging.ema(averaging.half_life_to_decay(0.05 * num_updates))
    coefficients, error = averaging.synthesize(target, num_updates, snapshots)
    assert error <= 0.003
    assert coefficients.sum() == pytest.approx(1, abs=1e-12)
    # The error is what it says: of the combination of kernels.
    combination = sum(
        c * np.append(averaging.kernel(schedule, step), np.zeros(num_updates - step))
        for c, (schedule, step) in zip(coefficients, snapshots, strict=True)
    )
    wanted = averaging.kernel(target, num_updates)
    assert np.linalg.norm(combination - wanted) / np.linalg.norm(wanted) == pytest.approx(error, rel=1e-6)


def test_what_can_be_synthesized_exactly_is():
    mean = averaging.running_mean()
    # The mean of a tail from the means of all and of what comes before it.
    coefficients, error = averaging.synthesize(averaging.starting_at(mean, 60), 100, [(mean, 60), (mean, 100)])
    np.testing.assert_allclose(coefficients, [-1.5, 2.5], rtol=1e-10)
    assert error < 1e-12
    # The mean of three raw snapshots, given by its kernel.
    kernel = np.zeros(101)
    kernel[[80, 90, 100]] = 1 / 3
    raw = averaging.soft_update(1.0)
    coefficients, error = averaging.synthesize(kernel, 100, [(raw, step) for step in (70, 80, 90, 100)])
    np.testing.assert_allclose(coefficients, [0, 1 / 3, 1 / 3, 1 / 3], atol=1e-12)
    assert error < 1e-12


def test_kernels_that_hardly_differ_do_not_take_large_coefficients():
    """With coefficients of thousands the rounding of the stored weights would show in the average."""
    snapshots = [(averaging.ema(decay), 1000) for decay in (0.99, 0.990001)]
    coefficients, _ = averaging.synthesize(averaging.ema(0.995), 1000, snapshots)
    assert np.abs(coefficients).max() < 1000
    # But one that is there is found, whatever else is.
    coefficients, error = averaging.synthesize(averaging.ema(0.99), 1000, snapshots)
    np.testing.assert_allclose(coefficients, [1, 0], atol=1e-6)
    assert error < 1e-9


def test_a_kernel_can_be_that_of_any_optax_schedule():
    constant = averaging.kernel(optax.constant_schedule(0.1), 50)
    np.testing.assert_array_equal(constant, averaging.kernel(averaging.soft_update(0.1), 50))


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


def test_neither_a_new_nor_an_updated_average_shares_a_buffer_with_the_parameters():
    params = {"w": jnp.ones(3), "n": jnp.int32(1)}
    new = averaging.init(params)
    for average in (new, averaging.update(new, params, 0.5), averaging.update(new, params, 1.0)):
        for a, p in zip(jax.tree.leaves(average), jax.tree.leaves(params), strict=True):
            assert a.unsafe_buffer_pointer() != p.unsafe_buffer_pointer()


def test_complex_parameters_are_averaged():
    average = averaging.update(averaging.init(jnp.zeros(2, jnp.complex64)), jnp.array([1 + 2j, 4j]), 0.5)
    np.testing.assert_array_equal(average, [0.5 + 1j, 2j])


def test_averaging_can_be_copied_into_another_project():
    """It knows nothing of models or training: it imports nothing of this project."""
    source = averaging.__loader__.get_source("averaging")
    imported = {
        line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import", "from"))
    }
    assert imported == {"dataclasses", "math", "collections", "types", "typing", "jax", "numpy", "optax"}
