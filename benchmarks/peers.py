"""How fast is a training step against the same step written out plainly in JAX, and in PyTorch?

    python -m benchmarks.peers --name=peers_mnist
    python -m benchmarks.peers --name=peers_cifar10 --config=configs/cifar10_small.py --steps=5

Trains the config's network, without dropout and augmentation, by SGD with momentum and with one exponential moving
average:

    ours              the training program of train.py, with all that it does: it makes its batches from the stored
                      images, adds up metrics and rejects steps that are not finite
    plain JAX         a jitted step a batch, with Flax's `TrainState` and layers and `optax.incremental_update`
    PyTorch eager     channels last, with the `foreach` forms of `SGD` and `AveragedModel`
    PyTorch compiled  the same with the loss under `torch.compile`
    PyTorch CUDA graph  the eager step, launched as a whole; on GPUs

The others get the same batches in the same order, normalised beforehand, and keep only the loss. First all take a few
steps from the same weights and have to agree; then they take turns, some steps at a time. `time ratio` is the time of a
step over that of ours, `XLA (s)` what compiling JAX's programs took. `TFLOP/s` counts the operations of the plain step
for all variants alike, `of matrix rate` is their share of what a product of large matrices of the same type reaches. It
takes an idle machine: PyTorch's threads wait for each other, and other work slows them most.
"""

import functools
import importlib.util
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import train
from benchmarks import measure, peers_jax, peers_torch
from benchmarks.peers_jax import Task, Variant, Weights, flatten
from configs import default
from runtime import run_config
from runtime.errors import UserError
from tools import command_line, finished

_CONFIG = config_flags.DEFINE_config_file("config", "configs/mnist.py", "With the CNN, or with ResNet-18 or -20.")
_NAME = flags.DEFINE_string("name", None, "Of the result.", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", 10, "How often the variants take turns.", lower_bound=measure.MIN_ROUNDS)
_TORCH = flags.DEFINE_list("torch", ["eager", "compiled", "CUDA graph"], "How PyTorch trains.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps at a time.", lower_bound=1)

# Small, which changes no speed: at 0.1 each step of ResNet-20 makes differences in rounding some 20 times as large.
LEARNING_RATE = 0.01
CHECKED_STEPS = 3
# Largest error of parameters, batch statistics and average, in the norm, as a share of how far they have moved in these
# steps; and of the mean loss. In one step of ResNet-20 the rounding of float32 makes 5e-4 (JAX) and 2e-3 (PyTorch),
# measured against float64. A momentum of 0.8 instead of 0.9 makes 7e-2, a decay of 0.98 instead of 0.99 makes 1.
# TF32 and bfloat16 round more than that: there the errors are written, and not judged.
TOLERANCE = 2e-2


def load() -> train.Experiment:
    """The config's experiment, reduced to what all variants can do."""
    config = ml_collections.ConfigDict(_CONFIG.value)
    config.model.dropout = 0.0
    config.augment = default.get_config().augment
    config.optimizer = default.get_config().optimizer  # SGD with a momentum of 0.9
    config.optimizer.learning_rate = LEARNING_RATE
    # Without bias correction, as the others have it.
    config.averages = ml_collections.ConfigDict({"ema": default.average("ema", decay=0.99, debias=False)})
    return finished.create_experiment(config)


def create_variants(experiment: train.Experiment) -> tuple[dict[str, Variant], dict[str, Weights]]:
    """The variants, and the weights that all of them start from."""
    config, state = experiment.config, experiment.state
    make_batch = jax.jit(lambda step: experiment.train_data.batch(state.replace(step=step))[0])
    # As many as a turn has steps; then they repeat.
    made = [make_batch(jnp.int32(step)) for step in range(max(_STEPS.value, CHECKED_STEPS))]
    task = Task(
        depth=config.model.depth if config.model.name == "resnet" else 0,
        dtype=config.model.dtype,
        params=jax.device_get(state.params),
        batch_stats=jax.device_get(state.batch_stats),
        batches=[(batch["image"], batch["label"]) for batch in made],
        learning_rate=config.optimizer.learning_rate,
        momentum=config.optimizer.momentum,
        decay=config.averages.ema.decay,
    )
    training = measure.create_training(experiment)

    def advance(num_steps: int) -> float:
        nonlocal state
        state, loss = training(num_steps)
        return loss

    def weights() -> dict[str, Weights]:
        trees = {"params": state.params, "batch stats": state.batch_stats, "average": state.ema_params["ema"]}
        return {name: flatten(tree) for name, tree in trees.items()}

    variants = {"ours": Variant(advance, weights), "plain JAX": peers_jax.create(task)}
    if importlib.util.find_spec("torch"):
        has_gpu = importlib.import_module("torch").cuda.is_available()
        ways = [how for how in _TORCH.value if how != "CUDA graph" or has_gpu]
        variants |= {f"PyTorch {how}": peers_torch.create(task, how) for how in ways}
    else:
        print("PyTorch is not installed and left out: pip install -r requirements-benchmarks.txt")
    params = flatten(task.params)
    return variants, {"params": params, "batch stats": flatten(task.batch_stats), "average": params}


def error(weights: Weights, reference: Weights, initial: Weights) -> float:
    """How far two variants' weights are apart, as a share of how far the second's have moved."""

    def distance(a: Weights, b: Weights) -> float:
        return float(np.sqrt(sum(np.sum((a[path].astype(np.float64) - b[path]) ** 2) for path in initial)))

    return distance(weights, reference) / distance(reference, initial) if initial else 0.0


def check(variants: dict[str, Variant], initial: dict[str, Weights]) -> list[dict[str, Any]]:
    """Takes the first steps, and ends the program if a variant does not agree with ours."""
    losses, compile_seconds = {}, {}
    for name, variant in variants.items():
        before = measure.compile_seconds()
        losses[name] = variant.advance(CHECKED_STEPS)
        compile_seconds[name] = measure.compile_seconds() - before
    reference = variants["ours"].weights()
    exact = jax.default_backend() == "cpu" and _CONFIG.value.model.dtype == "float32"
    rows = []
    for name, variant in variants.items():
        weights = variant.weights()
        errors = {part: error(weights[part], reference[part], initial[part]) for part in initial}
        errors["loss"] = float(abs(losses[name] / losses["ours"] - 1))
        if exact and not max(errors.values()) <= TOLERANCE:
            sys.exit(f"error: after {CHECKED_STEPS} steps {name} differs from ours by {errors}, allowed is {TOLERANCE}")
        rows.append({"variant": name, "compile seconds": compile_seconds[name], **errors})
    return rows


def main(argv: list[str]) -> None:
    """Checks that all variants do the same, times them and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        experiment = load()
    except UserError as error:
        sys.exit(f"error: {error}")
    variants, initial = create_variants(experiment)
    errors = check(variants, initial)

    def turn(variant: Variant) -> None:
        variant.advance(_STEPS.value)

    for variant in variants.values():
        turn(variant)  # to warm up
    operations, matrix_rate = variants["plain JAX"].operations, measure.matrix_rate(_CONFIG.value.model.dtype)
    calls = {name: functools.partial(turn, variant) for name, variant in variants.items()}
    seconds = measure.interleaved(calls, _ROUNDS.value)
    rows = []
    for (name, values), checked in zip(seconds.items(), errors, strict=True):
        rates = measure.summary([_STEPS.value / value for value in values])
        ratio = measure.paired_ratio(values, seconds["ours"])
        performed = operations * rates["median"]
        rows.append(
            {"variant": name, "steps/s": rates.pop("median"), **rates, "time ratio": ratio.pop("ratio"), **ratio}
            | {"TFLOP/s": performed / 1e12, "of matrix rate": performed / matrix_rate}
            | {"XLA (s)": checked["compile seconds"]}
        )
    config = json.loads(run_config.to_json(experiment.config))
    measure.write(_NAME.value, rows, steps=_STEPS.value, seconds=seconds, errors=errors, config=config)


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
