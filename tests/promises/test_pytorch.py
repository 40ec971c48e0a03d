"""Weights of torchvision and timm compute the same here, and those from here the same there.

Without the libraries (requirements-benchmarks.txt) there is nothing to compare with; then
tests/runtime/test_foreign_names.py compares with what is written out there.
"""

import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, digits_config

import models
import train
from runtime.errors import UserError
from runtime.origin import locate
from tools import export
from train_state import CustomTrainState

REASON = "not installed: pip install -r requirements-benchmarks.txt"
torch = pytest.importorskip("torch", reason=f"torch is {REASON}")
torchvision = pytest.importorskip("torchvision", reason=f"torchvision is {REASON}")
timm = pytest.importorskip("timm", reason=f"timm is {REASON}")
safetensors_torch = pytest.importorskip("safetensors.torch", reason=f"torch is {REASON}")

RESNET = {"name": "resnet", "width": 1, "zero_init_residual": False, "dropout": 0.0, "stem": "imagenet"}
VIT = {"name": "vit", "depth": 12, "patch": 16, "dropout": 0.0}
TIMM = functools.partial(timm.create_model, num_classes=7)
# What makes the PyTorch model, `config.model` of ours, and the side of the images.
PAIRS = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=7), RESNET | {"depth": 18}, 33),
    "torchvision resnet50": (lambda: torchvision.models.resnet50(num_classes=7), RESNET | {"depth": 50}, 33),
    "timm resnet34": (lambda: TIMM("resnet34"), RESNET | {"depth": 34}, 32),
    "timm resnet101": (lambda: TIMM("resnet101"), RESNET | {"depth": 101}, 32),
    "timm vit_tiny": (lambda: TIMM("vit_tiny_patch16_224", img_size=32), VIT | {"width": 1}, 32),
    "timm vit_small": (lambda: TIMM("vit_small_patch16_224", img_size=48), VIT | {"width": 2}, 48),
    "timm vit_base": (lambda: TIMM("vit_base_patch16_224", img_size=32), VIT | {"width": 4}, 32),
}
QUICK = ("torchvision resnet18", "torchvision resnet50", "timm vit_small")


def randomize(model):
    """Makes every weight and batch statistic random, so that none can be taken for another, or left out."""
    torch.manual_seed(0)
    for key, x in model.state_dict().items():
        if key.endswith("running_var"):
            x.uniform_(0.5, 1.5)
        elif x.is_floating_point() and (x.ndim == 1 or key in ("cls_token", "pos_embed")):
            x.add_(0.3 * torch.randn(x.shape))
    return model.eval()


def outputs_of(model, images):
    with torch.no_grad():
        return model(images).numpy()


def distance(found, expected):
    """Relative to the norm."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def state_of(fields, side):
    """A state of our model, with zeros for weights: nothing of it is to be left."""
    model = models.create_model(num_classes=7, dtype="float32", **fields)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return CustomTrainState.create(apply_fn=model.apply, tx=optax.identity(), rng=jax.random.key(0), **variables)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PAIRS]
)
def test_a_model_computes_here_what_it_does_there_and_there_again_with_the_weights_from_here(name, tmp_path):
    create, fields, side = PAIRS[name]
    theirs, images = randomize(create()), torch.randn(3, 3, side, side)
    expected = outputs_of(theirs, images)
    safetensors_torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    state = state_of(fields, side)
    state = locate(str(tmp_path), "raw", (), state).begin(state)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile
    apply = jax.jit(state.apply_fn, static_argnames="train", compiler_options=fast)
    found = apply(variables, images.permute(0, 2, 3, 1).numpy(), train=False)
    assert distance(found, expected) <= 1e-5  # of float32, through up to 101 layers
    assert distance(expected[1:], expected[:1]) > 0.01  # images differ by far more

    (tmp_path / "written.safetensors").write_bytes(export.for_torch(variables, {}))
    again = create().eval()
    again.load_state_dict(safetensors_torch.load_file(tmp_path / "written.safetensors"))
    np.testing.assert_array_equal(outputs_of(again, images), expected)


@pytest.mark.slow
def test_weights_from_here_become_an_onnx_program_by_way_of_pytorch(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason=f"onnxruntime is {REASON}")
    pytest.importorskip("onnxscript", reason=f"onnxscript is {REASON}")
    state = state_of(RESNET | {"depth": 18}, 33)
    safetensors_torch.save_file(randomize(PAIRS["torchvision resnet18"][0]()).state_dict(), tmp_path / "x.safetensors")
    state = locate(str(tmp_path / "x.safetensors"), "raw", (), state).begin(state)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    (tmp_path / "model.safetensors").write_bytes(export.for_torch(variables, {}))

    model = torchvision.models.resnet18(num_classes=7).eval()
    model.load_state_dict(safetensors_torch.load_file(tmp_path / "model.safetensors"))
    example, dynamic = torch.zeros(2, 3, 33, 33), ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(model, (example,), tmp_path / "model.onnx", dynamic_shapes=dynamic, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = torch.randn(5, 3, 33, 33).numpy()
    [found] = session.run(None, {session.get_inputs()[0].name: images})
    expected = state.apply_fn(variables, np.moveaxis(images, 1, -1), train=False)
    assert distance(found, np.asarray(expected)) <= 1e-5  # of float32, through 18 layers


def test_position_embeddings_are_resized_as_timm_does(tmp_path):
    theirs = randomize(TIMM("vit_tiny_patch16_224", img_size=80, depth=1))
    safetensors_torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    for side in (48, 112):  # 3 x 3 and 7 x 7 patches, for 5 x 5
        state = state_of(VIT | {"width": 1, "depth": 1}, side)
        state = locate(str(tmp_path), "raw", (), state).begin(state)
        expected = timm.layers.resample_abs_pos_embed(theirs.pos_embed.detach(), [side // 16, side // 16])
        assert distance(np.asarray(state.params["position_embedding"]), expected.numpy()) < 1e-5  # float32


def test_a_run_starts_from_a_folder_of_timm_and_timm_loads_what_is_exported_of_it(tmp_path):
    sizes = {"depth": 1, "patch_size": 4, "img_size": 8, "in_chans": 1, "num_classes": 10}
    theirs = randomize(timm.create_model("vit_tiny_patch16_224", **sizes))
    safetensors_torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')  # as Hugging Face has it
    model = {"name": "vit", "depth": 1, "width": 1, "patch": 4, "hidden_sizes": (256, 256)}
    fields = {f"model__{name}": value for name, value in model.items()}
    config = digits_config(init_from=str(tmp_path), duration="1 steps", optimizer__learning_rate=0.0, **fields)
    train.train_and_evaluate(config, tmp_path / "run")
    export.export(tmp_path / "run", "ema", tmp_path / "exported", "latest", ["torch"])
    again = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    again.load_state_dict(safetensors_torch.load_file(tmp_path / "exported" / "model.safetensors"))
    for key, x in again.state_dict().items():
        # A debiased average divides by what it has multiplied with: two roundings of float32.
        np.testing.assert_allclose(x, theirs.state_dict()[key], rtol=3e-7)


def test_the_line_that_a_pickle_is_refused_with_converts_it(tmp_path):
    theirs = randomize(TIMM("vit_tiny_patch16_224", img_size=32, depth=1))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    state = state_of(VIT | {"width": 1, "depth": 1}, 32)
    with pytest.raises(UserError, match="is a pickle") as error:
        locate(str(tmp_path / "weights.pth"), "raw", (), state)
    [line] = re.findall("^python -c .*$", str(error.value), re.MULTILINE)
    subprocess.run(line.replace("python", sys.executable, 1), shell=True, check=True, cwd=ROOT)
    state = locate(str(tmp_path), "raw", (), state).begin(state)
    np.testing.assert_array_equal(state.params["Dense_2"]["kernel"], theirs.head.weight.detach().numpy().T)
