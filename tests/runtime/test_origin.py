"""What a run can start from, what of it is loaded, and what is refused."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import traverse_util

import models
from runtime import foreign_names
from runtime.errors import UserError
from runtime.origin import locate
from train_state import Average, CustomTrainState


def state_of(name="cnn", classes=3, shape=(8, 8, 1), averages=(), **fields):
    """A state at step 0, of random weights."""
    given = {"hidden_sizes": (5,), "batch_norm": True, "dropout": 0.0, "depth": 1, "width": 1, "patch": 4} | fields
    model = models.create_model(name, num_classes=classes, dtype="float32", **given)
    # Without a program that makes it, which would take longer to compile than everything else here.
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype)), shapes)
    kept = tuple(Average(name, "ema", (("debias", False), ("decay", 0.5))) for name in averages)
    tx = optax.sgd(0.1, momentum=0.9) if averages else optax.identity()
    return CustomTrainState.create(apply_fn=model.apply, tx=tx, rng=jax.random.key(0), averages=kept, **variables)


def flat(state):
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    return {path: np.asarray(x) for path, x in traverse_util.flatten_dict(weights, sep="/").items()}


def shifted(state, by=1.0):
    """What a file could hold for a state: other values."""
    return {path: x + np.asarray(by, x.dtype) for path, x in flat(state).items()}


@pytest.fixture(scope="module")
def cnn():
    return state_of(averages=("ema",))


def save(path, arrays):
    path.write_bytes(safetensors.numpy.save(arrays))
    return str(path)


def test_weights_and_batch_statistics_are_loaded_averages_start_from_them_and_the_optimizer_anew(cnn, tmp_path):
    arrays = shifted(cnn)
    moved = cnn.apply_gradients(grads=jax.tree.map(jnp.ones_like, cnn.params)).apply_ema()
    state = locate(save(tmp_path / "any.safetensors", arrays), "raw", (), moved).begin(moved)
    for path, x in flat(state).items():
        np.testing.assert_array_equal(x, arrays[path])
    average = {"params": state.ema_params["ema"], "batch_stats": state.ema_batch_stats["ema"]}
    jax.tree.map(np.testing.assert_array_equal, average, {"params": state.params, "batch_stats": state.batch_stats})
    assert state.ema_count["ema"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, moved.opt_state)  # is nothing of what is read


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_weights_of_any_floating_type_become_those_of_the_state(cnn, tmp_path, dtype):
    arrays = {path: x.astype(dtype) for path, x in shifted(cnn).items()}
    state = locate(save(tmp_path / "any.safetensors", arrays), "raw", (), cnn).begin(cnn)
    for path, x in flat(state).items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, arrays[path].astype(np.float32))


def test_what_is_skipped_stays_as_it_was_and_the_table_says_so(cnn, tmp_path, capsys):
    arrays = shifted(state_of(classes=100))
    path = save(tmp_path / "any.safetensors", arrays)
    with pytest.raises(UserError) as error:
        locate(path, "raw", (), cnn)
    assert str(error.value) == (
        f"init_from = {path!r} does not fit the config's model.\n  loaded: 14 arrays, 84,992 values\n"
        "  of another shape: 2 arrays, 771 values: Dense_1/bias (float32[100] there, float32[3] here), Dense_1/kernel "
        "(float32[256, 100] there, float32[256, 3] here)\nWhat is to stay random is named by "
        "--config.init_skip=Dense_1"
    )
    state = locate(path, "raw", ("Dense_1",), cnn).begin(cnn)
    assert capsys.readouterr().out == (
        f"Starting from {path}\n  loaded: 14 arrays, 84,992 values\n  left out: 2 arrays, 771 values: Dense_1/bias "
        "(float32[100] there, float32[3] here), Dense_1/kernel (float32[256, 100] there, float32[256, 3] here)\n"
    )
    for name, x in flat(state).items():
        expected = flat(cnn)[name] if "Dense_1/" in name else arrays[name]
        np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(state.ema_params["ema"]["Dense_1"]["kernel"], cnn.params["Dense_1"]["kernel"])


def test_init_skip_names_whole_parts_of_parameters_and_of_their_batch_statistics(cnn, tmp_path):
    arrays = shifted(cnn)
    path = save(tmp_path / "any.safetensors", arrays)
    for skip, left in [
        (("BatchNorm_0",), {"params/BatchNorm_0/scale", "params/BatchNorm_0/bias",
                            "batch_stats/BatchNorm_0/mean", "batch_stats/BatchNorm_0/var"}),
        (("Dense_0/bias", "Conv_1/"), {"params/Dense_0/bias", "params/Conv_1/kernel", "params/Conv_1/bias"}),
    ]:  # fmt: skip
        found = locate(path, "raw", skip, cnn)
        assert arrays.keys() - found.loaded == left
    for skip in ("Dense", "ense_0", "Dense_.", "kernel", "params/Dense_0"):
        with pytest.raises(UserError, match=f"init_skip: '{skip}' matches nothing; paths begin with BatchNorm_0, "):
            locate(path, "raw", ("Dense_1", skip), cnn)
    with pytest.raises(UserError, match=r"init_skip = .*: nothing of .*any.safetensors is left to load"):
        locate(path, "raw", tuple(cnn.params), cnn)


@pytest.mark.parametrize("change", ["missing", "unused", "integers", "shape"])
def test_what_does_not_fit_is_refused_and_the_message_says_what_lets_it_through(cnn, tmp_path, change):
    arrays = shifted(cnn)
    if change == "missing":
        del arrays["params/Conv_0/bias"]
        row = r"missing: 1 array, 32 values: Conv_0/bias \(float32\[32\] here\)"
    elif change == "unused":
        arrays["params/Conv_7/bias"] = np.ones(4, np.float16)
        row = r"unused: 1 array, 4 values: Conv_7/bias \(float16\[4\] there\)"
    elif change == "integers":
        arrays["params/Conv_0/bias"] = np.ones(32, np.int8)
        row = r"of another type: 1 array, 32 values: Conv_0/bias \(int8\[32\] there, float32\[32\] here\)"
    else:
        arrays["params/Conv_0/kernel"] = np.ones((3, 3, 3, 32), np.float32)
        row = r"of another shape: 1 array, 288 values: Conv_0/kernel \(float32\[3, 3, 3, 32\] there"
    path = save(tmp_path / "any.safetensors", arrays)
    with pytest.raises(UserError, match=row) as error:
        locate(path, "raw", (), cnn)
    part = str(error.value).rpartition("--config.init_skip=")[2]
    state = locate(path, "raw", (part,), cnn).begin(cnn)
    np.testing.assert_array_equal(state.params["Dense_1"]["kernel"], arrays["params/Dense_1/kernel"])
    if change != "unused":
        np.testing.assert_array_equal(state.params["Conv_0"]["bias"], cnn.params["Conv_0"]["bias"])


def test_several_parts_are_advised_together_with_those_that_are_named_already(cnn, tmp_path):
    arrays = shifted(state_of(classes=4, shape=(12, 12, 3)))
    path = save(tmp_path / "any.safetensors", arrays)
    with pytest.raises(UserError, match=r"""--config.init_skip="\('Conv_0', 'Dense_0', 'Dense_1'\)"$"""):
        locate(path, "raw", ("Dense_1",), cnn)
    assert locate(path, "raw", ("Conv_0", "Dense_0", "Dense_1"), cnn)


def test_another_model_is_said_to_be_one(cnn, tmp_path):
    path = save(tmp_path / "any.safetensors", shifted(state_of("mlp")))
    with pytest.raises(UserError, match="Without these nothing would be left to load"):
        locate(path, "raw", (), cnn)
    path = save(tmp_path / "other.safetensors", {f"params/layers/{i}/w": np.ones(3) for i in range(9)})
    message = (
        r"none of its arrays is one of the model's. The paths of .* begin with layers, those of the model with Bat"
    )
    with pytest.raises(UserError, match=message):
        locate(path, "raw", (), cnn)
    vit = state_of("vit", shape=(8, 8, 3), depth=4)
    path = save(tmp_path / "vit.safetensors", shifted(state_of("vit", shape=(8, 8, 3), depth=2)))
    with pytest.raises(UserError, match=r"These are in \d\d parts of the model: is it the same model\?$"):
        locate(path, "raw", (), vit)


@pytest.mark.parametrize("side", [12, 32])
def test_position_embeddings_are_resized_and_the_class_token_is_kept(tmp_path, capsys, side):
    """An embedding that grows linearly along the image does so in its middle, whatever the grid."""
    arrays = shifted(state_of("vit", shape=(24, 24, 3)))
    ramp = np.broadcast_to((np.arange(6) + 0.5)[:, None] / 6, (6, 6)).reshape(36, 1)
    arrays["params/position_embedding"][0, 1:] = ramp
    state = state_of("vit", shape=(side, side, 3))
    path = save(tmp_path / "model.safetensors", foreign_names.write(arrays))  # and so for names of others
    state = locate(path, "raw", (), state).begin(state)
    found, n = np.asarray(state.params["position_embedding"]), side // 4
    np.testing.assert_array_equal(found[0, 0], arrays["params/position_embedding"][0, 0])
    grid = found[0, 1:].reshape(n, n, -1)
    expected = np.broadcast_to((np.arange(n) + 0.5)[:, None, None] / n, grid.shape)
    middle = slice(1, 2) if n == 3 else slice(3, 5)
    np.testing.assert_allclose(grid[middle], expected[middle], rtol=1e-5)  # float32
    np.testing.assert_allclose(grid, np.broadcast_to(grid[:, :1, :1], grid.shape), rtol=1e-5)
    shapes = f"float32[1, 37, 192] there, float32[1, {n**2 + 1}, 192] here"
    assert f"  resized: 1 array, {found.size:,} values: position_embedding ({shapes})" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"of another shape: 1 array, .*: position_embedding [\s\S]*init_skip=position_emb"
    ):
        locate(path, "raw", (), state_of("vit", shape=(24, 12, 3)))  # no square
    with pytest.raises(UserError, match=r"of another shape: 23 arrays"):  # all but the last offset
        locate(path, "raw", (), state_of("vit", shape=(12, 12, 3), width=2))


def test_an_export_is_found_in_its_folder_and_its_average_by_its_name(cnn, tmp_path):
    save(tmp_path / "weights.safetensors", shifted(cnn))
    save(tmp_path / "model.safetensors", {"x": np.ones(1)})  # as tools.export --format=torch writes beside it
    for about, right, wrong, has in [
        ({"average": {"name": "ema"}}, ("raw", "ema"), "slow", "the average 'ema' only"),
        ({"average": None}, ("raw",), "ema", "one set of weights only"),
        ("[", ("raw",), "ema", "one set of weights only"),
    ]:
        text = about if isinstance(about, str) else json.dumps(about)
        (tmp_path / "weights.json").write_text(text)
        for name in right:
            for place in (tmp_path, tmp_path / "weights.safetensors"):
                assert len(locate(str(place), name, (), cnn).loaded) == 16
        with pytest.raises(UserError, match=rf"init_weights = '{wrong}': .* has {has}; leave it at .*init_weights=raw"):
            locate(str(tmp_path), wrong, (), cnn)


def write_something(folder, name, content=b"something"):
    folder.mkdir()
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: str(f), r"does not exist; must be the --workdir of a run, or a safetensors file, or a folder with"),
        (lambda f: write_something(f, "x") and str(f), "holds no checkpoint of a run and no weights; must be the"),
        (lambda f: write_something(f, "notes.txt"), "is no file of weights; must be the --workdir of a run, or a"),
        (lambda f: write_something(f, "model.safetensors"), "model.safetensors is no safetensors file, or only a part"),
        (lambda f: write_something(f, "model.safetensors", b""), "is no safetensors file, or only a part of one"),
        (
            lambda f: write_something(f, "x.pth"),
            r"x.pth is a pickle, .*read here[\s\S]*\npython -c .*x.pth.*model.safe",
        ),
        (lambda f: write_something(f, "x.pth.tar"), r"x.pth.tar is a pickle"),
        (lambda f: write_something(f, "pytorch_model.bin") and str(f), r"/pytorch_model.bin is a pickle"),
        (lambda f: save_names(f), r"names that are not known, such as features.0.bias, features.0.weight. Known are"),
    ],
)
def test_what_is_no_weights_is_refused(cnn, tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        locate(make(tmp_path / "place"), "raw", (), cnn)


def save_names(folder):
    folder.mkdir()
    return save(folder / "vgg.safetensors", {"features.0.weight": np.ones((2, 3)), "features.0.bias": np.ones(2)})


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused(cnn, tmp_path, share):
    path = tmp_path / "weights.safetensors"
    save(path, shifted(cnn))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"weights.safetensors is no safetensors file, or only a part of one \("):
        locate(str(tmp_path), "raw", (), cnn)
