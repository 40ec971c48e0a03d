"""The layers of models that docs/finetune.md gives rates by depth."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from conftest import ROOT
from flax import traverse_util

import models
import optimizers
from configs import default


def parameters(name, **fields):
    """The paths of all parameters of a model, on images of 32 x 32 pixels."""
    config = default.get_config().model.to_dict() | {"name": name, **fields}
    model = models.create_model(num_classes=10, **config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))["params"]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    }


def layers(heading):
    """The regular expressions that the page makes for a model."""
    page = (ROOT / "docs" / "finetune.md").read_text()
    [code] = re.findall(rf"For the {heading}[^`]*```python\n(.*?)```", page, re.DOTALL)
    config = default.get_config()
    exec(code, {"config": config, "default": default})  # the project's own page
    return config.optimizer.groups


def members(groups, paths):
    tree = traverse_util.unflatten_dict({tuple(path.split("/")): 0 for path in paths})
    labels = traverse_util.flatten_dict(optimizers.group_of(tree, groups), sep="/")
    return {name: {path for path, label in labels.items() if label == name} for name in [*groups, ""]}


def test_the_layers_of_a_vit_are_its_blocks_above_the_embedding():
    groups, paths = layers("ViT"), parameters("vit", depth=12)
    found = members(groups, paths)
    assert found["layer0"] == {"Conv_0/kernel", "Conv_0/bias", "class_token", "position_embedding"}
    top = {"LayerNorm_24/scale", "LayerNorm_24/bias", "Dense_24/kernel", "Dense_24/bias"}
    assert found[""] == top
    blocks = [found[f"layer{number}"] for number in range(1, 13)]
    for number, block in enumerate(blocks):
        assert {path.split("/")[0] for path in block} == {
            *(f"{kind}_{2 * number + part}" for kind in ("LayerNorm", "Dense") for part in (0, 1)),
            f"MultiHeadDotProductAttention_{number}",
        }
        assert len(block) == 16
    assert set().union(found["layer0"], top, *blocks) == paths
    rates = [groups[f"layer{number}"].factor for number in range(13)]
    np.testing.assert_allclose(rates, 0.75 ** np.arange(13.0, 0, -1), rtol=1e-12)


def test_the_layers_of_a_resnet_are_its_blocks_of_which_some_have_a_projection():
    groups, paths = layers("ResNet"), parameters("resnet", depth=18)
    found = members(groups, paths)
    assert found[""] == {"Dense_0/kernel", "Dense_0/bias"}
    assert found["layer0"] == {"Conv_0/kernel", "BatchNorm_0/scale", "BatchNorm_0/bias"}
    assert set().union(*found.values()) == paths
    shapes = [[], [64, 64]] + [[64, 64]] + [shape for n in (128, 256, 512) for shape in ([n, n, n], [n, n])]
    assert len(groups) == len(shapes) == 9
    for number, shape in enumerate(shapes[1:], 1):
        assert len(found[f"layer{number}"]) == 3 * len(shape)
