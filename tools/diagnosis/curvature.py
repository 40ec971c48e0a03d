"""How sharply a loss curves around weights: the largest eigenvalues of its Hessian, and its trace.

The Hessian is never made: both methods need only its products with vectors, which cost about two gradients each.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse import linalg


@functools.partial(jax.jit, static_argnames="loss")
def hessian_product(loss: Callable[..., jax.Array], params: Any, vector: jax.Array, *args: Any) -> jax.Array:
    """The Hessian of a loss times a vector (Pearlmutter 1994), as the gradient of `gradient @ vector`.

    Args:
        loss: function of `params` and `args` that returns a scalar.
        params: tree of arrays with n numbers together.
        vector: [n], in the order of `ravel_pytree`.
        *args: what else the loss takes.

    Returns:
        An array [n].
    """
    flat, unravel = ravel_pytree(params)

    # Reverse mode twice: the project's convolutions have no forward mode.
    def slope(flat: jax.Array) -> jax.Array:
        return jax.grad(lambda p: loss(unravel(p), *args))(flat) @ vector.astype(flat.dtype)

    return jax.grad(slope)(flat)


@dataclasses.dataclass(frozen=True)
class Curvature:
    """What `measure` found.

    Attributes:
        eigenvalues: [number], the largest ones of the mean Hessian of the first half of the batches, in falling order.
        residuals: [number], the norm of `hessian @ vector - value * vector` of each with its eigenvector of length 1:
            the same Hessian has an eigenvalue that is at most so far from the value.
        elsewhere: [batches of the other half, number], `vector @ hessian @ vector` of the same vectors there. Its mean
            over many batches is at most the largest eigenvalue of the Hessian of all images that there could be, while
            `eigenvalues` lie above it on average, as their vectors were chosen to suit the images.
        traces: [batches], an estimate from each.
    """

    eigenvalues: np.ndarray
    residuals: np.ndarray
    elsewhere: np.ndarray
    traces: np.ndarray


def measure(
    product: Callable[[np.ndarray, int], np.ndarray], size: int, *, num_batches: int, number: int, num_probes: int
) -> Curvature:
    """Eigenvalues by the Lanczos method (ARPACK's, as SciPy has it), and the trace by Hutchinson's (1990).

    Everything random in it is the same at every call, so that two points can be compared on equal terms.

    Args:
        product: of a vector [size] with the Hessian of a batch, by its number; gives a vector [size].
        size: number of parameters.
        num_batches: of equal numbers of images.
        number: of eigenvalues.
        num_probes: for each batch, random vectors `z` of signs: the mean of `z @ hessian @ z` over all such vectors is
            the trace, and one of them is off by `sqrt(2)` times the norm of what lies off the diagonal.
    """
    half = num_batches // 2
    rng = np.random.default_rng(0)

    def mean_product(vector: np.ndarray) -> np.ndarray:
        return np.mean([product(vector, batch) for batch in range(half)], axis=0)

    hessian = linalg.LinearOperator((size, size), matvec=mean_product, dtype=np.float64)
    # A hundredth of a value is finer than what other images would change.
    start, num_vectors = rng.normal(size=size), min(size, 2 * number + 4)
    values, vectors = linalg.eigsh(hessian, number, which="LA", v0=start, tol=1e-2, ncv=num_vectors)
    values, vectors = values[::-1], vectors.T[::-1]
    residuals = [
        np.linalg.norm(mean_product(vector) - value * vector) for value, vector in zip(values, vectors, strict=True)
    ]
    elsewhere = [[vector @ product(vector, batch) for vector in vectors] for batch in range(half, num_batches)]
    traces = []
    for batch in range(num_batches):
        probes = rng.choice([-1.0, 1.0], (num_probes, size))
        traces.append(np.mean([probe @ product(probe, batch) for probe in probes]))
    return Curvature(values, np.array(residuals), np.array(elsewhere), np.array(traces))
