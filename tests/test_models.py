import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import models


def variables_of(model, image_shape):
    return model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)


def num_parameters(variables):
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


def test_the_cnn_has_the_parameters_of_the_flax_mnist_example():
    cnn = models.create_model("cnn", num_classes=10, dtype="float32", batch_norm=False, dropout=0.0)
    # 3*3*1*32 + 32, 3*3*32*64 + 64, 7*7*64*256 + 256, 256*10 + 10
    assert num_parameters(variables_of(cnn, (28, 28, 1))) == 320 + 18496 + 803072 + 2570


def test_the_mlp_has_a_layer_for_every_size():
    mlp = models.create_model("mlp", num_classes=3, dtype="float32", hidden_sizes=(5, 7))
    assert num_parameters(variables_of(mlp, (2, 2, 1))) == (4 * 5 + 5) + (5 * 7 + 7) + (7 * 3 + 3)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 3)])
def test_average_pooling_equals_flaxs(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    np.testing.assert_allclose(models.average_pool(x), nn.avg_pool(x, (2, 2), (2, 2)), atol=1e-6)


@pytest.mark.parametrize("name", models.MODELS)
def test_bfloat16_is_for_the_computation_while_variables_and_logits_stay_float32(name):
    fields = {"hidden_sizes": (8,), "batch_norm": True, "dropout": 0.1}
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    logits = {}
    for dtype in ("float32", "bfloat16"):
        model = models.create_model(name, num_classes=10, dtype=dtype, **fields)
        variables = variables_of(model, (8, 8, 1))
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        logits[dtype] = model.apply(variables, images, train=False)
        assert logits[dtype].dtype == jnp.float32
    assert (logits["float32"] != logits["bfloat16"]).any()


def test_batch_norm_and_dropout_act_in_training_only():
    model = models.create_model("cnn", num_classes=10, dtype="float32", batch_norm=True, dropout=0.5)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = variables_of(model, (8, 8, 1))
    outputs = [
        model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 1)
    ]
    assert (outputs[0][0] != outputs[1][0]).any()
    assert not np.array_equal(
        jax.tree.leaves(outputs[0][1]["batch_stats"])[0], jax.tree.leaves(variables["batch_stats"])[0]
    )
    np.testing.assert_array_equal(*(model.apply(variables, images, train=False) for _ in range(2)))
