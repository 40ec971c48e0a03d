import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

import models
from configs import default
from runtime.errors import UserError

# The smallest model of each name.
FIELDS = {  # of the models that come with the project
    "mlp": {"hidden_sizes": (8,)},
    "cnn": {"batch_norm": True, "dropout": 0.5},
    "small_cnn": {},
    "fast_cnn": {"width": 1, "mirror": True},
    "resnet": {"depth": 20, "width": 1, "zero_init_residual": False, "dropout": 0.5},
    "wide_resnet": {"depth": 10, "width": 1, "dropout": 0.5},
    "vit": {"depth": 1, "width": 1, "patch": 4, "dropout": 0.5},
}


def create(name, num_classes=10, dtype="float32", **fields):
    return models.create_model(name, num_classes=num_classes, dtype=dtype, **FIELDS[name] | fields)


def variables_of(model, image_shape):
    return jax.jit(lambda key: model.init(key, jnp.zeros((1, *image_shape)), train=False))(jax.random.key(0))


def num_parameters(model, image_shape):
    variables = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, *image_shape)), train=False), jax.random.key(0)
    )
    return sum(p.size for p in jax.tree.leaves(variables["params"]))


def test_the_cnn_has_the_parameters_of_the_flax_mnist_example():
    # 3*3*1*32 + 32, 3*3*32*64 + 64, 7*7*64*256 + 256, 256*10 + 10
    assert num_parameters(create("cnn", batch_norm=False), (28, 28, 1)) == 320 + 18496 + 803072 + 2570


def test_the_small_cnn_shrinks_images_without_padding_and_says_which_are_too_small():
    # 6*6*1*8 + 8, 4*4*8*48 + 48, 5*5*48*256 + 256, 256*10 + 10
    assert num_parameters(create("small_cnn"), (28, 28, 1)) == 296 + 6192 + 307456 + 2570
    with pytest.raises(UserError, match=r"12 x 12 pixels"):
        create("small_cnn").init(jax.random.key(0), jnp.zeros((1, 12, 11, 1)), train=False)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 32, 32), (3, 3, 1), (4, 4, 2), (5, 12, 3), (1, 40, 1)])
@pytest.mark.parametrize("name", FIELDS)
def test_a_model_takes_images_of_any_shape_or_says_what_it_needs(name, shape):
    """Not with an error from inside of a layer."""
    try:
        assert num_parameters(create(name), shape) > 0
    except UserError as error:
        assert "pixels" in str(error)  # noqa: PT017


def test_the_mlp_has_a_layer_for_every_size():
    mlp = create("mlp", num_classes=3, hidden_sizes=(5, 7))
    assert num_parameters(mlp, (2, 2, 1)) == (4 * 5 + 5) + (5 * 7 + 7) + (7 * 3 + 3)


def _resnet_20_or_56(blocks_per_stage):
    """He et al. 2016, section 4.2, counted by hand: convolutions, scales and biases of batch norm, last layer."""
    n = blocks_per_stage
    convolutions = 9 * (3 * 16 + 2 * n * 16 * 16 + 16 * 32 + (2 * n - 1) * 32 * 32 + 32 * 64 + (2 * n - 1) * 64 * 64)
    return convolutions + 2 * (16 + 2 * n * (16 + 32 + 64)) + 64 * 10 + 10


@pytest.mark.parametrize(
    ("name", "fields", "paper", "exactly"),
    [
        ("resnet", {"depth": 20}, 0.27e6, _resnet_20_or_56(3)),  # He et al. 2016, table 6
        ("resnet", {"depth": 56}, 0.85e6, _resnet_20_or_56(9)),
        # The paper's ResNet-18 and -34 for 1,000 classes have 11,689,512 and 21,797,672. A 3x3 convolution instead of
        # the 7x7 one saves 7,680 of them, 990 classes fewer 507,870.
        ("resnet", {"depth": 18}, 11.2e6, 11_689_512 - 7_680 - 507_870),
        ("resnet", {"depth": 34}, 21.3e6, 21_797_672 - 7_680 - 507_870),
        ("wide_resnet", {"depth": 28, "width": 10}, 36.5e6, 36_479_194),  # Zagoruyko & Komodakis 2016, table 4
        ("wide_resnet", {"depth": 16, "width": 8}, 11.0e6, None),
        ("wide_resnet", {"depth": 40, "width": 4}, 8.9e6, None),
    ],
)
def test_a_residual_network_has_the_parameters_of_its_paper(name, fields, paper, exactly):
    number = num_parameters(create(name, **fields), (32, 32, 3))
    assert number == pytest.approx(paper, rel=0.01)  # the papers round
    assert exactly in (None, number)


@pytest.mark.parametrize(
    ("depth", "exactly"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)]
)
def test_with_the_stem_of_its_paper_a_residual_network_is_that_for_imagenet(depth, exactly):
    """The counts of ResNet-50 and -101, by hand in `_bottlenecks`, are also those of other implementations."""
    assert num_parameters(create("resnet", 1000, depth=depth, stem="imagenet"), (224, 224, 3)) == exactly
    if depth in (50, 101):
        assert exactly == _bottlenecks({50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth])


def _bottlenecks(stages):
    """He et al. 2016, table 1, counted by hand: kernels, and scale and bias of batch norm for each of their outputs."""

    def layer(inputs, outputs, size):
        return size * size * inputs * outputs + 2 * outputs

    total, inputs = layer(3, 64, 7), 64
    for stage, num_blocks in enumerate(stages):
        c = 64 * 2**stage
        total += layer(inputs, 4 * c, 1)  # the projection
        for _ in range(num_blocks):
            total += layer(inputs, c, 1) + layer(c, c, 3) + layer(c, 4 * c, 1)
            inputs = 4 * c
    return total + inputs * 1000 + 1000


@pytest.mark.parametrize(("width", "paper"), [(1, 5.7e6), (2, 22e6), (4, 86e6)])
def test_a_vision_transformer_has_the_parameters_of_its_paper(width, paper):
    """Touvron et al. 2021, table 1: images of 224x224, patches of 16x16, 1,000 classes."""
    d = 192 * width
    block = 4 * (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d) + 4 * d
    by_hand = (16 * 16 * 3 * d + d) + d + 197 * d + 12 * block + 2 * d + (1000 * d + 1000)
    assert num_parameters(create("vit", 1000, depth=12, width=width, patch=16), (224, 224, 3)) == by_hand
    assert by_hand == pytest.approx(paper, rel=0.01)


@pytest.mark.parametrize(
    ("name", "fields", "sizes"),
    [
        ("resnet", {"depth": 20}, {32, 16, 8}),
        ("resnet", {"depth": 18}, {32, 16, 8, 4}),
        ("resnet", {"depth": 18, "stem": "imagenet"}, {16, 8, 4, 2, 1}),
        ("wide_resnet", {"depth": 16}, {32, 16, 8}),
    ],
)
def test_the_stages_of_a_residual_network_halve_the_image(name, fields, sizes):
    model = create(name, **fields)

    def intermediates(key):
        return model.init_with_output(key, jnp.zeros((1, 32, 32, 3)), train=False, capture_intermediates=True)[1]

    outputs = jax.eval_shape(intermediates, jax.random.key(0))["intermediates"]
    convolutions = [outputs[layer]["__call__"][0].shape for layer in outputs if layer.startswith("Conv_")]
    assert {height for _, height, _, _ in convolutions} == {width for _, _, width, _ in convolutions} == sizes
    # Twice the channels at half the size.
    assert {height * channels for _, height, _, channels in convolutions[1:]} == {
        convolutions[1][1] * convolutions[1][3]
    }


def test_the_stride_of_a_bottleneck_is_in_its_second_convolution():
    model = create("resnet", depth=50, stem="imagenet")

    def intermediates(key):
        return model.init_with_output(key, jnp.zeros((1, 64, 64, 3)), train=False, capture_intermediates=True)[1]

    outputs = jax.eval_shape(intermediates, jax.random.key(0))["intermediates"]
    # Stem and pooling leave 16x16 pixels. The first stage has the convolutions 1 to 10, one of them a projection.
    shapes = [outputs[f"Conv_{index}"]["__call__"][0].shape[1:] for index in (0, 1, 10, 11, 12, 13, 14)]
    assert shapes == [(32, 32, 64), (16, 16, 64), (16, 16, 256), (16, 16, 128), *[(8, 8, c) for c in (128, 512, 512)]]


@pytest.mark.slow
def test_zero_initialised_residuals_make_every_block_an_identity():
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    model = create("resnet", zero_init_residual=True)
    variables = variables_of(model, (8, 8, 3))
    apply = jax.jit(lambda variables: model.apply(variables, images, train=False))

    def changed(tree, change, chosen):
        def of(path, leaf):
            return change(leaf) if chosen(path[-2].key, path[-1].key) else leaf

        return jax.tree_util.tree_map_with_path(of, tree)

    def double(tree):
        return changed(tree, lambda x: 2 * x, lambda layer, name: layer.startswith("Conv_") and layer != "Conv_0")

    # With identities for blocks, the convolutions inside them do not matter.
    np.testing.assert_array_equal(apply(variables), apply(double(variables)))
    active = changed(variables, jnp.ones_like, lambda layer, name: name == "scale")
    assert (apply(active) != apply(double(active))).any()


@pytest.mark.slow
def test_stochastic_depth_skips_each_branch_for_its_share_of_the_images_and_scales_the_others():
    """The share grows linearly to that of the last block. With a share of 0, nothing is drawn."""
    n, rate = 2000, 0.4
    images = jnp.ones((n, 4, 4, 1))  # all the same, so that they differ in what they skip only
    model = create("vit", depth=2, dropout=0.0, stochastic_depth=rate)
    variables = jax.tree.map(lambda x: x + 0.01, variables_of(model, (4, 4, 1)))

    @jax.jit
    def branches(variables, key):
        def kept(layer, name):
            return isinstance(layer, models.StochasticDepth) and name == "__call__"

        rngs = {"dropout": key}
        _, state = model.apply(variables, images, train=True, rngs=rngs, capture_intermediates=kept)
        return [state["intermediates"][f"StochasticDepth_{i}"]["__call__"][0] for i in range(4)]

    found = [np.asarray(branch) for branch in branches(variables, jax.random.key(0))]
    for index, branch in enumerate(found):
        expected = rate * (index // 2 + 1) / 2
        skipped = (branch == 0).all(axis=(1, 2))
        assert abs(skipped.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
        assert (branch[~skipped] != 0).all()
    # Without skipping, in evaluation too, the first branch of all images is the same but for its scale.
    one, none = images[:1], create("vit", depth=2, dropout=0.0)
    whole = jax.jit(functools.partial(model.apply, train=False, capture_intermediates=True))(variables, one)
    np.testing.assert_array_equal(whole[0], jax.jit(functools.partial(none.apply, train=False))(variables, one))
    branch = whole[1]["intermediates"]["MultiHeadDotProductAttention_0"]["__call__"][0][0]
    kept = found[0][(found[0] != 0).any(axis=(1, 2))]
    np.testing.assert_allclose(kept * (1 - rate / 2), np.broadcast_to(branch, kept.shape), rtol=1e-5, atol=1e-6)
    _, pairs = np.unique([(branch == 0).all(axis=(1, 2)) for branch in found[2:]], axis=1, return_counts=True)
    assert stats.chisquare(pairs, n * np.array([0.36, 0.24, 0.24, 0.16])).pvalue > 0.01  # independent of each other


@pytest.mark.slow
def test_the_blocks_of_a_residual_network_are_skipped_for_shares_that_grow_linearly():
    n, rate = 500, 0.6
    model = create("resnet", stochastic_depth=rate)
    variables = variables_of(model, (4, 4, 1))

    @jax.jit
    def branches(key):
        images = jax.random.normal(jax.random.key(1), (n, 4, 4, 1))
        options = {"mutable": ["batch_stats", "intermediates"], "rngs": {"dropout": key}}
        _, state = model.apply(variables, images, train=True, capture_intermediates=True, **options)
        return [state["intermediates"][f"StochasticDepth_{i}"]["__call__"][0] for i in range(9)]

    skipped = np.array([(branch == 0).all(axis=(1, 2, 3)).mean() for branch in branches(jax.random.key(0))])
    expected = rate * np.arange(1, 10) / 9
    assert (np.abs(skipped - expected) < 4 * np.sqrt(expected * (1 - expected) / n)).all()


@pytest.mark.parametrize(("name", "number"), [("resnet", 1), ("vit", 3)])
def test_layers_of_dropout_are_numbered_as_if_there_were_no_stochastic_depth(name, number):
    """Their names decide what they draw, and so it is what it was before there was any."""
    model = create(name, stochastic_depth=0.5)

    def intermediates(key):
        return model.init_with_output(key, jnp.zeros((1, 8, 8, 3)), train=False, capture_intermediates=True)[1]

    layers = jax.eval_shape(intermediates, jax.random.key(0))["intermediates"]
    assert {layer for layer in layers if layer.startswith("Dropout_")} == {f"Dropout_{i}" for i in range(number)}


def test_a_model_of_a_run_before_there_were_stem_and_stochastic_depth_is_what_it_was():
    config = default.get_config().model
    for name, fields in (("resnet", ("stem", "stochastic_depth")), ("vit", ("stochastic_depth",))):
        assert create(name) == create(name, **{field: config[field] for field in fields})


def test_a_model_that_does_not_exist_or_cannot_be_is_refused_with_what_can():
    with pytest.raises(UserError, match=r"model\.name = 'rnn': must be one of 'mlp', 'cnn', "):
        models.create_model("rnn", num_classes=10, dtype="float32")
    with pytest.raises(UserError, match=r"model\.depth = 19: must be one of 18, 20, 34, 50, 56, 101"):
        create("resnet", depth=19)
    with pytest.raises(UserError, match=r"model\.depth = 8: must be 6 n"):
        create("wide_resnet", depth=8)


def test_images_that_patches_do_not_fill_are_refused():
    with pytest.raises(UserError, match=r"model.patch = 4: must divide the 8 x 10 pixels"):
        create("vit").init(jax.random.key(0), jnp.zeros((1, 8, 10, 3)), train=False)


@pytest.mark.slow
def test_the_fast_cnn_treats_an_image_and_its_mirror_image_alike_in_evaluation_if_it_is_to():
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    for mirror in (True, False):
        model = create("fast_cnn", mirror=mirror)
        variables = variables_of(model, (32, 32, 3))
        logits, mirrored = (model.apply(variables, x, train=False) for x in (image, image[:, :, ::-1]))
        assert np.allclose(logits, mirrored, rtol=0, atol=1e-5) == mirror  # float32's rounding of logits near 1
    assert num_parameters(model, (32, 32, 3)) == 1_971_352


@pytest.mark.slow
def test_the_first_layer_of_the_fast_cnn_is_orthogonal_and_its_kernels_start_as_identities():
    pixels = jnp.eye(12).reshape(12, 2, 2, 3)  # all the images of 2x2 pixels with a single one
    wavelets = models._wavelets(pixels).reshape(12, 12)
    np.testing.assert_allclose(wavelets @ wavelets.T, np.eye(12), rtol=0, atol=1e-6)  # float32's rounding
    kernel = variables_of(create("fast_cnn"), (32, 32, 3))["params"]["Conv_0"]["kernel"]
    image = jax.random.normal(jax.random.key(0), (1, 5, 5, 24))
    features = nn.Conv(64, (3, 3), use_bias=False).apply({"params": {"kernel": kernel}}, image)
    np.testing.assert_allclose(features[..., :24], image, rtol=0, atol=1e-6)


LARGE = ("fast_cnn", "resnet", "vit", "wide_resnet")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in FIELDS])
def test_bfloat16_is_for_the_computation_while_variables_and_logits_stay_float32(name):
    images = jax.random.normal(jax.random.key(1), (4, 12, 12, 3))
    logits = {}
    for dtype in ("float32", "bfloat16"):
        model = create(name, dtype=dtype)
        variables = variables_of(model, (12, 12, 3))
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        logits[dtype] = jax.jit(functools.partial(model.apply, train=False))(variables, images)
        assert logits[dtype].dtype == jnp.float32
    assert (logits["float32"] != logits["bfloat16"]).any()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in FIELDS if "dropout" in FIELDS[name]],
)
def test_batch_norm_and_dropout_act_in_training_only(name):
    model = create(name)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = variables_of(model, (8, 8, 1))

    @jax.jit
    def train(seed):
        return model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)}
        )

    outputs = [train(seed) for seed in (0, 1)]
    assert (outputs[0][0] != outputs[1][0]).any()
    before, after = (jax.tree.leaves(tree.get("batch_stats", {})) for tree in (variables, outputs[0][1]))
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert bool(before) == (name != "vit")
    evaluate = jax.jit(functools.partial(model.apply, train=False))
    np.testing.assert_array_equal(*(evaluate(variables, images) for _ in range(2)))
