"""Which formulation of a convolution is the fastest for which shape on a CPU?

    python -m benchmarks.convolution

Times every formulation of `convolution.py` for the convolutions of the models, on batches of 128, inside a loop, as
training runs them: the convolution itself, its gradient with respect to the images, which without strides is the
convolution of the gradient with the flipped kernel, and that with respect to the kernel. Numbers are GFLOP/s of the
convolution's own arithmetic, so that saving some of it counts as speed; `chosen` is what the models take. `xla,
outside` is XLA's own gradient with respect to the kernel outside of the loop; inside it is many times slower.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import measure
from runtime import convolution

_ROUNDS = flags.DEFINE_integer("rounds", 7, "How often the formulations take turns.", lower_bound=measure.MIN_ROUNDS)

BATCH = 128
# Model, side of the images, channels, side of the kernel, features, stride; all padded as the models do.
SHAPES = (
    ("cnn", 28, 1, 3, 32, 1),
    ("cnn", 14, 32, 3, 64, 1),
    ("small_cnn", 14, 4, 3, 8, 1),  # 6x6 with stride 2, as it is after blocks of 2x2 pixels became channels
    ("small_cnn", 6, 32, 2, 48, 1),  # 4x4 with stride 2, the same
    ("resnet 20", 32, 3, 3, 16, 1),
    ("resnet 20", 32, 16, 3, 16, 1),
    ("resnet 20", 32, 16, 3, 32, 2),
    ("resnet 20", 16, 32, 3, 32, 1),
    ("resnet 20", 16, 32, 3, 64, 2),
    ("resnet 20", 8, 64, 3, 64, 1),
    ("resnet 18", 32, 64, 3, 64, 1),
    ("resnet 18", 16, 128, 3, 128, 1),
    ("resnet 18", 32, 64, 1, 128, 2),
    ("(other)", 14, 32, 5, 64, 1),
)
Program = Callable[..., jax.Array]


def loop(program: Program, *args: np.ndarray) -> Callable[[], float]:
    """What measures the seconds of a program inside of a loop, of which the compiler can leave nothing out."""
    shape = jax.eval_shape(program, *args)

    @jax.jit
    def repeat(count: int, *args: jax.Array) -> jax.Array:
        def body(_: int, carry: Any) -> Any:
            args, _ = jax.lax.optimization_barrier(carry)
            return args, jax.lax.optimization_barrier(program(*args))

        return jax.lax.fori_loop(0, count, body, (args, jnp.zeros(shape.shape, shape.dtype)))[1]

    def run(count: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(repeat(count, *args))
        return (time.perf_counter() - started) / count

    run(1)
    count = math.ceil(0.2 / run(3))
    return lambda: run(count)


def outside(program: Program, *args: np.ndarray) -> Callable[[], float]:
    """What measures the seconds of a program as it is, dispatched ten times."""
    compiled = jax.jit(program)
    on_device = jax.device_put(args)
    jax.block_until_ready(compiled(*on_device))

    def run() -> float:
        started = time.perf_counter()
        for _ in range(10):
            result = compiled(*on_device)
        jax.block_until_ready(result)
        return (time.perf_counter() - started) / 10

    return run


def operations(side: int, channels: int, size: int, features: int, stride: int) -> dict[str, tuple[str, Any]]:
    """For each operation on a shape the name of the chosen formulation, and what measures each."""
    pad = size // 2 if size % 2 else 0
    strides, pads = (stride, stride), ((pad, pad), (pad, pad))
    shape = (size, size, channels, features)
    random = np.random.default_rng(0)
    x = random.standard_normal((BATCH, side, side, channels), np.float32)
    kernel = random.standard_normal(shape, np.float32)
    grad = np.asarray(convolution.columns(jnp.asarray(x), jnp.asarray(kernel), strides, pads))
    flipped = np.ascontiguousarray(np.flip(kernel, (0, 1)).swapaxes(2, 3))
    around = ((size - 1 - pad,) * 2,) * 2

    forwards = [convolution.xla, convolution.columns]
    if size == 3 and stride == 1:
        forwards.append(convolution.winograd)
    result: dict[str, tuple[str, Any]] = {}
    for name, images, weights, padding in (("convolution", x, kernel, pads), ("images", grad, flipped, around)):
        if name == "images" and (stride > 1 or channels < 4):
            continue  # a first layer has none, and with strides it is the transpose of the columns
        timed = {
            f.__name__: loop(lambda a, b, f=f, padding=padding: f(a, b, strides, padding), images, weights)
            for f in forwards
        }
        result[name] = (convolution.choose(jnp.asarray(images), jnp.asarray(weights), strides).__name__, timed)
    gradients = [convolution.columns_gradient] + [convolution.shifts_gradient] * (stride == 1)
    timed = {f.__name__: loop(lambda a, b, f=f: f(a, b, shape, strides, pads), x, grad) for f in gradients}

    def xla_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
        return jax.vjp(lambda k: convolution.xla(x, k, strides, pads), jnp.asarray(kernel))[1](grad)[0]

    timed["xla, outside"] = outside(xla_gradient, x, grad)
    result["kernel"] = (convolution.choose_gradient(shape, strides).__name__, timed)
    return result


def main(argv: list[str]) -> None:
    """Times all shapes and writes the result."""
    del argv
    logging.set_verbosity(logging.WARNING)
    rows: list[dict[str, Any]] = []
    seconds = []
    columns = ("xla", "columns", "winograd", "columns_gradient", "shifts_gradient", "xla, outside")
    for model, side, channels, size, features, stride in SHAPES:
        out = -(-side // stride) if size % 2 else side - size + 1
        gflop = 2e-9 * BATCH * out**2 * size**2 * channels * features
        text = f"{side}x{side}x{channels}, {size}x{size}x{features}" + (f", stride {stride}" if stride > 1 else "")
        for operation, (chosen, timed) in operations(side, channels, size, features, stride).items():
            measured = measure.interleaved(timed, _ROUNDS.value)
            speeds = {name: round(gflop / float(np.median(values)), 1) for name, values in measured.items()}
            row: dict[str, Any] = {"model": model, "shape": text, "operation": operation, "chosen": chosen}
            rows.append(row | {name: speeds.get(name, "") for name in columns})
            seconds.append(measured)
            print(f"{text}: {operation}", flush=True)
    measure.write("convolution", rows, seconds=seconds)


if __name__ == "__main__":
    app.run(main)
