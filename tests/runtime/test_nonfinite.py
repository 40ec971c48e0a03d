import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from runtime import nonfinite
from train_state import CustomTrainState


class Model(nn.Module):
    """Two layers in a block, and one behind it."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="last")(Block(name="block")(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="b")(nn.Dense(3, name="a")(x))


@pytest.fixture(scope="module")
def state():
    model = Model()
    params = model.init(jax.random.key(0), jnp.ones((2, 3)))["params"]
    return CustomTrainState.create(
        apply_fn=model.apply, params=params, tx=optax.sgd(0.1), batch_stats={}, rng=jax.random.key(0)
    )


def loss_fn(params, state, batch):
    return jnp.sum(state.apply_fn({"params": params}, batch["x"])), None


def find(state, *, loss_fn=loss_fn, x=1.0, **leaves):
    """Where the first number that is not finite is, with some leaves replaced."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves.get(jax.tree_util.keystr(path, simple=True, separator="_"), leaf), state.params
    )
    state, batch = state.replace(params=params), {"x": jnp.full((2, 3), x)}
    grads = jax.grad(loss_fn, has_aux=True)(params, state, batch)[0]
    return nonfinite.first_layer(loss_fn, state, batch, grads)


def test_the_first_layer_of_the_forward_pass_is_the_innermost_one_that_breaks(state):
    inf = jnp.full((3, 3), jnp.inf)
    assert find(state, block_b_kernel=inf) == "the output of block/b"
    assert find(state, block_b_kernel=inf, last_kernel=inf) == "the output of block/b"
    assert find(state, last_kernel=inf) == "the output of last"


def test_where_the_forward_pass_is_finite_the_gradient_is_followed_from_the_loss(state):
    def root(params, state, batch):  # of which the gradient at 0 is infinite
        return jnp.sqrt(jnp.sum(state.apply_fn({"params": params}, batch["x"]) ** 2)), None

    zeros = {"last_kernel": jnp.zeros((3, 3)), "last_bias": jnp.zeros(3)}
    assert find(state, loss_fn=root, **zeros) == "the gradient of last/kernel"


def test_what_is_not_finite_outside_of_layers_is_named_as_well(state):
    assert find(state, x=jnp.nan) == "the batch"
    assert find(state, loss_fn=lambda *args: (jnp.log(-1.0) * loss_fn(*args)[0], None)).startswith(
        "the loss, of outputs"
    )
    large = find(state, loss_fn=lambda *args: (1e20 * loss_fn(*args)[0], None))
    assert large == "the norm of the gradient, a sum of finite numbers"
