"""What holds for every duration, schedule, chunk and evaluation set, and not for examples only."""

import contextlib
import math
from fractions import Fraction

import hypothesis
import jax.numpy as jnp
import numpy as np
from conftest import digits_config, resolve
from hypothesis import given
from hypothesis import strategies as st

import averaging
import settings
from input_pipeline import EvalData, Images, Normalization
from runtime import durations
from runtime.dispatch import Dispatcher

# The same examples each time; how long one takes is no claim of these tests.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, max_examples=200)
hypothesis.settings.load_profile("repeatable")

periods = st.fractions(min_value=Fraction(1, 7), max_value=1000, max_denominator=997)
steps = st.integers(0, 10**6)


@given(
    number=st.integers(0, 10**9),
    decimals=st.integers(0, 999),
    unit=st.sampled_from(["steps", "epochs", "examples", "%"]),
)
def test_a_duration_is_read_exactly_whatever_its_number(number, decimals, unit):
    found = durations.parse(f" {number}.{decimals:03}  {unit}")
    assert found == durations.Duration(number + Fraction(decimals, 1000), unit)


@given(text=st.text(max_size=12))
def test_what_is_no_duration_is_a_value_error_and_nothing_else(text):
    with contextlib.suppress(ValueError):
        assert durations.parse(text).unit in ("steps", "epochs", "examples", "%")


@given(
    epochs=st.fractions(min_value=0, max_value=1000, max_denominator=100),
    batch_size=st.integers(1, 4096),
    num_examples=st.integers(1, 10**7),
)
def test_the_units_of_a_duration_agree(epochs, batch_size, num_examples):
    sizes = {"batch_size": batch_size, "num_examples": num_examples}
    exact = durations.Duration(epochs, "epochs").to_steps(**sizes)
    assert durations.Duration(epochs * num_examples, "examples").to_steps(**sizes) == exact
    assert durations.Duration(exact, "steps").to_steps(**sizes) == exact
    assert durations.Duration(Fraction(100), "%").to_steps(**sizes, total=exact) == exact


@given(step=steps, period=periods)
def test_the_next_due_step_is_the_first_one_that_is_due(step, period):
    due = durations.next_due(step, period)
    assert due > step
    assert durations.is_due(due, period)
    if due - step < 100:
        assert not any(durations.is_due(between, period) for between in range(step + 1, due))
    # Firing k is at ceil(k * period), for some k.
    k = math.floor(due / period)
    assert due in (math.ceil(k * period), math.ceil((k + 1) * period))


@given(period=periods, end=st.integers(1, 500))
def test_as_many_firings_happen_as_periods_fit(period, end):
    fired = [step for step in range(1, end + 1) if durations.is_due(step, period)]
    assert fired == sorted({math.ceil(k * period) for k in range(1, end * 7 + 8) if math.ceil(k * period) <= end})


@given(
    lengths=st.lists(st.fractions(min_value=1, max_value=40, max_denominator=13), min_size=5, max_size=5),
    duration=st.integers(1, 120),
    profile=st.sampled_from([(0, 0), (0, 1), (3, 9)]),
    stops=st.sets(st.integers(1, 120), max_size=4),
)
def test_a_run_comes_by_every_step_at_which_something_is_due_wherever_it_was_interrupted(
    lengths, duration, profile, stops
):
    config = resolve(digits_config()).to_dict()
    config |= dict(zip(durations.PERIODS, lengths, strict=True)) | {"duration": duration, "profile": profile}
    config = settings.ml_collections.FrozenConfigDict(config)
    step, visited = 0, set()
    while step < duration:
        end = settings.next_due_step(config, step)
        assert step < end <= duration
        step = min({end} | {stop for stop in stops if stop > step})  # as a signal would end the dispatch
        visited.add(step)
    for name in durations.PERIODS:
        assert {step for step in range(1, duration + 1) if settings.is_due(config, name, step)} <= visited
    assert {end for end in profile if 0 < end <= duration} <= visited


def count(state, data):
    """A step that is not the same in another order."""
    del data
    step, value = state
    return (step + 1, value * 3 + step), value


chunk = Dispatcher(count, chunked=True)


@given(cuts=st.sets(st.integers(1, 59)))
def test_however_steps_are_cut_into_chunks_the_result_is_that_of_single_steps(cuts):
    state, sums = (jnp.uint32(0), jnp.uint32(1)), jnp.uint32(0)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        state, sums, step = chunk(state, sums, None, start, end)
        assert step == end
    value, total = 1, 0
    for step in range(60):
        value, total = (3 * value + step) % 2**32, (total + value) % 2**32
    assert (int(state[0]), int(state[1]), int(sums)) == (60, value, total)


@hypothesis.settings(max_examples=30)  # each compiles its own shapes
@given(num_images=st.integers(1, 60), batch_size=st.integers(1, 70), num_devices=st.integers(1, 8))
def test_padding_keeps_every_image_once_and_masks_the_rest(num_images, batch_size, num_devices):
    images = Images(np.arange(num_images, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(num_images, dtype=np.int32))
    data = EvalData.from_images(
        images, Normalization(np.zeros(1, np.float32), np.ones(1, np.float32)), batch_size, num_devices
    )
    assert data.batch_size % num_devices == 0
    assert data.batch_size <= math.ceil(batch_size / num_devices) * num_devices
    batches = [data.batch(np.int32(index)) for index in range(data.num_batches)]
    label, image, mask = (np.concatenate([batch[name] for batch in batches]) for name in ("label", "image", "mask"))
    assert len(label) - num_images < data.batch_size + num_devices * data.num_batches
    np.testing.assert_array_equal(label[mask], images.label)
    np.testing.assert_array_equal(image[mask].ravel(), images.label)


kinds = st.one_of(
    st.builds(averaging.ema, st.floats(0, 0.9999), debias=st.booleans()),
    st.builds(averaging.warmup_ema, st.floats(0, 0.9999)),
    st.builds(averaging.running_mean),
    st.builds(averaging.polynomial_decay_mean, st.floats(0, 20)),
    st.builds(averaging.power_ema, st.floats(0.01, 12**-0.5)),
    st.builds(averaging.soft_update, st.floats(0.001, 1)),
    st.builds(averaging.cosine_update, st.floats(0.001, 1), st.integers(1, 50)),
    st.builds(averaging.hard_update, st.integers(1, 50)),
)


@hypothesis.settings(max_examples=60)
@given(
    schedule=kinds,
    every=st.integers(1, 9),
    start=st.integers(0, 40),
    restart=st.integers(0, 40),
    length=st.integers(1, 99),
)
def test_every_average_is_a_weighted_mean_of_the_iterates(schedule, every, start, restart, length):
    schedule = averaging.every(schedule, every)
    if restart:
        schedule = averaging.restart_every(schedule, restart)
    schedule = averaging.starting_at(schedule, start)
    kernel = averaging.kernel(schedule, length)
    assert kernel.shape == (length + 1,)
    assert (kernel >= 0).all()
    # Of the products of up to 100 factors in float64, which the schedules give in float64 as well.
    assert abs(kernel.sum() - 1) < 1e-12
    average, iterates = 0.0, np.random.default_rng(0).normal(size=length + 1)
    average = iterates[0]
    for t in range(1, length + 1):
        average += float(schedule(np.int64(t))) * (iterates[t] - average)
    # What a schedule gives for one update and for all of them may differ by an ulp or so, 100 times over.
    assert abs(average - kernel @ iterates) < 1e-6
