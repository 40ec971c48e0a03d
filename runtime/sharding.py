"""Where arrays lie: a mesh of all devices, and how state, data and batches are laid out on it."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax._src import xla_bridge
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from runtime.errors import UserError
from runtime.progress import first_time

T = TypeVar("T")

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
    if jax.process_count() > 1:
        raise UserError(
            f"JAX runs in {jax.process_count()} processes, and a run is one process on the devices of one machine: "
            "start it there alone, without jax.distributed.initialize()"
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


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of state and data sets: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of batches: an equal part on every device."""
    return NamedSharding(mesh, PartitionSpec("data"))


def create(function: Callable[..., T], rng: jax.Array, mesh: jax.sharding.Mesh) -> T:
    """Creates the state that `function(rng)` returns, on all devices of the mesh.

    In a compiled program whose results are laid out as those of training are: so the training program compiles once,
    and not a second time for the state that it returns itself.
    """
    with first_time("Compiling the initial state"):
        state: Any = jax.jit(function, out_shardings=replicated(mesh))(rng)
    return state
