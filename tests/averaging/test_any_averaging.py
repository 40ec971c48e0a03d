"""What must hold for any implementation of an average; see adapters.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import ADAPTERS, AVERAGES, DECAY, reference

from train_state import Average

OURS = ("averaging.py", "CustomTrainState")
DRIFTS = "(1 - s) * average + s * params rounds twice where average + s * (params - average) corrects itself"
FREEZES = "its average has the dtype of the parameters, and a bfloat16 average stops moving"


def cases(expected_failures=()):
    """Each adapter with each average that it can be."""
    return [
        pytest.param(adapter, average, marks=known_to_fail(dict(expected_failures).get((adapter, average))))
        for adapter in ADAPTERS
        for average in AVERAGES
        if adapter != "optax.periodic_update" or average == "hard_update"
    ]


def known_to_fail(reason):
    return [pytest.mark.xfail(strict=True, reason=reason)] if reason else []


def run(adapter, iterates, num_updates):
    """The average after this many updates, in one compiled loop."""

    @jax.jit
    def loop(iterates, num_updates):
        def body(t, state):
            return adapter.update(state, {"w": iterates[t]})

        return jax.lax.fori_loop(1, num_updates + 1, body, adapter.init({"w": iterates[0]}))

    return adapter.value(loop(iterates, num_updates))["w"]


@pytest.mark.parametrize(("adapter", "average"), cases([(("optax.incremental_update", "biased_ema"), DRIFTS)]))
def test_float32_follows_the_float64_recursion(adapter, average):
    average, formula = AVERAGES[average]
    # Around 1, not 0: a systematic error then adds up, as it does with weights that have learned something.
    iterates = np.random.default_rng(0).normal(1.0, 1.0, size=(5001, 16)).astype(np.float32)
    found = run(ADAPTERS[adapter](average), iterates, 5000)
    expected = reference(formula, iterates)
    assert np.linalg.norm(found - expected) <= 5e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(("adapter", "average"), cases())
def test_an_average_neither_shares_buffers_nor_changes_what_it_is_given(adapter, average):
    adapter = ADAPTERS[adapter](AVERAGES[average][0])
    first, second = {"w": jnp.arange(4.0)}, {"w": jnp.full(4, 7.0)}
    update = jax.jit(adapter.update, donate_argnums=0)
    state = update(jax.jit(adapter.init)(first), second)
    update(state, second)
    np.testing.assert_array_equal(first["w"], np.arange(4.0))
    np.testing.assert_array_equal(second["w"], np.full(4, 7.0))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_type_of_every_leaf_stays_what_it_is(adapter):
    average = AVERAGES["hard_update" if adapter == "optax.periodic_update" else "ema"][0]
    adapter = ADAPTERS[adapter](average)
    params = {"w": jnp.ones(3), "b": jnp.ones((), jnp.float32)}
    state = adapter.init(params)

    def types(tree):
        return jax.tree.map(lambda x: (x.dtype, x.shape), jax.eval_shape(lambda: tree))

    assert types(jax.jit(adapter.update)(state, params)) == types(state)


ANY_SCHEDULE = [name for name in ADAPTERS if name != "optax.periodic_update"]


@pytest.mark.parametrize("decay", [0.99, 0.999, 0.9999])
@pytest.mark.parametrize(
    "adapter", [pytest.param(name, marks=known_to_fail(None if name in OURS else FREEZES)) for name in ANY_SCHEDULE]
)
def test_an_average_of_bfloat16_parameters_does_not_freeze(adapter, decay):
    adapter = ADAPTERS[adapter](Average("slow", "soft_update", (("tau", 1 - decay),)))
    num_updates = round(5 / (1 - decay))

    @jax.jit
    def loop():
        state = adapter.init({"w": jnp.zeros(4, jnp.bfloat16)})
        return jax.lax.fori_loop(
            0, num_updates, lambda _, s: adapter.update(s, {"w": jnp.ones(4, jnp.bfloat16)}), state
        )

    np.testing.assert_allclose(adapter.value(loop())["w"].astype(np.float32), 1 - decay**num_updates, rtol=0.01)


@pytest.mark.parametrize("adapter", ANY_SCHEDULE)
def test_three_unit_steps_at_decay_one_half_give_2_125(adapter):
    # 0 -> 0.5 -> 1.25 -> 2.125 for the parameters 1, 2, 3: an average that runs one update early or late differs.
    adapter = ADAPTERS[adapter](Average("half", "soft_update", (("tau", 0.5),)))
    state = adapter.init({"w": jnp.zeros(())})
    for value in (1.0, 2.0, 3.0):
        state = adapter.update(state, {"w": jnp.float32(value)})
    assert adapter.value(state)["w"] == 2.125


@pytest.mark.parametrize("adapter", ANY_SCHEDULE)
def test_the_first_update_of_a_bias_corrected_average_forgets_the_initial_parameters(adapter):
    adapter = ADAPTERS[adapter](Average("ema", "ema", DECAY))
    state = adapter.update(adapter.init({"w": jnp.full(3, 1e6)}), {"w": jnp.full(3, 0.1)})
    np.testing.assert_array_equal(adapter.value(state)["w"], np.float32(0.1))


@pytest.mark.parametrize(("adapter", "average"), cases())
def test_what_is_computed_is_returned(adapter, average):
    """An average whose update is lost stays where it was; one that is only copied has no memory."""
    average, formula = AVERAGES[average]
    adapter = ADAPTERS[adapter](average)
    iterates = np.arange(121, dtype=np.float32)[:, np.newaxis]
    found = float(run(adapter, iterates, 120)[0])
    assert found == pytest.approx(float(reference(formula, iterates)[0]), rel=1e-5)
    assert 0 < found < 120
