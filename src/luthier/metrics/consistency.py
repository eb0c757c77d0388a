"""Does the same question get the same answer: asked again at a temperature, reworded, with typos, its shots in another order.

Agreement is counted over pairs of answers to one item, so that it is in [0, 1] and an item stays the unit of every interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Literal

from luthier.core.types import TaskProfile
from luthier.data.normalise import normalise
from luthier.metrics.structure import json_exact, parse_json_answer
from luthier.metrics.text import token_f1

SAME_TEXT = 0.8  # token F1 from which two free texts count as the same answer (evaluation.md, section 4)

Way = Literal["repeat", "reworded", "input", "order", "paraphrased"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPlan:
    """What is asked beyond the locked items themselves: how many of them again, in how many samples, at which temperature."""

    items: int  # 0: none
    samples: int
    temperature: float
    style_rows: int  # training inputs the base model answers, to learn its own style from; 0: none
    seed: int
    paraphraser: str = ""  # the model that puts each item in other words, as tables call it; "": none
    paraphrases: int = 0  # of each item, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedAgain:
    """One more answer to an item. `name` tells the ways of one kind apart ("reworded 1"). Texts are untrusted."""

    item_id: str
    way: Way
    name: str
    shown: str  # what was changed of the question, as shown to the model; empty where nothing was
    text: str
    score: float | None  # the verdict's metric
    is_valid: float | None  # in the wanted form
    latency_s: float  # its share of the batch, as `Generation.latency_s`


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How much the answers to one item agree. None: fewer than two answers of that kind."""

    repeat: float | None  # pairs of the samples
    paraphrase: float | None  # pairs of the answer as first given and those to the changed questions
    order: float | None  # the first answer against those with the shots in another order
    paraphrased: float | None  # the first answer against those to what a model made of the question

    @property
    def overall(self) -> float | None:
        """Mean of repeat and paraphrase, which every arm of every run has; the gate looks at it."""
        known = [value for value in (self.repeat, self.paraphrase) if value is not None]
        return fmean(known) if known else None


def same_answer(a: str, b: str, profile: TaskProfile) -> bool:
    """Equal after normalisation for labels and short answers, the same object for JSON, token F1 of at least 0.8 for text.

    Two JSON answers that do not parse are the same where their texts are.
    """
    if profile.kind == "json" and parse_json_answer(a) is not None:
        return json_exact(b, a) == 1.0
    if profile.kind == "text":
        return token_f1(a, b) >= SAME_TEXT
    return normalise(a) == normalise(b)


def pair_agreement(texts: Sequence[str], profile: TaskProfile) -> float | None:
    """Share of the pairs that are the same answer; None for fewer than two texts."""
    pairs = list(combinations(texts, 2))
    return math.fsum(same_answer(a, b, profile) for a, b in pairs) / len(pairs) if pairs else None


def agreement(first: str, again: Sequence[AskedAgain], profile: TaskProfile) -> Agreement:
    """All agreements of one item; `first` is its measured answer."""
    by_way: dict[Way, list[str]] = {"repeat": [], "reworded": [], "input": [], "order": [], "paraphrased": []}
    for one in again:
        by_way[one.way].append(one.text)
    changed = [*by_way["reworded"], *by_way["input"]]

    def with_first(texts: Sequence[str]) -> float | None:
        return fmean(float(same_answer(first, text, profile)) for text in texts) if texts else None

    return Agreement(
        repeat=pair_agreement(by_way["repeat"], profile),
        paraphrase=pair_agreement([first, *changed], profile) if changed else None,
        order=with_first(by_way["order"]),
        paraphrased=with_first(by_way["paraphrased"]),
    )


def sample_confidence(first: str, again: Sequence[AskedAgain], profile: TaskProfile) -> float | None:
    """Share of the samples that say the same as the first answer: how sure the model seems of it. None without samples."""
    samples = [one.text for one in again if one.way == "repeat"]
    return fmean(float(same_answer(first, text, profile)) for text in samples) if samples else None
