from __future__ import annotations

import math

import numpy as np
import pytest
from tests.unit.stats.simulate_learning import learning_coverage

from luthier.stats.learning import fit_learning_curve

SIZES = [50, 100, 200, 400]


def _scores(errors: list[float], num_items: int = 1000) -> list[list[float]]:
    """Exactly these shares of wrong items, the wrong ones of a larger size among those of a smaller."""
    return [[0.0 if i < round(error * num_items) else 1.0 for i in range(num_items)] for error in errors]


def _fit(errors: list[float], **more: object):
    return fit_learning_curve(_scores(errors), [str(i) for i in range(1000)], SIZES, seed=0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("a", "b", "c"), [(3.0, 0.5, 0.05), (1.2, 0.35, 0.0), (30.0, 1.0, 0.10)])
def test_a_true_power_law_is_found_again(a: float, b: float, c: float) -> None:
    fit = _fit([c + a * n**-b for n in SIZES], seed_sd=0.001)
    value, low, high = fit.gain(800)
    truth = a * 400**-b - a * 800**-b
    assert value == pytest.approx(truth, abs=0.006)
    assert low <= truth <= high
    assert fit.is_rising
    assert fit.score(200)[0] == pytest.approx(1 - c - a * 200**-b, abs=0.006)


def test_the_prompt_is_worth_the_rows_at_which_the_curve_crosses_it() -> None:
    errors = [0.05 + 3 * n**-0.5 for n in SIZES]
    prompt = _scores([0.05 + 3 * 150**-0.5])[0]
    found = _fit(errors, seed_sd=0.001, reference=prompt).worth()
    assert found is not None
    assert found[0] == pytest.approx(150, rel=0.06)
    assert found[1] <= 150 <= found[2]
    assert _fit(errors, seed_sd=0.001).worth() is None
    perfect = _fit(errors, seed_sd=0.001, reference=[1.0] * 1000).worth()
    assert perfect is not None and perfect[2] == math.inf


def test_a_flat_or_falling_curve_says_nothing() -> None:
    flat = _fit([0.3, 0.3, 0.3, 0.3])
    assert not flat.is_rising
    assert flat.gain(800)[0] == pytest.approx(0.0, abs=1e-9)
    falling = _fit([0.2, 0.22, 0.25, 0.3])
    assert not falling.is_rising and falling.last_gain[0] < 0
    assert falling.gain(800)[0] >= 0  # the law cannot fall; that is why the last step is looked at first


def test_more_training_noise_widens_and_copies_of_items_do_not_narrow() -> None:
    errors = [0.05 + 3 * n**-0.5 for n in SIZES]
    quiet, loud = _fit(errors, seed_sd=0.002).gain(800), _fit(errors, seed_sd=0.03).gain(800)
    assert quiet[2] - quiet[1] < loud[2] - loud[1]
    few = [row[::10] for row in _scores(errors)]
    names = [str(i) for i in range(100)]
    alone = fit_learning_curve(few, names, SIZES, seed=0, seed_sd=0.002)
    copied = fit_learning_curve([row * 10 for row in few], names * 10, SIZES, seed=0, seed_sd=0.002)
    assert copied.last_gain == pytest.approx(alone.last_gain)
    assert _fit(errors).last_gain == _fit(errors).last_gain


def test_two_sizes_or_sizes_out_of_order_are_refused() -> None:
    for sizes in ([100, 200], [100, 50, 200], [100, 100, 200]):
        with pytest.raises(ValueError, match="rising"):
            fit_learning_curve([[1.0, 0.0]] * len(sizes), ["a", "b"], sizes, seed=0)


@pytest.mark.parametrize(("num_rows", "num_items", "size"), [(400, 300, 1), (400, 300, 3)], ids=["alone", "clustered"])
def test_the_interval_of_a_gain_covers(num_rows: int, num_items: int, size: int) -> None:
    """A 90 % interval, 150 runs; `tests/slow/test_coverage.py` has 2,000 and the law's corners."""
    found = learning_coverage(2, 0.5, 0.05, num_rows=num_rows, num_items=num_items, seed_sd=0.01, runs=150, size=size)
    assert found.covered >= 0.83
    assert found.covered_when_said >= 0.85
    assert found.worth_covered >= 0.82


def test_bootstrap_without_the_noise_of_training_would_not_cover() -> None:
    """The counter-example: trainings that differ by 3 points, and a fit that is told of none."""
    rng = np.random.default_rng(5)
    hits = 0
    for run in range(60):
        errors = [float(np.clip(0.05 + 3 * n**-0.5 + rng.normal(0, 0.03), 0.01, 0.9)) for n in SIZES]
        _, low, high = _fit(errors, seed_sd=1e-6, num_draws=200).gain(800)
        hits += low <= 3 * (400**-0.5 - 800**-0.5) <= high
        del run
    assert hits / 60 < 0.7
