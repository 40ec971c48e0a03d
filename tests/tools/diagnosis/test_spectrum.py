"""tools.diagnosis.spectrum, against cases whose answer is known in closed form."""

import math

import numpy as np
import pytest
from scipy import stats

import averaging
from runtime import intervals
from tools.diagnosis import spectrum


def angles(num_frequencies):
    return np.linspace(0, np.pi, num_frequencies)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("num_frequencies", [9, 500])
def test_the_transfer_function_of_an_ema_has_its_closed_form(decay, num_frequencies):
    """Shorter and longer than the kernel, of which after 4000 updates less than 1e-17 is left at the start."""
    found = spectrum.transfer(averaging.kernel(averaging.soft_update(1 - decay), 4000), num_frequencies)
    expected = np.abs((1 - decay) / (1 - decay * np.exp(-1j * angles(num_frequencies))))
    np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("number", [1, 8, 37, 64])
def test_the_transfer_function_of_a_running_mean_is_dirichlets_kernel(number):
    found = spectrum.transfer(averaging.kernel(averaging.running_mean(), number), 33)
    half = angles(33)[1:] / 2
    expected = np.abs(np.sin(number * half) / (number * np.sin(half)))
    np.testing.assert_allclose(found, np.append(1.0, expected), atol=1e-14)


def test_an_average_that_copies_keeps_every_oscillation_whole():
    found = spectrum.transfer(averaging.kernel(averaging.soft_update(1.0), 100), 17)
    np.testing.assert_allclose(found, 1, atol=1e-15)


def test_the_transfer_function_of_any_kernel_is_its_fourier_sum():
    kernel = np.random.default_rng(0).dirichlet(np.ones(50))
    found = spectrum.transfer(kernel, 13)
    ages = np.arange(50)[::-1]
    np.testing.assert_allclose(found, np.abs(np.exp(-1j * np.outer(angles(13), ages)) @ kernel), atol=1e-14)


def test_the_power_of_white_noise_sums_to_its_variance():
    """Less what the straight line of each piece takes, which is known: the leverage of each of its steps."""
    num_steps, num_weights, variance = 300, 400, 4.0
    noise = np.random.default_rng(0).normal(0, math.sqrt(variance), (num_steps, num_weights))
    frequencies, power = spectrum.power(noise)
    length = 100
    assert power.shape == (length // 2 + 1, num_weights)
    np.testing.assert_allclose(frequencies, np.arange(51) / length, atol=1e-15)
    time = np.arange(length) - (length - 1) / 2
    leverage = 1 / length + time**2 / np.sum(time**2)
    weight = np.sin(np.pi * np.arange(length) / length) ** 4  # of the window, squared
    expected = variance * np.average(1 - leverage, weights=weight)
    sums = power.sum(axis=0) / length
    error = sums.std(ddof=1) / math.sqrt(num_weights)
    assert error < 0.01 * variance
    assert abs(sums.mean() - expected) < 4 * error  # one time in 16,000 beyond it
    # And it is white: as much power at every frequency but those that the line and the ends take from.
    middle = power.mean(axis=1)[3:-1]
    # Five half-overlapping pieces are worth at least three.
    np.testing.assert_allclose(middle, 2 * variance, rtol=4 / math.sqrt(3 * num_weights))


@pytest.mark.parametrize("period", [2.5, 10, 50])
def test_an_oscillation_appears_at_its_frequency_with_half_its_amplitude_squared(period):
    amplitude, num_steps = 3.0, 3000
    length = num_steps // 3
    phases = np.linspace(0, 1, 4)
    steps = np.arange(num_steps)[:, None]
    trend = 5 - 0.01 * steps
    frequencies, power = spectrum.power(amplitude * np.sin(2 * np.pi * steps / period + phases) + trend)
    peak = round(length / period)
    np.testing.assert_array_equal(power.argmax(axis=0), peak)
    assert frequencies[peak] == pytest.approx(1 / period, rel=1e-15)
    # Of a sine of k periods, a straight line takes up to a share 6 / (pi k)**2, and gives it back elsewhere.
    taken = 6 / (np.pi * peak) ** 2
    np.testing.assert_allclose(power.sum(axis=0) / length, amplitude**2 / 2, rtol=taken)
    near = power[peak - 1 : peak + 2].sum(axis=0) / length  # the window spreads it over its neighbours
    np.testing.assert_allclose(near, amplitude**2 / 2, rtol=taken)


def test_a_straight_line_oscillates_nowhere():
    slopes = np.array([0.0, 1.0, -30.0])
    _, power = spectrum.power(7.0 + np.arange(300)[:, None] * slopes)
    assert power.max() < 1e-20 * 9000**2  # rounding of numbers of up to 9000, squared


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_an_average_of_white_noise_keeps_what_its_transfer_function_says(decay):
    """The recursion as averaging.py states it, which is long past its beginning, as its kernel has to be the same."""
    num_steps, num_weights, before, schedule = 1200, 100, 300, averaging.ema(decay)
    noise = np.random.default_rng(0).standard_normal((before + num_steps, num_weights))
    averaged = np.zeros_like(noise)
    for t, params in enumerate(noise[1:], 1):
        averaged[t] = averaged[t - 1] + float(schedule(t)) * (params - averaged[t - 1])
    _, raw = spectrum.power(noise[before:])
    frequencies, left = spectrum.power(averaged[before:])
    kept = spectrum.transfer(averaging.kernel(schedule, before + num_steps - 1), len(frequencies))
    measured = left.sum(axis=1) / raw.sum(axis=1)
    # The window mixes neighbouring frequencies. What the straight lines take is below the third; from there on the
    # function changes so little from one to the next that 2 % are enough.
    np.testing.assert_allclose(measured[3:], kept[3:] ** 2, rtol=0.02)
    # Errors of several frequencies cancel in part.
    assert left[3:].sum() == pytest.approx(kept[3:] ** 2 @ raw[3:].sum(axis=1), rel=0.01)


def test_a_ratio_is_that_of_the_sums_and_its_interval_that_of_the_theory():
    part, whole = np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.0, 2.0, 4.0, 4.0])
    ratio, low, high = intervals.ratios_interval((part, whole), (0 * whole, whole))
    assert ratio == 1.0
    # Without each of the four: 11/10, 10/10, 9/8, 6/8.
    without = np.array([1.1, 1.0, 1.125, 0.75])
    error = stats.t.ppf(0.975, 3) * math.sqrt(3 / 4 * np.sum((without - without.mean()) ** 2))
    assert (low, high) == (pytest.approx(1 - error, abs=1e-12), pytest.approx(1 + error, abs=1e-12))
    found = intervals.ratios_interval((0.25 * whole, whole), (0 * whole, whole))
    assert found == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says():
    """Of 256 weights whose powers are of very different size, as those of a network are."""
    rng, num_trials, covered = np.random.default_rng(0), 1000, 0
    for _ in range(num_trials):
        whole = rng.lognormal(sigma=1.0, size=256)
        part = 0.2 * whole * rng.lognormal(-0.125, 0.5, size=256)  # its factor has a mean of 1
        _, low, high = intervals.ratios_interval((part, whole), (0 * whole, whole))
        covered += low < 0.2 < high
    least, most = stats.binom.interval(0.999, num_trials, 0.95)
    assert least <= covered <= most
