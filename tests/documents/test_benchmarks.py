import numpy as np
import pytest
from scipy import stats

from benchmarks import measure


def test_variants_take_turns_in_an_order_that_a_drift_does_not_favour():
    order = []
    variants = {name: lambda name=name: order.append(name) for name in "AB"} | {"own": lambda: 7.0}
    seconds = measure.interleaved(variants, rounds=3)
    assert order == ["A", "B", "B", "A", "A", "B"]
    assert seconds["own"] == [7.0, 7.0, 7.0]  # what times itself is believed
    assert all(len(values) == 3 for values in seconds.values())


@pytest.mark.parametrize(("num_rounds", "k"), [(6, 1), (8, 1), (9, 2), (10, 2), (25, 8)])
def test_the_interval_of_a_ratio_is_the_narrowest_of_order_statistics_that_covers_the_median(num_rounds, k):
    values = np.random.default_rng(0).permutation(num_rounds) + 1.0
    found = measure.paired_ratio(2 * values * values, values)
    assert found == {"ratio": num_rounds + 1, "low": 2 * k, "high": 2 * (num_rounds + 1 - k)}

    def coverage(k):  # that at least k and at most n - k values lie below the median
        return 1 - 2 * stats.binom.cdf(k - 1, num_rounds, 0.5)

    assert coverage(k) >= 0.95 > coverage(k + 1)


def test_fewer_rounds_than_an_interval_needs_are_refused():
    with pytest.raises(ValueError, match="rounds = 5"):
        measure.paired_ratio([1.0] * 5, [1.0] * 5)
