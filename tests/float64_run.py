"""Trains a residual network on the digits in float64 for 20 steps, and saves its averages: `float64_run.py FILE`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import models
from configs import digits
from runtime import sharding
from tools import finished

jax.config.update("jax_enable_x64", True)
config = digits.get_config()
config.augment.flip = True
config.augment.crop_padding = 1
config.model.name = "resnet"
config.model.dropout = 0.25
create_model = models.create_model
models.create_model = lambda *args, dtype, **fields: create_model(*args, dtype="float64", **fields)
experiment = finished.create_experiment(config)


def to_float64(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


state = jax.device_put(jax.tree.map(to_float64, experiment.state), sharding.replicated(experiment.mesh))
for _ in range(20):
    state, _ = experiment.train_program(state, experiment.train_data)
leaves = jax.tree.leaves((state.ema_params, state.ema_batch_stats))
assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float64")}
np.save(sys.argv[1], np.concatenate([np.ravel(leaf) for leaf in leaves]))
