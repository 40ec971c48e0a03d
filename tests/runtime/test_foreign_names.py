"""With the weights of a PyTorch model, ours computes what it does, written out here by its own names.

tests/promises/test_pytorch.py compares with torchvision and timm themselves, where they are installed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import special

import models
from runtime import foreign_names
from runtime.errors import UserError

FIELDS = {
    "resnet": {"width": 1, "zero_init_residual": False, "dropout": 0.0, "stem": "imagenet"},
    "vit": {"width": 1, "patch": 4, "dropout": 0.0},
}


def create(name, depth, side):
    """Our model and its variables, random ones, by their paths."""
    model = models.create_model(name, num_classes=3, dtype="float32", depth=depth, **FIELDS[name])
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))
    rng = np.random.default_rng(0)

    def values(path, shape):
        if path.endswith("/var"):
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)
        width = 1.5 * np.prod(shape[:-1]) ** -0.5 if path.endswith("/kernel") else 0.5
        return rng.normal(path.endswith("/scale"), width, shape).astype(np.float32)

    flat = traverse_util.flatten_dict(shapes, sep="/")
    return model, {path: values(path, x.shape) for path, x in flat.items()}


def resnet18(w, x):
    """The outputs of torchvision's resnet18, w: its state_dict, x: [batch, channels, height, width]."""

    def conv(name, x, stride, pad):
        x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
        windows = np.lib.stride_tricks.sliding_window_view(x, w[f"{name}.weight"].shape[2:], axis=(2, 3))
        y = np.tensordot(windows[:, :, ::stride, ::stride], w[f"{name}.weight"], ((1, 4, 5), (1, 2, 3)))
        return y.transpose(0, 3, 1, 2)

    def norm(name, x):
        mean, var, scale, bias = (
            w[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def relu(x):
        return np.maximum(x, 0)

    x = relu(norm("bn1", conv("conv1", x, 2, 3)))
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride, 1)))
            y = norm(f"{name}.bn2", conv(f"{name}.conv2", y, 1, 1))
            if stride == 2:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, 2, 0))
            x = relu(x + y)
    return x.mean(axis=(2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def vit(w, x, heads=3, patch=4):
    """The outputs of timm's VisionTransformer, as `resnet18`."""

    def dense(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]

    batch, channels, side, _ = x.shape
    x = x.reshape(batch, channels, side // patch, patch, side // patch, patch).transpose(0, 2, 4, 1, 3, 5)
    kernel = w["patch_embed.proj.weight"]
    x = x.reshape(batch, -1, kernel[0].size) @ kernel.reshape(len(kernel), -1).T + w["patch_embed.proj.bias"]
    x = np.concatenate([np.tile(w["cls_token"], (batch, 1, 1)), x], axis=1) + w["pos_embed"]
    for block in range(2):
        qkv = dense(f"blocks.{block}.attn.qkv", norm(f"blocks.{block}.norm1", x))
        q, k, v = qkv.reshape(batch, x.shape[1], 3, heads, -1).transpose(2, 0, 3, 1, 4)
        attention = special.softmax(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]), axis=-1)
        x = x + dense(f"blocks.{block}.attn.proj", (attention @ v).swapaxes(1, 2).reshape(x.shape))
        y = dense(f"blocks.{block}.mlp.fc1", norm(f"blocks.{block}.norm2", x))
        x = x + dense(f"blocks.{block}.mlp.fc2", y * special.ndtr(y))  # the exact gelu
    return dense("head", norm("norm", x)[:, 0])


@pytest.mark.parametrize(("name", "depth", "side", "theirs"), [("resnet", 18, 33, resnet18), ("vit", 2, 12, vit)])
def test_a_model_computes_with_the_names_of_another_library_what_that_computes(name, depth, side, theirs):
    """Batch norm's and layer norm's epsilon, padding, gelu, heads and the order of layers are all in it."""
    model, ours = create(name, depth, side)
    weights = foreign_names.write(ours)
    images = np.random.default_rng(1).normal(size=(2, 3, side, side))
    expected = theirs({key: x.astype(np.float64) for key, x in weights.items()}, images)
    variables = traverse_util.unflatten_dict(foreign_names.read(weights, "file"), sep="/")
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile
    apply = jax.jit(model.apply, static_argnames="train", compiler_options=fast)
    outputs = apply(variables, images.transpose(0, 2, 3, 1).astype(np.float32), train=False)
    assert np.linalg.norm(outputs - expected) <= 1e-5 * np.linalg.norm(expected)  # float32 against float64
    assert np.linalg.norm(expected - expected.mean(axis=0)) > 0.1 * np.linalg.norm(expected)  # it sees the images


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("vit", 3),
        ("resnet", 18),
        ("resnet", 50),
        *(pytest.param("resnet", d, marks=pytest.mark.slow) for d in (34, 101)),
    ],
)
def test_names_go_there_and_back_at_every_depth(name, depth):
    _, ours = create(name, depth, 32)
    theirs = foreign_names.write(ours)
    back = foreign_names.read({"extra": np.ones(1), "bn1.num_batches_tracked": np.ones(()), **theirs}, "file")
    assert back.keys() == {*ours, "extra"}
    for path, x in ours.items():
        np.testing.assert_array_equal(back[path], x)
    # So does a model without its last layer, in which the same names are found.
    features = {key: x for key, x in theirs.items() if not key.startswith(("fc.", "head."))}
    assert len(foreign_names.read(features, "file")) == len(ours) - 2


def test_names_that_are_not_known_are_refused_with_those_that_are():
    _, ours = create("vit", 2, 32)
    theirs = foreign_names.write(ours)
    renamed = {key.replace("norm.", "fc_norm."): x for key, x in theirs.items()}  # a mean over patches
    with pytest.raises(UserError, match=r"vision transformers .*; of the nearest of them it lacks norm.weight"):
        foreign_names.read(renamed, "file")
    with pytest.raises(UserError, match=r"^file has names that are not known, such as a, b, c\. Known are .* timm"):
        foreign_names.read({name: np.ones(1) for name in "dcba"}, "file")
    with pytest.raises(UserError, match="--format=torch: the model is none of those whose names are known: ResNet-18"):
        foreign_names.write({**ours, "params/more": np.ones(1)})


def test_arrays_of_odd_shapes_are_left_for_the_comparison_that_follows():
    _, ours = create("vit", 1, 32)
    theirs = foreign_names.write(ours)
    for key in theirs:
        for shape in ((), (5,), (5, 7), (5, 7, 2, 2)):
            foreign_names.read({**theirs, key: np.ones(shape, np.float32)}, "file")
