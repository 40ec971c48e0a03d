"""A policy that follows a learned reward and is held near an anchor, an average of itself: RLHF in small.

    python main.py --config=examples/anchor/configs/default.py --workdir=runs/anchor
    python main.py --config=examples/anchor/configs/default.py --workdir=runs/fixed --config.loss.anchor=start

A context is an image, an action a class, and the true reward 1 for the right class. First both a policy and a reward
model learn from few labels (bandit.py); the average `start` keeps what they are then. From there on the policy learns
from that reward model alone, with a penalty on its divergence from the average that `config.loss.anchor` names.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.anchor.bandit import create_data, is_supervised
from examples.anchor.networks import create_model
from runtime.score_metrics import Sets
from train import Experiment, Task
from train_state import CustomTrainState


def loss_fn(
    params: Any, state: CustomTrainState, batch: dict[str, jax.Array], *, weight: float = 0.5, anchor: str = "anchor"
) -> Any:
    """The negative expected reward plus a penalty; before that the cross-entropy of labelled images.

    Classes are few, so expectations over the policy are sums over all of them: the gradient is the one that REINFORCE
    estimates from samples, without their noise.

    Args:
        params: of policy and reward model.
        state: with the averages.
        batch: see `Bandit.batch`.
        weight: of the mean divergence KL(policy, anchor) in nats; 0 for no anchor.
        anchor: name of an average.
    """
    apply = functools.partial(state.apply_fn, train=True)
    image, half = batch["image"], len(batch["image"]) // 2
    held = {"start": "start"} | ({"anchor": anchor} if weight else {})  # from what the divergence is measured

    def imitate() -> Any:
        policy, reward = apply({"params": params}, image)
        logits = jnp.concatenate([policy[:half], reward[half:]])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        nothing = jnp.float32(0)
        return nll.mean(), {"loss": nll.sum(), "reward": nothing, **{f"kl_{name}": nothing for name in held}}

    def reinforce() -> Any:
        policy, _ = apply({"params": params}, image)
        _, log_reward = apply({"params": state.ema_params["start"]}, image)
        reward = jnp.sum(jnp.exp(policy + log_reward), axis=-1)
        others = {name: apply({"params": state.ema_params[average]}, image)[0] for name, average in held.items()}
        kl = {f"kl_{name}": divergence(policy, other) for name, other in others.items()}
        objective = weight * kl["kl_anchor"].mean() - reward.mean() if weight else -reward.mean()
        sums = {"loss": jnp.float32(0), "reward": reward.sum(), **{name: value.sum() for name, value in kl.items()}}
        return objective, sums

    supervised = is_supervised(state)
    objective, sums = jax.lax.cond(supervised, imitate, reinforce)
    counts = {name: jnp.where(supervised == (name == "loss"), len(image), 0) for name in sums}
    return objective, ({name: (sums[name], counts[name]) for name in sums}, {})


def divergence(policy: Any, other: Any) -> Any:
    """KL(policy, other) in nats, [...], of log-probabilities [..., classes]."""
    return (jnp.exp(policy) * (policy - other)).sum(axis=-1)


@functools.partial(jax.jit, static_argnames="apply_fn")
def outputs(apply_fn: Any, variables: Any, data: Any) -> Any:
    """What the model makes of all images of an evaluation."""

    def of(index: jax.Array) -> Any:
        return apply_fn(variables, data.batch(index)["image"], train=False)

    return [x.reshape(-1, x.shape[-1]) for x in jax.lax.map(of, jnp.arange(data.num_batches))]


def evaluate(experiment: Experiment, weights: dict[str, Any], split: str) -> Sets:
    """Of each policy the accuracy, the expected reward, and the divergence from `start` and from the anchor."""
    data, anchor = experiment.eval_data[split], experiment.config.loss.anchor
    mask = np.asarray(data.mask)
    logs = {name: [x[mask] for x in outputs(experiment.state.apply_fn, w, data)] for name, w in weights.items()}
    found = {}
    for name, (policy, _) in logs.items():
        items = {"accuracy": policy.argmax(axis=-1) == data.label[mask]}
        items["reward"] = jnp.exp(policy + logs["start"][1]).sum(axis=-1)
        items["kl_start"] = divergence(policy, logs["start"][0])
        if anchor in logs:
            items["kl_anchor"] = divergence(policy, logs[anchor][0])
        found[name] = {metric: (x.mean(), np.asarray(x)) for metric, x in items.items()}
    return found


TASK = Task(
    loss_fn,
    score_fn=None,
    metrics={"accuracy": "higher", "reward": "higher"},
    evaluate=evaluate,
    create_model=create_model,
    create_data=create_data,
    needs=lambda loss: ("start", loss["anchor"]) if loss["weight"] else ("start",),
)
