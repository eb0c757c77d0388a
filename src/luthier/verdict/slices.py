"""Where the errors are: test items by answer, length and topic, each against the rest, corrected for looking at many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import quantiles

import numpy as np

from luthier.arms.classic import make_vectoriser
from luthier.core.seeds import seed_for
from luthier.core.types import ArmResult, Estimate, ItemScore, TaskProfile
from luthier.data.normalise import UNSPACED, normalise
from luthier.data.profile import as_text, parse_object
from luthier.metrics.text import word_tokens
from luthier.stats.clusters import FloatArray, cluster_totals
from luthier.stats.holm import holm
from luthier.stats.intervals import mean_estimate
from luthier.verdict.explain import points

NUM_DRAWS = 10_000
MIN_ITEMS = 5  # in a slice and outside it; smaller ones are not looked at
ITEMS_PER_TOPIC, MAX_TOPICS = 30, 8
KMEANS_ROUNDS = 25
MAX_CELLS = 2_000_000
TOPIC_WORDS = 3
ALPHA = 0.05
MAX_NAMED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Some test items of one arm against all others. `num_train`: training rows with this answer, None for other slices."""

    name: str
    score: Estimate
    rest: float
    p_value: float
    p_holm: float = 1.0
    num_train: int | None = None

    @property
    def is_worse(self) -> bool:
        """Shown worse than the rest, all slices considered."""
        return self.p_holm < ALPHA and self.score.value is not None and self.score.value < self.rest


def answer_slices(answer: str, profile: TaskProfile | None) -> tuple[str, ...]:
    """The slices a wanted answer belongs to: its label, or each closed-set value of a JSON answer."""
    if profile is None:
        return ()
    if profile.kind == "label":
        return (f"answer {normalise(answer)}",)
    found = (parse_object(answer) or {}) if profile.kind == "json" else {}
    return tuple(f"{key} = {as_text(found.get(key))}" for key in profile.json_enums if key in found)


def error_slices(
    arm: ArmResult, inputs: Mapping[str, str], metric: str, *, profile: TaskProfile | None, rows_of_answer: Mapping[str, int], seed: int
) -> tuple[Slice, ...]:
    """Every slice with enough items, by score, worst first.

    The p value is from permuting cluster totals between slice and rest (two-sided), Holm-adjusted over all slices.
    """
    items = [item for item in arm.items if item.values.get(metric) is not None]
    scores = [item.values[metric] or 0.0 for item in items]
    members: dict[str, list[int]] = defaultdict(list)
    for at, item in enumerate(items):
        for name in answer_slices(item.gold, profile):
            members[name].append(at)
    members.update(_by_length(items, inputs))
    members.update(_by_topic(items, inputs, seed=seed))
    kept = {name: found for name, found in members.items() if MIN_ITEMS <= len(found) <= len(items) - MIN_ITEMS}
    if not kept:
        return ()
    clusters = [item.cluster for item in items]
    p_values = _permutation_p(scores, clusters, list(kept.values()), seed=seed)
    out: list[Slice] = []
    for (name, found), p_value in zip(kept.items(), p_values, strict=True):
        inside = [scores[at] for at in found]
        rest = (sum(scores) - sum(inside)) / (len(scores) - len(inside))
        score = mean_estimate(inside, [clusters[at] for at in found], seed=seed, num_draws=2_000)
        out.append(Slice(name=name, score=score, rest=rest, p_value=p_value, num_train=rows_of_answer.get(name)))
    adjusted = holm([one.p_value for one in out])
    out = [replace(one, p_holm=1.0 if p is None else p) for one, p in zip(out, adjusted, strict=True)]
    return tuple(sorted(out, key=lambda one: (one.score.value or 0.0, one.name)))


def slice_sentence(slices: Sequence[Slice], arm: str) -> str:
    """Which rows to add, or that no slice stands out."""
    if not slices:
        return ""
    worse = sorted((one for one in slices if one.is_worse), key=lambda one: one.p_holm)[:MAX_NAMED]
    if not worse:
        return (
            f"No kind of item stands out among the errors of {arm} ({len(slices)} slices looked at, Holm-corrected): add rows of all kinds."
        )
    named = "; ".join(
        f"{one.name} ({points(one.score.value or 0.0)} against {points(one.rest)} elsewhere, n = {one.score.n:,}, p = {one.p_holm:.2g}"
        + (f"; {one.num_train:,} training rows)" if one.num_train is not None else ")")
        for one in worse
    )
    return f"Rows to add first, for {arm} fails on them most: {named}."


def _by_length(items: Sequence[ItemScore], inputs: Mapping[str, str]) -> dict[str, list[int]]:
    """Thirds by number of words; scripts without spaces by character."""
    texts = [inputs.get(item.item_id, "") for item in items]
    lengths = [len(word_tokens(text)) for text in texts]
    if len(items) < 3 * MIN_ITEMS or len(set(lengths)) < 3:
        return {}
    low, high = (round(cut) for cut in quantiles(lengths, n=3))
    unit = "words or characters" if any(UNSPACED.search(text) for text in texts) else "words"
    out: dict[str, list[int]] = {}
    for at, length in enumerate(lengths):
        name = f"up to {low} {unit}" if length <= low else f"more than {high} {unit}" if length > high else f"{low + 1} to {high} {unit}"
        out.setdefault(name, []).append(at)
    return out


def _by_topic(items: Sequence[ItemScore], inputs: Mapping[str, str], *, seed: int) -> dict[str, list[int]]:
    """Spherical k-means on TF-IDF of the inputs; a topic is named by the words that set it apart."""
    num_topics = min(MAX_TOPICS, len(items) // ITEMS_PER_TOPIC)
    texts = [inputs.get(item.item_id, "") for item in items]
    if num_topics < 2 or len(set(texts)) < num_topics:
        return {}
    vectoriser = make_vectoriser(texts, "words")
    x_NF: FloatArray = np.asarray(vectoriser.vectors(texts).todense())
    generator = np.random.default_rng(seed_for(seed, "verdict/topics"))
    centres_KF = _spread_rows(x_NF, num_topics, generator)
    topic_N = np.zeros(len(items), dtype=np.int64)
    for _ in range(KMEANS_ROUNDS):
        topic_N = np.argmax(x_NF @ centres_KF.T, axis=1)
        sums_KF = np.stack([x_NF[topic_N == k].sum(axis=0) for k in range(num_topics)])
        norms_K = np.linalg.norm(sums_KF, axis=1, keepdims=True)
        centres_KF = np.where(norms_K > 0, sums_KF / np.where(norms_K > 0, norms_K, 1), centres_KF)
    terms, mean_F = list(vectoriser.columns), x_NF.mean(axis=0)
    out: dict[str, list[int]] = {}
    for k in range(num_topics):
        found = np.flatnonzero(topic_N == k)
        if len(found):
            best = np.argsort(-(x_NF[found].mean(axis=0) - mean_F), kind="stable")[:TOPIC_WORDS]
            out[f"topic {', '.join(terms[i] for i in best)}"] = found.tolist()
    return out


def _spread_rows(x_NF: FloatArray, num: int, generator: np.random.Generator) -> FloatArray:
    """k-means++: each further row drawn by its squared distance from the nearest one taken."""
    taken = [int(generator.integers(len(x_NF)))]
    for _ in range(num - 1):
        distance_N = np.maximum(0.0, 1 - (x_NF @ x_NF[taken].T).max(axis=1))
        total = float(distance_N.sum())
        taken.append(int(generator.choice(len(x_NF), p=distance_N / total)) if total > 0 else int(generator.integers(len(x_NF))))
    return x_NF[taken].copy()


def _permutation_p(scores: Sequence[float], clusters: Sequence[str], members: Sequence[Sequence[int]], *, seed: int) -> list[float]:
    """Two-sided p of "the slice is a random choice of clusters", for the difference of means inside and outside."""
    totals = cluster_totals(scores, clusters)
    totals_C, sizes_C = totals.numerators, totals.denominators
    place = {name: c for c, name in enumerate(sorted(set(clusters)))}
    share_CS = np.zeros((len(place), len(members)))
    for s, found in enumerate(members):
        for at in found:
            share_CS[place[clusters[at]], s] += 1
    share_CS /= sizes_C[:, None]
    sum_all, n_all = float(totals_C.sum()), float(sizes_C.sum())

    def differences(totals_DC: FloatArray, sizes_DC: FloatArray) -> FloatArray:
        inside_DS, n_DS = totals_DC @ share_CS, sizes_DC @ share_CS
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(inside_DS / n_DS - (sum_all - inside_DS) / (n_all - n_DS))

    seen_S = np.abs(differences(totals_C[None], sizes_C[None])[0])
    generator = np.random.default_rng(seed_for(seed, "verdict/slices"))
    hits_S = np.zeros(len(members))
    step = max(1, MAX_CELLS // len(place))
    for start in range(0, NUM_DRAWS, step):
        order_DC = generator.permuted(np.tile(np.arange(len(place)), (min(step, NUM_DRAWS - start), 1)), axis=1)
        hits_S += (np.abs(differences(totals_C[order_DC], sizes_C[order_DC])) >= seen_S - 1e-12).sum(axis=0)
    return [float(hits + 1) / (NUM_DRAWS + 1) for hits in hits_S]
