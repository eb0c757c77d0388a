"""Length, reading level, register, and the distance of distributions, by hand."""

from __future__ import annotations

import math

import pytest

from luthier.metrics.tone import distance, measure_text


def test_measures_by_hand() -> None:
    text = "You can't lose. We pay!"
    # words: you can t lose we pay (an apostrophe separates); informal: You, can't, We, "!"
    assert measure_text(text, "length") == 6.0
    assert measure_text(text, "register") == pytest.approx(100 * 4 / 6)
    letters = len("youcantlosewepay")
    assert measure_text(text, "reading level") == pytest.approx(4.71 * letters / 6 + 0.5 * 6 / 2 - 21.43)
    assert measure_text("...", "length") is None
    assert measure_text("Grüße \U0001f600 an alle", "register") == pytest.approx(100 / 3)


def test_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    # F at 2: 2/4 against 0/4; at 4: 4/4 against 2/4
    found = distance([1, 2, 3, 4], [3, 4, 5, 6], 4)
    assert found.value == pytest.approx(0.5)
    half = math.sqrt(math.log(40) / 8)
    assert found.low == 0.0 and found.high == pytest.approx(min(1.0, 0.5 + half))
    assert distance([1, 2, 3], [1, 2, 3], 3).value == 0.0
    assert distance([1, 2], [8, 9], 2).value == 1.0
    assert distance([5, 5, 5], [5], 3).value == 0.0
    assert distance([], [1.0], 1).value is None


def test_the_interval_holds_the_true_distance_in_95_of_100() -> None:
    """A uniform sample against the same uniform (distance 0 to a fine grid), and against one shifted by 0.3."""
    import random

    rng = random.Random("tone")
    grid = [(i + 0.5) / 400 for i in range(400)]
    shifted = [x + 0.3 for x in grid]
    held = {"same": 0, "shifted": 0}
    for _ in range(300):
        sample = [rng.random() for _ in range(60)]
        for name, reference, true in (("same", grid, 0.0), ("shifted", shifted, 0.3)):
            found = distance(sample, reference, 60)
            assert found.low is not None and found.high is not None
            held[name] += found.low - 0.005 <= true <= found.high + 0.005
    assert held["same"] >= 279 and held["shifted"] >= 279, held
