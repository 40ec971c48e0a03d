import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from runtime import permutation, rows

KEY = jax.random.key(0)
_example_indices = jax.jit(permutation.example_indices, static_argnames=("batch_size", "num_examples"))


def indices(step, *, batch_size, num_examples, key=KEY):
    return np.asarray(_example_indices(key, jnp.int32(step), batch_size=batch_size, num_examples=num_examples))


@pytest.mark.parametrize(("num_examples", "batch_size"), [(901, 32), (64, 16), (7, 7), (10, 4), (2, 1), (1, 1)])
def test_every_epoch_visits_every_image_once_though_batches_straddle_epochs(num_examples, batch_size):
    num_epochs = 4
    steps = -(-num_epochs * num_examples // batch_size)
    visits = np.concatenate([indices(s, batch_size=batch_size, num_examples=num_examples) for s in range(steps)])
    epochs = visits[: num_epochs * num_examples].reshape(num_epochs, num_examples)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(num_examples), (num_epochs, 1)))
    if num_examples > 7:
        assert len({tuple(epoch) for epoch in epochs}) == num_epochs


def test_a_batch_depends_on_nothing_but_key_and_step():
    batch = indices(17, batch_size=32, num_examples=901)
    np.testing.assert_array_equal(batch, indices(17, batch_size=32, num_examples=901))
    assert (batch != indices(18, batch_size=32, num_examples=901)).any()
    assert (batch != indices(17, batch_size=32, num_examples=901, key=jax.random.key(1))).any()


@pytest.mark.parametrize("step", [0, 1, 2813, 10**8, 2**31 - 1])
@pytest.mark.parametrize(
    ("batch_size", "num_examples"),
    [(128, 60000), (4096, 1281167), (4099, 2**31 - 1), (1000, 7), (1, 1), (64, 2**20), (4096, 2**30 + 1)],
)
def test_epoch_and_position_are_exact_however_large_their_products(step, batch_size, num_examples):
    i = [step * batch_size + j for j in range(batch_size)]  # Python's integers do not overflow
    position = jnp.asarray([k % num_examples for k in i], jnp.uint32)
    epoch = jnp.asarray([k // num_examples % 2**32 for k in i], jnp.uint32)
    expected = permutation.permute(position, KEY, epoch, num_examples)
    np.testing.assert_array_equal(indices(step, batch_size=batch_size, num_examples=num_examples), expected)


def test_permutations_are_as_uniform_as_random_ones():
    """Which of 6 images stands where, over 3,000 permutations: all 720 orders, by a chi-square test."""
    n, num_permutations = 6, 3000
    position = jnp.tile(jnp.arange(n, dtype=jnp.uint32), num_permutations)
    epoch = jnp.repeat(jnp.arange(num_permutations, dtype=jnp.uint32), n)
    orders = np.asarray(permutation.permute(position, KEY, epoch, n)).reshape(num_permutations, n)
    _, counts = np.unique(orders @ n ** np.arange(n), return_counts=True)
    counts = np.append(counts, np.zeros(720 - len(counts)))
    # The key is fixed, so this either always passes or never does.
    assert stats.chisquare(counts).pvalue > 0.01


def test_neighbours_are_torn_apart_like_in_a_random_permutation():
    """Successive images of an ordered set are uncorrelated after shuffling; 4 standard errors of a random order."""
    n = 60000
    position = jnp.arange(n, dtype=jnp.uint32)
    order = np.asarray(permutation.permute(position, KEY, jnp.zeros(n, jnp.uint32), n), np.float64)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(50_000, 128), (901, 32), (10, 4), (7, 7), (2**20 + 1, 4096)])
def test_a_host_that_reads_rows_reads_those_that_the_device_would_take(num_examples, batch_size):
    """Those of steps of three epochs: at their ends, and in between."""
    steps = sorted(
        {0, 1, 10**8, *(epoch * num_examples // batch_size for epoch in (1, 2, 3)), 3 * num_examples // batch_size}
    )
    find_step = permutation.find_step(KEY, batch_size, num_examples)
    positions = np.arange(batch_size)[::-1]  # in any order, and any part of them
    for step in steps:
        expected = indices(step, batch_size=batch_size, num_examples=num_examples)
        found = rows.of_step(find_step(step), positions, batch_size, num_examples)
        np.testing.assert_array_equal(found, expected[::-1])
        np.testing.assert_array_equal(
            rows.of_step(find_step(step), positions[2:5], batch_size, num_examples), found[2:5]
        )
