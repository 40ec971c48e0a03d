"""How sharply a loss curves around weights: the largest eigenvalues of its Hessian, and its trace.

The Hessian is never made: both methods need only its products with vectors, which cost about two gradients each.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse import linalg
from tqdm import tqdm

from input_pipeline import EvalData
from runtime import intervals
from tools.diagnosis.subject import Subject
from tools.finished import Variables

NUM_BATCHES = 16  # of the training images
NUM_EIGENVALUES = 2
NUM_PROBES = 2  # for each batch


@functools.partial(jax.jit, static_argnames="loss")
def hessian_product(loss: Callable[..., jax.Array], params: Any, vector: jax.Array, *args: Any) -> jax.Array:
    """The Hessian of a loss times a vector (Pearlmutter 1994), as the gradient of `gradient @ vector`.

    Args:
        loss: function of `params` and `args` that returns a scalar.
        params: tree of arrays with n values together.
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
    """The result of `measure`.

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


def sharpness(subject: Subject) -> dict[str, Any]:
    """The largest eigenvalues and the trace of the Hessian of the training loss, at raw and averaged weights.

    The loss is the one that evaluation reports, in evaluation mode.
    """
    apply_fn, score_fn = subject.run.experiment.state.apply_fn, subject.score_fn
    images = subject.images["train"]
    images = images.replace(batch_size=int(images.mask.sum()) // NUM_BATCHES)

    def loss(params: Any, batch_stats: Any, images: EvalData, index: jax.Array) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        return jnp.mean(score_fn(apply_fn, variables, images.batch(index))["loss"])

    def curvature_at(weights: Variables, name: str) -> Curvature:
        def product(vector: np.ndarray, batch: int) -> np.ndarray:
            bar.update()
            vector, index = np.asarray(vector, np.float32), np.int32(batch)
            made = hessian_product(loss, weights["params"], vector, weights["batch_stats"], images, index)
            return np.asarray(made, np.float64)

        with tqdm(desc=f"Hessian products at {name}", leave=False, disable=None) as bar:
            return measure(
                product,
                ravel_pytree(weights["params"])[0].size,
                num_batches=NUM_BATCHES,
                number=NUM_EIGENVALUES,
                num_probes=NUM_PROBES,
            )

    found: dict[str, Any] = {"num_images": images.batch_size * NUM_BATCHES // 2}
    measured = []
    for name in ("raw", subject.average):
        at = curvature_at(subject.recomputed(subject.run.weights(subject.run.stored[-1], name)), name)
        found[name] = {
            "eigenvalues": at.eigenvalues,
            "residuals": at.residuals,
            "elsewhere": np.transpose(intervals.mean_interval(at.elsewhere)),
            "trace": intervals.mean_interval(at.traces),
        }
        measured.append(at)
    raw, average = measured
    found["difference"] = {
        "largest": intervals.mean_interval(average.elsewhere[:, 0] - raw.elsewhere[:, 0]),
        "trace": intervals.mean_interval(average.traces - raw.traces),
    }
    return found
