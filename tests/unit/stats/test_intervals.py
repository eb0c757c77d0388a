from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from luthier.core.errors import RunError
from luthier.stats.intervals import mcnemar_midp, mean_estimate, paired_difference, quantile_interval, tango, wilson

SETTINGS = settings(derandomize=True, deadline=None, max_examples=60)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 44), (37, 50), (100, 100), (499, 1000)])
@pytest.mark.parametrize("confidence", [0.90, 0.95])
def test_wilson_equals_statsmodels(successes: int, n: int, confidence: float) -> None:
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_at_the_ceiling() -> None:
    low, high = wilson(100, 100)
    assert (round(100 * low, 1), high) == (96.3, 1.0)


@pytest.mark.parametrize(
    ("b", "c", "n", "confidence", "low", "high"),
    [
        (0, 1, 44, 0.90, -0.096, 0.037),  # Tango 1998: chemical against thermal disinfection of contact lenses
        (1, 7, 21, 0.95, -0.517, -0.026),  # Bentur et al. 2009 in Fagerland, Lydersen and Laake 2014
        (28, 25, 618, 0.90, -0.0148, 0.0247),  # R, PropCIs::scoreci.mp(25, 28, 618, 0.90)
    ],
)
def test_tango_gives_published_values(b: int, c: int, n: int, confidence: float, low: float, high: float) -> None:
    digits = 4 if n == 618 else 3
    found = tango(b, c, n, confidence)
    assert (round(found[0], digits), round(found[1], digits)) == (low, high)


@pytest.mark.parametrize("n", [1, 5, 50, 3000])
def test_tango_without_any_disagreement(n: int) -> None:
    z2 = 1.959963984540054**2
    assert tango(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-9)


@pytest.mark.parametrize("n", [1, 5, 50])
def test_tango_where_all_pairs_disagree(n: int) -> None:
    z2 = 1.959963984540054**2
    assert tango(n, 0, n) == pytest.approx(((n - z2) / (n + z2), 1.0), abs=1e-9)
    low, high = tango(n, n, 2 * n)
    assert low == pytest.approx(-high)
    assert 0 < high < 1


counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200)).filter(lambda t: sum(t) > 0)


@SETTINGS
@given(counts, st.sampled_from([0.90, 0.95]))
def test_tango_holds_the_estimate_mirrors_and_nests(table: tuple[int, int, int], confidence: float) -> None:
    b, c, rest = table
    n = b + c + rest
    low, high = tango(b, c, n, confidence)
    assert -1 <= low <= (b - c) / n + 1e-12
    assert (b - c) / n - 1e-12 <= high <= 1
    assert tango(c, b, n, confidence) == pytest.approx((-high, -low), abs=1e-9)
    wider = tango(b, c, n, 0.99)
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12


@SETTINGS
@given(counts)
def test_tango_limits_solve_the_score_equation(table: tuple[int, int, int]) -> None:
    """The constrained estimate is found again by maximising the likelihood on a grid, not by the closed form."""
    b, c, rest = table
    n = b + c + rest
    low, high = tango(b, c, n)
    for delta in (low, high):
        if -1 < delta < 1:
            second_only = _constrained_mle(b, c, n, delta)
            variance = n * (2 * second_only + delta * (1 - delta))
            assert abs(b - c - n * delta) / math.sqrt(variance) == pytest.approx(1.96, abs=0.02)


def _constrained_mle(b: int, c: int, n: int, delta: float) -> float:
    """P(second only) that maximises the likelihood when P(first only) = P(second only) + delta; golden section."""

    def log_likelihood(q: float) -> float:
        terms = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
        return sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if log_likelihood(left) < log_likelihood(right):
            low = left
        else:
            high = right
    return (low + high) / 2


@pytest.mark.parametrize("bad", [lambda: tango(-1, 0, 5), lambda: tango(4, 4, 5), lambda: wilson(6, 5), lambda: wilson(0, 0)])
def test_impossible_counts_are_refused(bad: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="of"):
        bad()


@pytest.mark.parametrize(("b", "c"), [(1, 7), (25, 28), (0, 5), (3, 12), (12, 3)])
def test_midp_is_the_exact_p_less_the_chance_of_what_was_seen(b: int, c: int) -> None:
    exact = float(mcnemar([[10, b], [c, 10]], exact=True).pvalue)
    assert mcnemar_midp(b, c) == pytest.approx(exact - math.comb(b + c, b) / 2 ** (b + c), abs=1e-12)


def test_midp_of_a_tie_is_one() -> None:
    assert mcnemar_midp(10, 10) == pytest.approx(1.0)
    assert mcnemar_midp(0, 0) == 1.0


def test_midp_of_bentur_2009_and_of_large_counts() -> None:
    assert mcnemar_midp(1, 7) == pytest.approx(0.0391, abs=5e-5)  # Fagerland, Lydersen and Laake 2013
    assert 0 < mcnemar_midp(400, 600) < 1e-9


def test_quantile_interval_of_the_median() -> None:
    found = quantile_interval([float(i) for i in range(100, 0, -1)], 0.5)
    assert (found.low, found.value, found.high) == (40.0, 50.0, 61.0)
    assert (quantile_interval([], 0.5).value, quantile_interval([3.0, 1.0, 2.0], 0.5).low) == (None, None)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_quantile_interval_covers_by_count(q: float) -> None:
    """The ranks' coverage, summed from the binomial distribution itself, is at least 95 % and no rank closer would do."""
    n = 60
    found = quantile_interval([float(i) for i in range(1, n + 1)], q)
    assert found.low is not None
    assert found.high is not None
    pmf = [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]
    low, high = int(found.low), int(found.high)
    assert sum(pmf[:low]) <= 0.025 < sum(pmf[: low + 1])
    assert sum(pmf[high:]) <= 0.025 < sum(pmf[high - 1 :])


def test_mean_of_right_or_wrong_items_is_wilson() -> None:
    found = mean_estimate([1.0] * 37 + [0.0] * 13, [str(i) for i in range(50)], seed=0)
    assert (found.value, found.n, found.method) == (0.74, 50, "Wilson 95 %")
    assert (found.low, found.high) == wilson(37, 50)


def test_mean_of_nothing_is_not_measured() -> None:
    found = mean_estimate([], [], seed=0)
    assert (found.value, found.low, found.high, found.n) == (None, None, None, 0)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_a_score_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(RunError, match="expected 0 to 1"):
        mean_estimate([0.5, value], ["a", "b"], seed=0)
    with pytest.raises(RunError, match="expected -1 to 1"):
        paired_difference([value * 20], ["a"], is_binary=False, seed=0)


def test_copies_in_a_cluster_add_no_certainty() -> None:
    """Five copies of each item: the interval is about that of the items without copies, not of five times as many."""
    scores = [1.0] * 40 + [0.0] * 20
    names = [f"c{i}" for i in range(60)]
    alone = mean_estimate(scores, names, seed=1)
    copied = mean_estimate(scores * 5, names * 5, seed=1)
    naive = mean_estimate(scores * 5, [str(i) for i in range(300)], seed=1)
    assert alone.high is not None and alone.low is not None and copied.high is not None and copied.low is not None
    assert naive.high is not None and naive.low is not None
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert copied.high - copied.low > 2 * (naive.high - naive.low)


@pytest.mark.parametrize("num_clusters", [1, 5, 19, 20, 60])
def test_no_variation_is_not_certainty(num_clusters: int) -> None:
    """All right, or never a difference: a bootstrap alone would give an interval of no width."""
    names = [f"c{i // 3}" for i in range(3 * num_clusters)]
    mean = mean_estimate([1.0] * len(names), names, seed=0)
    assert mean.high == 1.0
    assert mean.low is not None and mean.low <= num_clusters / (num_clusters + 3.8414) + 1e-6
    paired = paired_difference([0.0] * len(names), names, is_binary=True, seed=0)
    assert paired.interval95[1] - paired.interval95[0] > 2 * 3.84 / (num_clusters + 3.85)


def test_paired_difference_picks_its_method() -> None:
    names = [str(i) for i in range(40)]
    differences = [1.0] * 6 + [-1.0] * 2 + [0.0] * 32
    plain = paired_difference(differences, names, is_binary=True, seed=0)
    assert plain.interval95 == tango(6, 2, 40, 0.95)
    assert plain.interval90 == tango(6, 2, 40, 0.90)
    assert (plain.p_value, plain.discordance, plain.difference) == (mcnemar_midp(6, 2), 0.2, 0.1)
    graded = paired_difference([0.01 * i for i in range(40)], names, is_binary=False, seed=0)
    assert graded.method == "paired cluster bootstrap BCa, sign-flip permutation"
    assert graded.discordance is None
    few = paired_difference([0.01 * i for i in range(40)], [str(i // 4) for i in range(40)], is_binary=False, seed=0)
    assert few.num_clusters == 10
    assert "cluster t with 9 df" in few.method


def test_one_cluster_says_nothing() -> None:
    found = paired_difference([0.3, 0.4], ["a", "a"], is_binary=False, seed=0)
    assert (found.interval95, found.p_value) == ((-1.0, 1.0), None)
