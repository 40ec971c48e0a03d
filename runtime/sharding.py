"""Where arrays lie: a mesh of all devices, and how state, data and batches are laid out on it."""

import math
import os
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import xla_bridge
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from runtime import hosts, readers
from runtime.errors import UserError
from runtime.progress import first_time

T = TypeVar("T")

# Smaller arrays are not split: it would save nothing.
MIN_SPLIT_BYTES = 2**16
# Of convolutions and scatters only what adds up in a fixed order, and an error where there is no such form.
DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true"


def find_devices(*, deterministic: bool = False) -> list[jax.Device]:
    """All devices, which are of one kind; starts them when it is first called.

    Args:
        deterministic: whether GPUs are to leave out operations whose results differ from time to time.

    Raises:
        UserError: there are none of the kind that was asked for, several processes share them, or GPUs have been
            started without what `deterministic` needs.
    """
    if deterministic and DETERMINISTIC not in os.environ.get("XLA_FLAGS", "").split():
        # XLA reads its flags once, when JAX starts; JAX has no public function that tells whether it has.
        if xla_bridge.backends_are_initialized() and jax.default_backend() == "gpu":
            raise UserError(
                "deterministic = True: JAX has started its GPUs without. Set the environment variable "
                f"XLA_FLAGS={DETERMINISTIC} before, or train with main.py, which does"
            )
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for CUDA, without a word
        asked: str = jax.config.jax_platforms  # type: ignore[attr-defined]  # made at run time
        reason = str(error).partition("\n")[0].partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        raise UserError(
            f"JAX_PLATFORMS={asked}: JAX finds no such device here{f' ({reason})' if reason else ''}. Install JAX for "
            'it, pip install "jax[cuda13]" or "jax[tpu]", or run without: JAX_PLATFORMS=cpu'
        ) from error
    if jax.process_count() != hosts.count():
        raise UserError(
            f"JAX runs in {jax.process_count()} processes without that they have joined: start each of them with "
            "main.py --coordinator=HOST:PORT --num_processes=N --process_id=K, without jax.distributed.initialize()"
        )
    return devices


def check_batch_size(batch_size: int, accumulate: int, num_devices: int, num_examples: int | None) -> None:
    """Checks that batches can be split over devices and microbatches.

    Args:
        batch_size: `config.batch_size`.
        accumulate: `config.accumulate`.
        num_devices: that share each batch.
        num_examples: of the training set; None if there is no such number.

    Raises:
        UserError: they cannot; names the nearest size that can.
    """
    num_parts = num_devices * accumulate
    if batch_size % num_parts:
        most = batch_size + num_parts if num_examples is None else num_examples
        nearest = min(max(1, round(batch_size / num_parts)), most // num_parts) * num_parts
        what = "the number of devices" + (" times accumulate" if accumulate > 1 else "")
        hint = f"the nearest is {nearest}" if nearest else f"the data set has only {num_examples} examples"
        raise UserError(f"batch_size = {batch_size}: must be a multiple of {num_parts}, {what}; {hint}")


def create_mesh() -> jax.sharding.Mesh:
    """All devices in one axis, "data", over which batches are split."""
    # Linen modules work on Auto axes only; make_mesh would make Explicit ones.
    return jax.make_mesh((len(find_devices()),), ("data",), axis_types=(AxisType.Auto,))


def memory() -> int:
    """Bytes of memory that a device has; of a CPU, those that the process may use. The least of all hosts."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return -int(hosts.largest(-(stats.get("bytes_limit") or readers.memory())))


def replicated(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> NamedSharding:
    """The sharding of state and data sets: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: T, shardings: Any) -> T:
    """Arrays laid out on the devices.

    Args:
        tree: of arrays: of every process the same, or on the devices of all of them.
        shardings: where to, a tree of the same structure or one for all.
    """
    if hosts.count() == 1:
        return jax.device_put(tree, shardings)

    def one(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        # device_put would compare what the processes have, byte by byte, over the network.
        if isinstance(x, jax.Array) and (not x.is_fully_addressable or jnp.issubdtype(x.dtype, jax.dtypes.prng_key)):
            return jax.device_put(x, sharding)
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: one(x, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def fetch(tree: T) -> T:
    """NumPy arrays of those on the devices, all of them in every process, even if each has only parts."""
    if hosts.count() > 1:
        # In one program, for many small ones that exchange something may wait for one another for ever on CPUs.
        mesh = jax.tree.leaves(tree)[0].sharding.mesh
        tree = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.device_get(tree)


def of_state(state: T, mesh: jax.sharding.Mesh, whole: Collection[str] = ()) -> T:
    """How a state lies on the devices: a copy on each, but of the averages' parameters a part on each.

    An average moves element by element, so that each device can move its part without the others, and no step needs the
    whole. Each array is split along its longest axis that the number of devices divides; small ones are not.

    Args:
        state: of training, or its shapes.
        mesh: the devices.
        whole: names of the averages that a step does need, in its loss.
    """

    def part(x: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        if mesh.size == 1 or x.size * x.dtype.itemsize < MIN_SPLIT_BYTES or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))

    shardings: Any = jax.tree.map(lambda _: replicated(mesh), state)
    for name in shardings.ema_params.keys() - set(whole):
        shardings.ema_params[name] = jax.tree.map(part, state.ema_params[name])  # type: ignore[attr-defined]
    return shardings


def with_whole_params(state: T, mesh: jax.sharding.Mesh | None) -> T:
    """A state within a step, of which every device computes all parameters.

    Left alone, the compiler would have each compute the part that its averages need, and gather the others' each step.
    """
    if mesh is None:
        return state
    params = jax.lax.with_sharding_constraint(state.params, replicated(mesh))  # type: ignore[attr-defined]
    return state.replace(params=params)  # type: ignore[attr-defined]


def describe(state: Any) -> str:
    """What each device holds of a state, in one line."""

    def megabytes(*trees: Any) -> str:
        leaves = [x for x in jax.tree.leaves(trees) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
        return f"{sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves) / 1e6:.1f} MB"

    return (
        f"Each device holds {megabytes(state.params)} of parameters, {megabytes(state.opt_state)} of the optimizer's "
        f"state and {megabytes(state.ema_params)} of averages"
    )


def split_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of batches: an equal part on every device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def create(function: Callable[..., T], rng: jax.Array, mesh: jax.sharding.Mesh, whole: Collection[str] = ()) -> T:
    """Creates the state that `function(rng)` returns, laid out as `of_state` says.

    In a compiled program whose results are laid out as those of training are: so the training program compiles once,
    and not a second time for the state that it returns itself.
    """
    with first_time("Compiling the initial state"):
        shardings = of_state(jax.eval_shape(function, rng), mesh, whole)
        state: T = jax.jit(function, out_shardings=shardings)(rng)
    return state
