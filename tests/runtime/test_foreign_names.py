"""Models of PyTorch and ours compute the same with the same weights, which go from one to the other and back.

Where torch, torchvision and timm are not installed (requirements-benchmarks.txt) there is nothing to compare with.
"""

import functools
import shlex
import subprocess

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from runtime import foreign_names
from runtime.errors import UserError
from runtime.origin import locate
from train_state import CustomTrainState

REASON = "torch, torchvision and timm are not installed: pip install -r requirements-benchmarks.txt"
torch = pytest.importorskip("torch", reason=REASON)
torchvision = pytest.importorskip("torchvision", reason=REASON)
timm = pytest.importorskip("timm", reason=REASON)
safetensors_torch = pytest.importorskip("safetensors.torch", reason=REASON)

RESNET = {"name": "resnet", "width": 1, "zero_init_residual": False, "dropout": 0.0, "stem": "imagenet"}
VIT = {"name": "vit", "patch": 16, "dropout": 0.0}
CLASSES = 7
# What makes the PyTorch model, `config.model` of ours, and the side of the images.
PAIRS = {
    "torchvision resnet18": (functools.partial(torchvision.models.resnet18, num_classes=CLASSES), RESNET, 18, 33),
    "torchvision resnet50": (functools.partial(torchvision.models.resnet50, num_classes=CLASSES), RESNET, 50, 33),
    "timm resnet34": (functools.partial(timm.create_model, "resnet34", num_classes=CLASSES), RESNET, 34, 32),
    "timm resnet101": (functools.partial(timm.create_model, "resnet101", num_classes=CLASSES), RESNET, 101, 32),
    "timm vit_tiny": (
        functools.partial(timm.create_model, "vit_tiny_patch16_224", num_classes=CLASSES, img_size=32),
        VIT | {"width": 1},
        12,
        32,
    ),
    "timm vit_small": (
        functools.partial(timm.create_model, "vit_small_patch16_224", num_classes=CLASSES, img_size=48),
        VIT | {"width": 2},
        12,
        48,
    ),
}


def theirs(name):
    """A PyTorch model, and images [batch, channels, height, width] with what it makes of them.

    All of its weights and batch statistics are random, so that none can be taken for another, or left out.
    """
    torch.manual_seed(0)
    create, *_, side = PAIRS[name]
    model = create().eval()
    for key, x in model.state_dict().items():
        if key.endswith("running_var"):
            x.uniform_(0.5, 1.5)
        elif x.ndim == 1:
            x.add_(0.1 * torch.randn(x.shape))
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        return model, images, model(images).numpy()


def state_of(fields, depth, side):
    """Our model at step 0."""
    model = models.create_model(num_classes=CLASSES, dtype="float32", depth=depth, **fields)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), jnp.zeros((1, side, side, 3)), train=False))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    variables = jax.device_put(variables)
    import optax

    return CustomTrainState.create(apply_fn=model.apply, tx=optax.identity(), rng=jax.random.key(0), **variables)


@pytest.mark.parametrize("name", PAIRS)
def test_outputs(name, tmp_path):
    model, images, expected = theirs(name)
    _, fields, depth, side = PAIRS[name]
    safetensors_torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    state = state_of(fields, depth, side)
    state = locate(str(tmp_path), "raw", (), state).begin(state)
    import time; t=time.time()
    out = jax.jit(state.apply_fn, static_argnames="train", compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True})({"params": state.params, "batch_stats": state.batch_stats}, images.permute(0, 2, 3, 1).numpy(), train=False)
    print(time.time()-t, name, np.linalg.norm(out - expected) / np.linalg.norm(expected), np.abs(expected).max())
    flat = flax.traverse_util.flatten_dict(jax.device_get({"params": state.params, "batch_stats": state.batch_stats}), sep="/")
    back = PAIRS[name][0]().eval()
    back.load_state_dict({k: torch.from_numpy(v) for k, v in foreign_names.write(flat).items()})
    with torch.no_grad():
        print(np.abs(back(images).numpy() - expected).max())
