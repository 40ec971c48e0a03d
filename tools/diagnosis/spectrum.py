"""Oscillations of the weights under averaging: the kernel's transfer function, and measured spectra."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

import averaging
from input_pipeline import TrainData
from runtime import intervals
from runtime.errors import UserError
from runtime.stored import list_stored
from runtime.stream import at
from tools.diagnosis.subject import NotPossibleError, Subject
from tools.finished import Variables
from train_state import CustomTrainState

NUM_TRACED = 256  # weights
NUM_ITERATES = 8  # whose weights and predictions are averaged


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


@dataclasses.dataclass(frozen=True)
class Trace:
    """Some hundred steps of training, repeated from a checkpoint.

    Attributes:
        step: of that checkpoint.
        kernel: of the average by the end, if it is the same in all these steps.
        weights: [2, steps, weights], of a few weights raw and averaged after each step.
        iterates: raw and averaged weights by their names, after steps at equal distances.
    """

    step: int
    kernel: np.ndarray | None
    weights: np.ndarray
    iterates: Sequence[Mapping[str, Variables]]


def retrain(subject: Subject, num_steps: int) -> Trace:
    """Repeats steps of training, from the latest checkpoint that has so many after it, or goes on after the last."""
    experiment, name = subject.run.experiment, subject.average
    average = next(average for average in experiment.state.averages if average.name == name)
    # Not those from before the average was changed: it began anew then.
    full = [one for one in list_stored(subject.run.workdir, ["checkpoints"]) if average in one.record.averages]
    if not full:
        raise UserError(f"{subject.run.workdir} holds no checkpoint with {name} to repeat steps of training from")
    start = ([stored for stored in full if stored.record.step + num_steps <= full[-1].record.step] or full)[-1]
    state = start.restore_state(experiment.state)
    size = ravel_pytree(state.params)[0].size
    chosen = np.random.default_rng(0).choice(size, min(size, NUM_TRACED), replace=False)

    @jax.jit
    def step(state: CustomTrainState, data: TrainData) -> Any:
        state, _ = experiment.train_program(state, data)
        present = state.weights()
        return state, [ravel_pytree(present[which]["params"])[0][chosen] for which in ("raw", name)]

    weights, iterates = [], []
    for number in tqdm(range(1, num_steps + 1), "steps", leave=False, disable=None):
        state, traced = step(state, at(experiment.train_data, int(state.step)))
        weights.append(jax.device_get(traced))
        if number * NUM_ITERATES % num_steps < NUM_ITERATES:
            present = state.weights()
            iterates.append({which: present[which] for which in ("raw", name)})
    count = int(state.ema_count[name])
    step_sizes = average.schedule(np.arange(max(1, count - num_steps), count + 1))
    # Where these change, as in a running mean, so does the kernel, and no single one says what becomes of oscillations.
    steady = bool(np.ptp(step_sizes) <= 0.05 * np.max(step_sizes))
    kernel = averaging.kernel(average.schedule, count) if steady else None
    return Trace(start.record.step, kernel, np.array(weights).swapaxes(0, 1), iterates)


def oscillations(trace: Trace) -> dict[str, Any]:
    """The power spectra of a few weights, raw and averaged, and what the average's kernel makes of the raw one."""
    raw, averaged = trace.weights
    if not np.any(np.ptp(raw, axis=0)):
        raise NotPossibleError(f"the learning rate is 0 from step {trace.step} on, and the weights stand still")
    (frequencies, before), (_, after) = map(power, (raw, averaged))
    # The trend that was taken out has no power at 0.
    frequencies, before, after = frequencies[1:], before[1:], after[1:]
    left, whole = after.sum(axis=0), before.sum(axis=0)
    found = {
        "step": trace.step,
        "num_steps": len(raw),
        "num_weights": raw.shape[1],
        "frequencies": frequencies,
        "raw": before.mean(axis=1),
        "averaged": after.mean(axis=1),
        "left": intervals.ratios_interval((left, whole), (0 * whole, whole)),  # minus a ratio of 0
    }
    if trace.kernel is not None:
        kept = transfer(trace.kernel, len(frequencies) + 1)[1:]
        found |= {"kept": kept, "predicted": float(kept**2 @ before.sum(axis=1) / before.sum())}
    return found
