import re

import numpy as np
import pytest
from conftest import ROOT

import averaging
from examples import bootstrapping
from examples.bootstrapping import BAIRD, GAMMA, NONE, TWO_STATES

SOFT, HARD = averaging.soft_update, averaging.hard_update
TARGETS = {"none": NONE, "tau 0.05": SOFT(0.05), "tau 0.01": SOFT(0.01), "copy 50": HARD(50)}
PROBLEMS = {"baird": BAIRD, "two states": TWO_STATES}


def test_q_learning_with_a_table_reaches_the_optimum_without_a_target():
    # To walk right from any state is best, and a step to the left has to be made up for, but at the left end.
    to_the_end = np.array([4, 3, 2, 1, 0])
    optimum = GAMMA ** np.stack([to_the_end + np.array([1, 2, 2, 2, 2]), to_the_end], axis=1)
    np.testing.assert_allclose(bootstrapping.optimal_q(), [*optimum, [0, 0]], rtol=1e-12)
    assert bootstrapping.q_errors(NONE)[-1] < 1e-9


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_simulated_errors_are_those_of_the_linear_map(name, target):
    problem, schedule = PROBLEMS[name], TARGETS[target]
    errors = bootstrapping.value_errors(problem, schedule, 1000)
    both = np.concatenate([problem.start, problem.start])
    for t in range(1, 1001):
        both = bootstrapping.matrix(problem, float(schedule(t)), 0.01) @ both
    predicted = np.linalg.norm(problem.features @ np.split(both, 2)[0])
    assert errors[-1] == pytest.approx(predicted, rel=1e-9)  # 1,000 roundings to float64


@pytest.mark.parametrize(
    ("name", "schedule", "period", "grows"),
    [
        ("baird", NONE, 1, True),
        ("baird", SOFT(0.005), 1, False),
        ("two states", NONE, 1, True),
        ("two states", SOFT(0.01), 1, True),
        ("two states", HARD(100), 100, True),
    ],
)
def test_simulated_growth_is_the_spectral_radius(name, schedule, period, grows):
    """Of a real eigenvalue: others turn, and their growth is not that of every step."""
    errors = bootstrapping.value_errors(PROBLEMS[name], schedule, 20_000)
    expected = bootstrapping.growth(PROBLEMS[name], schedule, period)
    assert (errors[-1] / errors[-1 - period]) ** (1 / period) == pytest.approx(expected, rel=1e-6)
    assert (expected > 1) == grows


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_left_out_of_the_growth_is_what_does_not_move(name):
    problem = PROBLEMS[name]
    visible, everything = (
        np.sort(np.abs(np.linalg.eigvals(bootstrapping.matrix(p, 0.01, 0.01))))
        for p in (bootstrapping.seen(problem), problem)
    )
    unmoved = [1.0, 1 - 0.01] * (problem.features.shape[1] - np.linalg.matrix_rank(problem.features))
    np.testing.assert_allclose(everything, np.sort(np.append(visible, unmoved)), atol=1e-9)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 1.0])
def test_baird_converges_exactly_below_a_tau_and_from_a_period_on(rate):
    tau = bootstrapping.largest_tau(BAIRD, rate)
    for factor in (1e-3, 0.01, 0.1, 0.3, 0.6, 0.9, 1 - 1e-6):
        assert bootstrapping.growth(BAIRD, SOFT(factor * tau), rate=rate) < 1
    for larger in np.geomspace((1 + 1e-6) * tau, 1, 20):
        assert bootstrapping.growth(BAIRD, SOFT(larger), rate=rate) > 1
    period = bootstrapping.shortest_period(BAIRD, rate)
    for shorter in np.unique(np.geomspace(1, period - 1, 10).astype(int)):
        assert bootstrapping.growth(BAIRD, HARD(shorter), shorter, rate) > 1
    for longer in np.unique(np.geomspace(period, 5 * period, 10).astype(int)):
        assert bootstrapping.growth(BAIRD, HARD(longer), longer, rate) < 1


def test_for_small_learning_rates_the_limit_of_baird_follows_from_a_cubic():
    """Values v and targets u then move by `-G v + gamma G P u` and `k (v - u)`, for tau of k times the rate.

    G is the features' Gram matrix over 7, P the policy. What can grow has values (a, ..., a, b), and eigenvalues x with
    `x**3 + (k + 15/7) * x**2 + (k * (15 - 17 * gamma) / 7 + 26/49) * x + 26 * k * (1 - gamma) / 49 = 0`. By Hurwitz'
    criterion, real parts are negative where the product of the middle coefficients exceeds the last one.
    """
    worse = (17 * GAMMA - 15) / 7
    quadratic = [-worse, 26 / 49 - 15 / 7 * worse - 26 / 49 * (1 - GAMMA), 15 / 7 * 26 / 49]
    assert bootstrapping.largest_tau(BAIRD, 1e-5) / 1e-5 == pytest.approx(max(np.roots(quadratic)), rel=1e-4)


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.1, 0.5, 0.79])
def test_no_target_makes_the_two_states_converge_without_a_penalty_above_the_limit(rate):
    """At tau, the characteristic polynomial is `tau * rate * (2.5 + ridge - 3 * gamma)` at 1: a root lies above 1."""
    for tau in np.geomspace(1e-4, 1, 20):
        assert bootstrapping.growth(TWO_STATES, SOFT(tau), rate=rate) > 1
        assert bootstrapping.growth(TWO_STATES, SOFT(tau), rate=min(rate, 0.5), ridge=0.469) > 1
        assert bootstrapping.growth(TWO_STATES, SOFT(tau), rate=min(rate, 0.5), ridge=0.471) < 1
    with pytest.raises(ValueError, match="no period"):
        bootstrapping.shortest_period(TWO_STATES, rate, at_most=1000)


def test_limits_of_fits_and_penalties_are_those_of_the_small_matrices():
    assert bootstrapping.full_fit(TWO_STATES) == pytest.approx(6 * GAMMA / 5)
    assert bootstrapping.full_fit(BAIRD) == pytest.approx(GAMMA)
    assert bootstrapping.largest_rate(TWO_STATES) == pytest.approx(2 / 2.5)
    assert bootstrapping.largest_rate(BAIRD) == pytest.approx(14 / 13)
    assert bootstrapping.smallest_penalty(TWO_STATES) == pytest.approx(3 * GAMMA - 2.5)
    worse = (17 * GAMMA - 15) / 7
    root = (worse + (worse**2 - 4 * 26 * (1 - GAMMA) / 49) ** 0.5) / 2
    assert bootstrapping.smallest_penalty(BAIRD) == pytest.approx(root)


def test_the_page_shows_what_the_module_prints():
    page = (ROOT / "docs" / "bootstrapping.md").read_text()
    shown = "\n".join(f"    {line}".rstrip() for line in bootstrapping.findings().splitlines())
    assert shown in page
    numbers = r"\d[\d,.]*\d"  # of two digits or more
    given = {str(GAMMA), "500"}  # the picture's width
    assert set(re.findall(numbers, page.replace(shown, ""))) <= given | set(re.findall(numbers, shown))
