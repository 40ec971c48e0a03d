import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import models
from tools.diagnosis import matching

MODELS = {
    "mlp": (("mlp", {"hidden_sizes": (24, 16)}), (6, 6, 1)),
    "cnn": (("cnn", {"batch_norm": False, "dropout": 0.5}), (8, 8, 1)),
    "cnn with batch norm": (("cnn", {"batch_norm": True, "dropout": 0.5}), (8, 8, 1)),
    "small_cnn": (("small_cnn", {}), (12, 12, 1)),
}
RESNET_20 = ("resnet", {"depth": 20, "width": 1, "zero_init_residual": True, "dropout": 0.5})


def create(name, fields, dtype="float32"):
    return models.create_model(name, num_classes=10, dtype=dtype, **fields)


def images_of(shape):
    return np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)


def shapes_of(model, images):
    """All that `find_units` needs of the variables."""
    shapes = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    return {"batch_stats": {}, **shapes}


def random_variables(model, images, seed=0):
    """As after training: without the zeros and ones that a network starts with, and with statistics of its own."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 * leaf.shape[-1] / leaf.size), leaf.shape).astype(np.float32)
        return ((name in ("scale", "var")) + rng.uniform(-0.5, 0.5, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(model, images))


def shuffled(units, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.permutation(layer.size) for layer in units]


def noisy(variables, share, seed):
    """With noise of a share of each variable's standard deviation."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (leaf + share * leaf.std() * rng.normal(size=leaf.shape)).astype(leaf.dtype), variables
    )


def squared_distance(first, second):
    leaves = [jax.tree.leaves(tree["params"]) for tree in (first, second)]
    return sum(np.sum((np.float64(a) - b) ** 2) for a, b in zip(*leaves, strict=True))


def assert_same_outputs(model, images, first, second):
    """Up to rounding: sums of float32 in another order, in a network of at most 20 layers, move by some 2**-24 each."""
    # Written as in `find_units`, so that it need not be compiled again.
    run = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    first, second = np.asarray(run(first, images)), np.asarray(run(second, images))
    assert np.abs(first - second).max() < 1e-5 * np.abs(first).max()
    assert first.std() > 0.1 * np.abs(first).mean()  # or there would be nothing to see


@pytest.mark.parametrize(
    "kind",
    [
        "mlp",
        "cnn with batch norm",
        pytest.param("cnn", marks=pytest.mark.slow),
        pytest.param("small_cnn", marks=pytest.mark.slow),
    ],
)
def test_a_known_permutation_is_found_and_changes_the_weights_but_not_the_outputs(kind):
    model, images = create(*MODELS[kind][0]), images_of(MODELS[kind][1])
    variables = random_variables(model, images)
    units = matching.find_units(model.apply, variables, images)
    hidden = {"mlp": [24, 16], "small_cnn": [8, 48, 256]}.get(kind, [32, 64, 256])
    assert [layer.size for layer in units] == hidden

    permutations = shuffled(units)
    permuted = matching.permute(variables, units, permutations)
    assert_same_outputs(model, images, variables, permuted)
    assert jax.tree.structure(permuted) == jax.tree.structure(variables)

    for seed in range(3):
        found = matching.match(units, variables, noisy(permuted, 0.1, seed), seed)
        for permutation, inverse in zip(permutations, found, strict=True):
            np.testing.assert_array_equal(permutation[inverse], np.arange(len(inverse)))
    back = matching.permute(permuted, units, matching.match(units, variables, permuted))
    jax.tree.map(np.testing.assert_array_equal, back, variables)  # statistics, too, to the last bit


def test_every_variable_of_a_hidden_layer_is_permuted_with_its_units():
    model, images = create(*MODELS["cnn with batch norm"][0]), images_of((8, 8, 1))
    units = matching.find_units(model.apply, shapes_of(model, images), images)
    norm = {("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var")}
    assert set(units[1].axes) == {
        (("params", "Conv_1", "kernel"), -1),
        (("params", "Conv_1", "bias"), -1),
        *(((collection, "BatchNorm_1", name), -1) for collection, name in norm),
        (("params", "Dense_0", "kernel"), -2),  # 2 * 2 pixels times 64 channels
    }


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_matching_unrelated_networks_brings_them_nearer_and_every_seed_of_it_is_reproducible(seed):
    model, images = create(*MODELS["cnn with batch norm"][0]), images_of((8, 8, 1))
    reference, variables = (random_variables(model, images, number) for number in (2 * seed, 2 * seed + 1))
    units = matching.find_units(model.apply, reference, images)
    permutations = matching.match(units, reference, variables, seed=seed)
    for permutation, again in zip(permutations, matching.match(units, reference, variables, seed=seed), strict=True):
        np.testing.assert_array_equal(permutation, again)
    matched = matching.permute(variables, units, permutations)
    assert squared_distance(reference, matched) < squared_distance(reference, variables)
    assert_same_outputs(model, images, variables, matched)
    # The descent has ended where it would start again: each layer is at its best, given the others.
    for permutation in matching.match(units, reference, matched, seed=seed + 1):
        np.testing.assert_array_equal(permutation, np.arange(len(permutation)))


def test_a_network_is_matched_with_itself_by_leaving_it_alone_even_where_units_are_equal_or_dead():
    model, images = create(*MODELS["mlp"][0]), images_of((6, 6, 1))
    variables = random_variables(model, images)
    layer = variables["params"]["Dense_0"]
    for leaf in (layer["kernel"], layer["bias"], variables["params"]["Dense_1"]["kernel"].T):
        leaf[..., :6], leaf[..., 6:12] = 0, leaf[..., 6:7]
    units = matching.find_units(model.apply, variables, images)
    for permutation in matching.match(units, variables, variables):
        np.testing.assert_array_equal(permutation, np.arange(len(permutation)))


@pytest.mark.slow
def test_of_a_residual_network_the_units_inside_the_blocks_are_found():
    """Even where the last scale of each block is 0, as at initialisation, and hides what a permutation does."""
    model, images = create(*RESNET_20), images_of((8, 8, 3))
    variables = random_variables(model, images)
    zero = jax.tree.map(np.zeros_like, variables)
    last_scales = {f"BatchNorm_{2 * block + 2}": zero["params"][f"BatchNorm_{2 * block + 2}"] for block in range(9)}
    units = matching.find_units(model.apply, variables | {"params": variables["params"] | last_scales}, images)
    assert [layer.size for layer in units] == 3 * [16] + 3 * [32] + 3 * [64]
    first, last = zip(*((layer.axes[0], layer.axes[-1]) for layer in units), strict=True)
    assert first == tuple((("params", f"Conv_{2 * block + 1}", "kernel"), -1) for block in range(9))
    assert last == tuple((("params", f"Conv_{2 * block + 2}", "kernel"), -2) for block in range(9))

    permuted = matching.permute(variables, units, shuffled(units))
    assert_same_outputs(model, images, variables, permuted)
    jax.tree.map(
        np.testing.assert_array_equal,
        matching.permute(permuted, units, matching.match(units, variables, permuted)),
        variables,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "fields", "number"),
    [
        (*RESNET_20, 9),
        ("resnet", {"depth": 56, "width": 1, "zero_init_residual": True, "dropout": 0.0}, 27),
        ("wide_resnet", {"depth": 16, "width": 2, "dropout": 0.0}, 6),
        # One hidden layer, and the dimensions of the values, which are in the same order in every head.
        ("vit", {"depth": 2, "width": 1, "patch": 4, "dropout": 0.0}, 4),
    ],
)
def test_the_tolerance_could_be_half_or_twice_as_large(name, fields, number, dtype, monkeypatch):
    model, images = create(name, fields, dtype), images_of((16, 16, 3))
    variables, tolerance = shapes_of(model, images), matching._TOLERANCE
    for factor in (0.5, 1, 2):
        monkeypatch.setattr(matching, "_TOLERANCE", factor * tolerance)
        assert len(matching.find_units(model.apply, variables, images)) == number


class Own(nn.Module):
    """A model that says what it computes of `images`, flattened."""

    def __call__(self, images, train):
        return self.compute(images.reshape(len(images), -1))


class Sum(Own):
    @nn.compact
    def compute(self, x):
        x = nn.Dense(16)(x) + nn.Dense(16)(x)  # both layers at once would do, neither alone
        return nn.Dense(10)(nn.relu(nn.Dense(12)(nn.relu(x))))


class Shortcut(Own):
    @nn.compact
    def compute(self, x):
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(10)(nn.relu(nn.Dense(12)(x))) + nn.Dense(10)(x)


class Shared(Own):
    @nn.compact
    def compute(self, x):
        first, second = nn.Dense(12), nn.Dense(x.shape[-1])
        for _ in range(2):
            x = x + second(nn.relu(first(x)))
        return nn.Dense(10)(x)


class Tied(Own):
    @nn.compact
    def compute(self, x):
        layer = nn.Dense(16)
        return nn.Dense(10)(nn.relu(layer(nn.relu(layer(nn.relu(nn.Dense(16)(x)))))))


class Grouped(Own):
    @nn.compact
    def compute(self, x):
        x = nn.PReLU()(nn.GroupNorm(num_groups=4)(nn.Dense(16)(x)))  # units of one group, but not all, could
        return nn.Dense(10)(nn.relu(nn.LayerNorm()(nn.Dense(12)(x))))


class Scaled(Own):
    @nn.compact
    def compute(self, x):
        x = nn.relu(nn.Dense(16)(x)) * jnp.arange(16)  # each unit has its own place
        return nn.Dense(10)(nn.relu(nn.Dense(12)(x)))


class ChannelsFirst(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Conv(4, (3, 3))(images)).transpose(0, 3, 1, 2).reshape(len(images), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(12)(x)))


class Narrow(Own):
    @nn.compact
    def compute(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(2)(nn.relu(nn.Dense(1)(x)))))


@pytest.mark.parametrize(
    ("model", "interchangeable"),
    [
        (Sum(), [12]),
        (Shortcut(), [12]),
        (Shared(), [12]),
        (Tied(), []),
        (Grouped(), [12]),
        (Scaled(), [12]),
        (ChannelsFirst(), [12]),
        (Narrow(), [2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_of_a_model_that_is_no_chain_only_units_that_can_change_places_are_found(model, interchangeable):
    images = images_of((4, 4, 1))
    variables = random_variables(model, images)
    units = matching.find_units(model.apply, jax.tree.map(np.zeros_like, variables), images)
    assert [layer.size for layer in units] == interchangeable
    assert_same_outputs(model, images, variables, matching.permute(variables, units, shuffled(units)))
