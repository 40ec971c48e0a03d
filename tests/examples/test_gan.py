"""Two players with one objective: the closed form of the smallest game, and what each one's rate moves."""

import numpy as np

from examples.gan import bilinear


def test_the_bilinear_game_is_its_closed_form():
    found, expected = bilinear.play(2000, 0.02), bilinear.closed_form(2000, 0.02)
    assert found.keys() == expected.keys()
    for name, path in found.items():
        np.testing.assert_allclose(path, expected[name], rtol=0, atol=1e-4)
    radius = {name: abs(path[-1]) for name, path in expected.items()}
    assert radius["mean"] < 0.1 < radius["ema"] < 0.5 < 1 < radius["raw"]
