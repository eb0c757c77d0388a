from __future__ import annotations

import numpy as np
import pytest

from luthier.stats.prevalence import corrected_interval


def test_a_detector_without_error_leaves_the_share() -> None:
    low, high = corrected_interval(50, 200, found=10**7, positives=10**7, left_alone=10**7, negatives=10**7)
    assert low == pytest.approx(0.195, abs=0.002) and high == pytest.approx(0.315, abs=0.002)  # Wilson: 0.195 to 0.314


def test_less_known_of_the_errors_is_wider() -> None:
    many = corrected_interval(50, 200, found=900, positives=1000, left_alone=900, negatives=1000)
    few = corrected_interval(50, 200, found=27, positives=30, left_alone=27, negatives=30)
    assert few[0] < many[0] and few[1] > many[1]
    assert many[0] < 0.1875 < many[1]  # (0.25 + 0.9 - 1) / 0.8


def test_ends_lie_within_zero_and_one() -> None:
    assert corrected_interval(0, 60, found=549, positives=569, left_alone=296, negatives=331)[0] == 0.0
    assert corrected_interval(60, 60, found=549, positives=569, left_alone=296, negatives=331)[1] == 1.0


def test_fewer_than_false_alarms_alone_is_no_certain_zero() -> None:
    """None of 250 seen, where 26 false alarms were to be expected: the errors known are not those here."""
    low, high = corrected_interval(0, 250, found=549, positives=569, left_alone=296, negatives=331)
    assert low == 0.0 and high == pytest.approx(0.0151, abs=0.0005)  # Wilson
    low, high = corrected_interval(250, 250, found=450, positives=569, left_alone=331, negatives=331)
    assert low == pytest.approx(0.9849, abs=0.0005) and high == 1.0


def test_a_coin_is_refused() -> None:
    with pytest.raises(ValueError, match="specificity"):
        corrected_interval(5, 10, found=50, positives=100, left_alone=50, negatives=100)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 0.9])
def test_it_covers(share: float) -> None:
    """Items, refusals and others drawn anew 2,000 times; 95 % intervals hold the true share in 93 to 99 % of them."""
    generator = np.random.default_rng(7)
    sensitivity, specificity, n, positives, negatives = 0.96, 0.89, 250, 569, 331
    seen = share * sensitivity + (1 - share) * (1 - specificity)
    inside = 0
    for _ in range(2000):
        low, high = corrected_interval(
            generator.binomial(n, seen),
            n,
            found=generator.binomial(positives, sensitivity),
            positives=positives,
            left_alone=generator.binomial(negatives, specificity),
            negatives=negatives,
        )
        inside += low <= share <= high
    assert 0.93 <= inside / 2000 <= 0.99
