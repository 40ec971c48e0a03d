"""Features without labels: a network predicts what its slow average makes of another view (BYOL, Grill et al. 2020).

    python main.py --config=examples/byol/configs/default.py --workdir=runs/byol
    python main.py --config=examples/byol/configs/default.py --workdir=runs/simsiam --config.loss.target=none \
        --config.averages.target.kind=none

Two views of each image are made in the loss. The target network is the average that `config.loss.target` names; it
normalises each batch by the batch's own statistics, as the network does, and what it would keep of them is dropped.
With a `config.loss.queue` the loss is that of MoCo (He et al. 2020), and the queue is the state's `memory`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import augmentation
from examples import classifier
from examples.byol import probes
from examples.byol.networks import Networks
from input_pipeline import Data
from runtime.errors import UserError
from runtime.score_metrics import Sets
from streams import stream_key
from train import Experiment, Task
from train_state import CustomTrainState

PER_CLASS = {"probe": 10, "knn": 100}  # labelled images


def create_model(
    example: tuple[Any, Any], *, resnet: int = 0, features: int = 16, hidden: int = 256, outputs: int = 64
) -> Networks:
    return Networks(resnet, features, hidden, outputs)


def create_data(config: Any, mesh: Any, *, size: int = 14) -> Data:
    """Images shrunk to `size`, between -1 and 1, and a queue of random directions if the loss has one."""
    data = classifier.create_data(config, mesh, size=size)
    if config.loss.queue < 0:
        raise UserError(f"loss.queue = {config.loss.queue}: must be at least 0, and 0 for no queue")
    if not config.loss.queue:
        return data
    key = stream_key(jax.random.key(config.seed), "queue")
    return data._replace(memory=unit(jax.random.normal(key, (config.loss.queue, config.model.outputs))))


def unit(x: jax.Array) -> jax.Array:
    """Rows of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def view(key: jax.Array, image: jax.Array, min_area: float, jitter: float, flip: bool) -> jax.Array:
    """A random crop of each image, with other colours."""
    keys = jax.random.split(key, 4)
    image = augmentation.resized_crop(keys[0], image, min_area)
    image = augmentation.flip(keys[1], image) if flip else image
    image = augmentation.colour_jitter(keys[2], image, jitter, jitter, jitter / 2)
    return augmentation.grey(keys[3], image, 0.2)


def loss_fn(
    params: Any,
    state: CustomTrainState,
    batch: dict[str, jax.Array],
    *,
    target: str = "target",
    stop_gradient: bool = True,
    queue: int = 0,
    temperature: float = 0.2,
    min_area: float = 0.5,
    jitter: float = 0.2,
    flip: bool = False,
) -> Any:
    """How far the prediction from each view is from what the target makes of the other one, `2 - 2 cos`.

    Args:
        params: of the network.
        state: with the averages.
        batch: with `image`.
        target: name of the average; "none" for the network itself (SimSiam, Chen & He 2021).
        stop_gradient: whether that is taken as constant; False: collapse.
        queue: number of earlier outputs of the target that each view is told from (MoCo), without a predictor; 0: none.
        temperature: of the queue's softmax.
        min_area: least share of an image that a view has.
        jitter: largest change of brightness and contrast, and twice that of saturation.
        flip: whether views are mirrored, half of them.
    """
    image = batch["image"]
    keys = jax.random.split(state.step_key("views"))
    views = jnp.concatenate([view(key, image, min_area, jitter, flip) for key in keys])
    apply = functools.partial(state.apply_fn, train=True, mutable=["batch_stats"])
    own = jax.lax.stop_gradient(params) if stop_gradient else params
    slow = own if target == "none" else state.ema_params[target]
    (_, projection, prediction), updates = apply({"params": params, "batch_stats": state.batch_stats}, views)
    (_, aim, _), _ = apply({"params": slow, "batch_stats": state.batch_stats}, views)
    aim = unit(jnp.roll(aim, len(image), axis=0))  # of the other view
    if queue:
        query = unit(projection)
        logits = jnp.concatenate([jnp.sum(query * aim, axis=-1, keepdims=True), query @ state.memory.T], axis=1)
        loss = -jax.nn.log_softmax(logits / temperature)[:, 0]
        updates = {**updates, "memory": jnp.concatenate([aim, state.memory])[:queue]}
    else:
        loss = 2 - 2 * jnp.sum(unit(prediction) * aim, axis=-1)
    return loss.mean(), ({"loss": (loss.sum(), loss.size)}, updates)


@functools.partial(jax.jit, static_argnames="apply_fn")
def embed(apply_fn: Any, variables: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features and projections of images, as they are."""
    features, projection, _ = apply_fn(variables, image, train=False)
    return features, projection


def evaluate(experiment: Experiment, weights: dict[str, Any], split: str) -> Sets:
    """Which test images the features put into the right class, and how far projections are from being all the same."""
    data, train = experiment.eval_data[split], experiment.train_data
    label, mask, train_label = (np.asarray(x) for x in (data.label, data.mask, train.label))
    rows = {name: probes.labelled(train_label, number, experiment.config.seed) for name, number in PER_CLASS.items()}
    found = {}
    for name, variables in weights.items():

        def of(image: jax.Array, variables: Any = variables) -> list[np.ndarray]:
            parts = [image[start : start + 1000] for start in range(0, len(image), 1000)]
            embedded = [embed(experiment.state.apply_fn, variables, data.normalization(part)) for part in parts]
            return [np.concatenate(x).astype(np.float64) for x in zip(*jax.device_get(embedded), strict=True)]

        features, projections = (x[mask] for x in of(data.image))
        found[name] = {"std": (probes.spread(projections), None)}
        for metric, predict in (("knn", probes.nearest), ("probe", probes.ridge)):
            few, _ = of(train.image[rows[metric]])
            correct = predict(few, train_label[rows[metric]], features) == label[mask]
            found[name][metric] = correct.mean(), correct
    return found


TASK = Task(
    loss_fn,
    score_fn=None,
    metrics={"probe": "higher", "knn": "higher", "std": "higher"},
    evaluate=evaluate,
    create_model=create_model,
    create_data=create_data,
    needs=lambda loss: () if loss["target"] == "none" else (loss["target"],),
)
