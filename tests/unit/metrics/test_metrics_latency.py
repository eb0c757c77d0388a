from __future__ import annotations

import math
import random

import pytest

from luthier.core.errors import RunError
from luthier.metrics.latency import latency_summary, quantile


def test_known_interval_of_the_median() -> None:
    # n = 100: the 40th and 61st smallest values (tables of the binomial interval for the median).
    summary = latency_summary([float(i) for i in range(100, 0, -1)])
    assert (summary.p50.low, summary.p50.value, summary.p50.high) == (40.0, 50.0, 61.0)
    assert summary.n == 100


@pytest.mark.parametrize(("n", "has_p95", "has_p99"), [(199, False, False), (200, True, False), (999, True, False), (1_000, True, True)])
def test_high_quantiles_need_many_requests(n: int, has_p95: bool, has_p99: bool) -> None:
    summary = latency_summary([float(i) for i in range(n)])
    assert (summary.p95.value is not None) is has_p95
    assert (summary.p99.value is not None) is has_p99
    assert "n < 1000" in summary.p99.method or has_p99


def test_few_requests_have_an_open_interval() -> None:
    summary = latency_summary([0.3, 0.1, 0.2])
    assert (summary.p50.low, summary.p50.value, summary.p50.high) == (None, 0.2, None)
    empty = latency_summary([])
    assert (empty.n, empty.p50.value) == (0, None)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_a_broken_clock_is_an_error(bad: float) -> None:
    with pytest.raises(RunError, match="latency 2"):
        latency_summary([0.1, bad])


@pytest.mark.parametrize(("q", "truth"), [(0.5, math.log(2)), (0.95, math.log(20))])
def test_the_interval_covers_the_true_quantile(q: float, truth: float) -> None:
    rng = random.Random("7/latency")
    hits = 0
    for _ in range(400):
        found = quantile(sorted(rng.expovariate(1.0) for _ in range(200)), q, min_n=1)
        assert found.low is not None and found.value is not None and found.high is not None
        assert found.low <= found.value <= found.high
        hits += found.low <= truth <= found.high
    assert hits / 400 >= 0.93  # at least 95 % by construction; 0.93 is two standard errors below
