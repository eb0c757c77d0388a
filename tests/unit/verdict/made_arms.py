"""Synthetic arms with known answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from luthier.core.types import ArmFamily, ArmResult, ItemScore
from luthier.metrics.cost import Prices
from luthier.verdict.settings import DecisionRule

METRIC = "exact"
HOUR_USD = 3.6  # a second costs 0.001 dollars


def prices(usd_per_hour: float = HOUR_USD) -> Prices:
    return Prices(usd_per_hour=usd_per_hour, source="test", date="2026-01-01")


def rule(**settings: object) -> DecisionRule:
    return DecisionRule(**{"metric": METRIC, "prices": prices(), **settings})  # type: ignore[arg-type]


def arm(
    name: str,
    scores: Sequence[float | None],
    *,
    family: ArmFamily,
    dev: float | None = 0.5,
    seconds: float | None = 1.0,
    clusters: Sequence[str] | None = None,
    more: Mapping[str, Sequence[float | None]] | None = None,
    waits: Sequence[float] = (),
    train_seconds: float | None = None,
    params: Mapping[str, str] | None = None,
    seed: int = 0,
    failed: str | None = None,
) -> ArmResult:
    """One arm; item i takes `seconds` plus up to 10 %, the same for every arm, so that costs vary a little and are paired."""
    jitter = random.Random("test/jitter")
    items = tuple(
        ItemScore(
            item_id=f"i{i:04d}",
            cluster=clusters[i] if clusters else f"i{i:04d}",
            text="",
            gold="",
            values={METRIC: score, **{key: values[i] for key, values in (more or {}).items()}},
            latency_s=None if seconds is None else seconds * (1 + 0.1 * jitter.random()),
        )
        for i, score in enumerate(scores)
    )
    return ArmResult(
        name=name,
        family=family,
        model="" if family == "floor" else "small",
        description=family,
        items=() if failed else items,
        params=params or {},
        dev_score=dev,
        dev_n=100,
        train_seconds=train_seconds if family != "tuned" or train_seconds is not None else 100.0,
        latencies_s=tuple(waits),
        seed=seed,
        failed=failed,
    )


def paired(n: int, both: int, tuned_only: int, prompt_only: int) -> tuple[list[float], list[float]]:
    """Right/wrong scores (tuned, prompt) of `n` items: so many right in both, in one only, and the rest in neither."""
    neither = n - both - tuned_only - prompt_only
    tuned = [1.0] * both + [1.0] * tuned_only + [0.0] * prompt_only + [0.0] * neither
    prompt = [1.0] * both + [0.0] * tuned_only + [1.0] * prompt_only + [0.0] * neither
    return tuned, prompt


def contest(
    n: int,
    both: int,
    tuned_only: int,
    prompt_only: int,
    *,
    tuned_seconds: float | None = 1.0,
    prompt_seconds: float | None = 1.0,
    tuned_more: Mapping[str, Sequence[float | None]] | None = None,
    prompt_more: Mapping[str, Sequence[float | None]] | None = None,
    clusters: Sequence[str] | None = None,
    tuned_name: str = "tuned",
    train_seconds: float = 100.0,
    tuned_waits: Sequence[float] = (),
    prompt_waits: Sequence[float] = (),
) -> list[ArmResult]:
    """A prompt and a tuned arm with exactly these discordant counts."""
    t, p = paired(n, both, tuned_only, prompt_only)
    return [
        arm(
            "few-shot",
            p,
            family="prompt",
            seconds=prompt_seconds,
            more=prompt_more,
            clusters=clusters,
            params={"k": "8"},
            waits=prompt_waits,
        ),
        arm(
            tuned_name,
            t,
            family="tuned",
            seconds=tuned_seconds,
            more=tuned_more,
            clusters=clusters,
            train_seconds=train_seconds,
            waits=tuned_waits,
        ),
    ]
