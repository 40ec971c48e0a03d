from fractions import Fraction

import pytest

from runtime import durations


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("10 epochs", Fraction(10 * 901, 32)),
        ("0.5 epochs", Fraction(901, 64)),
        ("60000 examples", 1875),
        ("2%", 20),
        ("0.1 %", 1),
    ],
)
def test_a_duration_is_the_exact_number_of_steps(text, steps):
    assert durations.parse(text).to_steps(batch_size=32, num_examples=901, total=Fraction(1000)) == steps


@pytest.mark.parametrize(
    ("period", "words"),
    [(500, "every 500 steps"), (Fraction(901, 160), "every 5.6 steps"), (Fraction(2, 5), "every step")],
)
def test_a_period_is_written_as_people_say_it(period, words):
    assert durations.in_words(period) == words


@pytest.mark.parametrize("text", ["", "ten epochs", "10", "-1 steps", "10 minutes", "1e3 steps", "10 epochs of fun"])
def test_what_is_no_duration_is_refused_with_examples_of_what_is(text):
    with pytest.raises(ValueError, match='"10 epochs"'):
        durations.parse(text)


def test_the_length_of_training_is_no_percentage_of_itself():
    with pytest.raises(ValueError, match="percentage of itself"):
        durations.parse("2%").to_steps(batch_size=1, num_examples=1)


@pytest.mark.parametrize("period", [Fraction(1), Fraction(7), Fraction(901, 32), Fraction(1, 3), Fraction(469, 10)])
def test_firing_k_is_due_at_the_ceiling_of_k_periods_and_at_no_other_step(period):
    last = 2000
    expected = {-(-k * period.numerator // period.denominator) for k in range(1, int(last / period) + 2)}
    assert {step for step in range(1, last + 1) if durations.is_due(step, period)} == {
        step for step in expected if step <= last
    }


def test_the_next_due_step_is_the_first_due_step_after_this_one():
    for period in (Fraction(1), Fraction(901, 32), Fraction(1, 3)):
        for step in range(200):
            due = durations.next_due(step, period)
            assert durations.is_due(due, period)
            assert not any(durations.is_due(between, period) for between in range(step + 1, due))
