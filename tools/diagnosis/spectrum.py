"""What an average does to oscillations of the weights: its kernel's transfer function, and measured spectra."""

import math

import numpy as np


def transfer(kernel: np.ndarray, num_frequencies: int) -> np.ndarray:
    """The share of an oscillation's amplitude that an average keeps.

    Args:
        kernel: [T + 1], the weights of the average on the iterates, the oldest first.
        num_frequencies: `m`.

    Returns:
        [m], the absolute value of the kernel's Fourier transform at `m` frequencies from 0 to 1/2 oscillation a step.
    """
    period = 2 * (num_frequencies - 1)
    ages = kernel[::-1]
    # At these frequencies, ages that differ by a period are the same.
    folded = np.pad(ages, (0, -len(ages) % period)).reshape(-1, period).sum(axis=0)
    return np.abs(np.fft.rfft(folded))


def power(trace: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The power spectrum of weights over training (Welch's method: five half-overlapping pieces without their trend).

    Args:
        trace: [steps, weights].

    Returns:
        Frequencies [m] from 0 on, in oscillations a step, and the power at each of them [m, weights], whose sum over
        the frequencies, times their distance, is the variance around the trends.
    """
    from scipy import signal

    length = len(trace) // 3 // 2 * 2
    frequencies, density = signal.welch(np.asarray(trace, np.float64), nperseg=length, detrend="linear", axis=0)
    return frequencies, density


def ratio_interval(part: np.ndarray, whole: np.ndarray) -> tuple[float, float, float]:
    """A ratio of sums over a sample of weights, with its 95 % interval over such samples by the jackknife.

    Args:
        part: [n].
        whole: [n].

    Returns:
        `part.sum() / whole.sum()`, lower and upper bound.
    """
    n = len(part)
    ratio = float(part.sum() / whole.sum())
    without = (part.sum() - part) / (whole.sum() - whole)
    error = math.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2))
    return ratio, ratio - 1.96 * error, ratio + 1.96 * error
