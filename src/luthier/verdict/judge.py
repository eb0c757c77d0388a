"""What a judge's verdicts come to, and whether they may be believed: win rate, order, length, attacks, agreement with a person.

A function of the record and of the user's labels, without a model. The judge is a secondary measure: no row of the decision table reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from luthier.core.seeds import rng
from luthier.core.types import ArmResult, Estimate
from luthier.metrics.judge import AnswerPair, Choice, Judged
from luthier.stats.agreement import cohen_kappa
from luthier.stats.intervals import mean_estimate, paired_difference
from luthier.verdict.settings import EPSILON

MIN_LABELS = 50
MIN_KAPPA = 0.6
MAX_UNREADABLE = 0.1  # of all replies
MAX_MOVED = 0.05  # of the scale from 0 to 1, by answers that ask for marks
SAMPLE_PAIRS = 60
NOT_MEASURED = Estimate(value=None, low=None, high=None, n=0, method="not measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRecord:
    """Everything a judge said of the two arms that the verdict compares. A judge that failed has `failed` set and nothing else."""

    key: str  # of judge, rubric and pairs: another one is asked anew
    judge: str  # as tables call it
    prompt: str  # the arms
    tuned: str
    judged: tuple[Judged, ...] = ()
    attacks: tuple[Judged, ...] = ()
    num_items: int = 0  # locked items both arms answered; fewer are judged where fewer were asked for
    num_prompt_tokens: int | None = None
    num_new_tokens: int | None = None
    num_retries: int = 0
    seconds: float = 0.0
    served_by: str = ""  # untrusted
    is_contestant: bool = False  # the judge is one of the models that it judges
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReading:
    """The section. Estimates are shares in [0, 1]; `win_rate` is the tuned arm's, a tie counts one half."""

    record: JudgeRecord
    win_rate: Estimate
    p_value: float | None
    wins: int  # of the tuned arm
    losses: int
    ties: int
    num_same: int  # of the ties: both answers are the same text, nobody was asked
    num_unreadable: int  # replies without a verdict, of both orders
    orders_differ: Estimate
    num_reversed: int  # pairs in which the first place, or the second, won both times
    first_place: Estimate  # how often the answer in the first place was chosen, of the replies that chose one
    longer: Estimate  # how often the longer answer won, of the pairs with a winner
    moved: float | None  # mean score of answers that ask for marks, above one half
    num_attacks_won: int
    kappa: Estimate
    agreement: Estimate
    num_labels: int
    doubts: tuple[str, ...]  # why the judge is not calibrated; empty: it is

    @property
    def is_calibrated(self) -> bool:
        """Agrees with a person well enough to be shown without a warning."""
        return not self.doubts


def read_judge(record: JudgeRecord, labels: Mapping[str, Choice], lengths: Mapping[str, tuple[int, int]], *, seed: int) -> JudgeReading:
    """The section. `labels`: pair id -> the user's own verdict; `lengths`: item id -> characters of the prompt's and the tuned answer."""
    judged = record.judged
    asked = [one for one in judged if not one.is_same]
    signs = [2 * one.score - 1 for one in judged]
    clusters = [one.cluster for one in judged]
    found = paired_difference(signs, clusters, is_binary=True, seed=seed) if judged else None
    win_rate = NOT_MEASURED
    if found is not None:
        low, high = ((1 + end) / 2 for end in found.interval95)
        win_rate = Estimate(value=(1 + found.difference) / 2, low=low, high=high, n=found.n, method=f"{found.method}, 95 %")
    winners = [one.winner for one in judged]
    marked = [one for one in asked if one.pair_id in labels]
    kappa, agreement = _against_labels(marked, labels, seed=seed)
    moved = fmean(one.score for one in record.attacks) - 0.5 if record.attacks else None
    return JudgeReading(
        record=record,
        win_rate=win_rate,
        p_value=None if found is None else found.p_value,
        wins=winners.count("tuned"),
        losses=winners.count("prompt"),
        ties=winners.count("tie"),
        num_same=len(judged) - len(asked),
        num_unreadable=sum((one.prompt_first is None) + (one.tuned_first is None) for one in asked),
        orders_differ=_share([(float(one.prompt_first != one.tuned_first), one.cluster) for one in asked], seed),
        num_reversed=sum({one.prompt_first, one.tuned_first} == {"prompt", "tuned"} for one in asked),
        first_place=_share(_first_places(asked), seed),
        longer=_share(_longer_won(asked, lengths), seed),
        moved=moved,
        num_attacks_won=sum(one.winner == "tuned" for one in record.attacks),
        kappa=kappa,
        agreement=agreement,
        num_labels=len(marked),
        doubts=_doubts(record, asked, moved, kappa, len(marked)),
    )


def _share(values: Sequence[tuple[float, str]], seed: int) -> Estimate:
    return mean_estimate([value for value, _ in values], [cluster for _, cluster in values], seed=seed)


def _first_places(asked: Sequence[Judged]) -> list[tuple[float, str]]:
    """Per pair: the share of its replies with a winner that named the first place."""
    out: list[tuple[float, str]] = []
    for one in asked:
        named = [
            choice == side for choice, side in ((one.prompt_first, "prompt"), (one.tuned_first, "tuned")) if choice not in (None, "tie")
        ]
        if named:
            out.append((fmean(map(float, named)), one.cluster))
    return out


def _longer_won(asked: Sequence[Judged], lengths: Mapping[str, tuple[int, int]]) -> list[tuple[float, str]]:
    out: list[tuple[float, str]] = []
    for one in asked:
        prompt, tuned = lengths.get(one.item_id, (0, 0))
        if one.winner != "tie" and prompt != tuned:
            out.append((float((one.winner == "tuned") == (tuned > prompt)), one.cluster))
    return out


def _against_labels(marked: Sequence[Judged], labels: Mapping[str, Choice], *, seed: int) -> tuple[Estimate, Estimate]:
    if not marked:
        return NOT_MEASURED, NOT_MEASURED
    clusters = [one.cluster for one in marked]
    said, wanted = [one.winner for one in marked], [labels[one.pair_id] for one in marked]
    alike = _share([(float(a == b), cluster) for a, b, cluster in zip(said, wanted, clusters, strict=True)], seed)
    return cohen_kappa(said, wanted, clusters, seed=seed), alike


def _doubts(record: JudgeRecord, asked: Sequence[Judged], moved: float | None, kappa: Estimate, num_labels: int) -> tuple[str, ...]:
    """Every reason not to believe the judge."""
    out: list[str] = []
    if len(asked) < MIN_LABELS:
        out.append(f"only {len(asked)} pairs of different answers were judged, and {MIN_LABELS} have to be labelled")
    elif num_labels < MIN_LABELS:
        out.append(f"{num_labels} of the {MIN_LABELS} pairs that are needed were labelled by a person")
    elif kappa.value is None:
        out.append("the judge, or the person, gave one and the same verdict throughout, so that their agreement says nothing")
    elif kappa.value < MIN_KAPPA:
        out.append(f"its agreement with the person is kappa {kappa.value:.2f}, below {MIN_KAPPA:g}")
    replies = [choice for one in (*asked, *record.attacks) for choice in (one.prompt_first, one.tuned_first)]
    if replies and replies.count(None) > MAX_UNREADABLE * len(replies):
        out.append(f"{replies.count(None):,} of its {len(replies):,} replies, the attacks included, held no verdict")
    if moved is not None and moved > MAX_MOVED + EPSILON:
        out.append(f"answers that ask for marks gain {moved:.3f} by it, more than {MAX_MOVED:g}")
    if record.is_contestant:
        out.append("it is one of the models that it judges, and models favour their own answers")
    return tuple(out)


def judge_words(reading: JudgeReading) -> tuple[str, ...]:
    """The section in sentences, the first one the result."""
    record, rate = reading.record, reading.win_rate
    if record.failed is not None:
        return (f"The judge {record.judge} failed: {record.failed}",)
    if rate.value is None or rate.low is None or rate.high is None:
        return (f"The judge {record.judge} was given no pair.",)
    state = "calibrated" if reading.is_calibrated else "uncalibrated, so it decides nothing"
    shown = "preferred to" if rate.low > 0.5 else "found worse than" if rate.high < 0.5 else "not shown to be better or worse than"
    out = [
        f"{record.tuned} is {shown} {record.prompt}: it wins {100 * rate.value:.1f} of 100 pairs, a tie counting one half "
        f"(95 % interval {100 * rate.low:.1f} to {100 * rate.high:.1f}, n = {rate.n:,}; {state})."
    ]
    out += [f"Not calibrated: {doubt}." for doubt in reading.doubts]
    out.append(
        f"{reading.wins:,} won, {reading.losses:,} lost, {reading.ties:,} tied, {reading.num_same:,} of these because both answers are the "
        "same text. A side wins a pair only where both orders say so; whatever else is a tie."
    )
    if reading.orders_differ.value is not None:
        longer = f" Of the pairs with a winner, the longer answer won {_share_words(reading.longer)}." if reading.longer.n else ""
        out.append(
            f"The two orders disagree on {_share_words(reading.orders_differ)} of the pairs; on {reading.num_reversed:,} the same place "
            f"won both times. The first place was chosen in {_share_words(reading.first_place)} of the replies that chose one.{longer}"
        )
    if reading.num_unreadable:
        out.append(
            f"{reading.num_unreadable:,} replies held no verdict and count as a tie; a judge that thinks needs a higher "
            "judge.max_new_tokens."
        )
    if reading.moved is not None:
        out.append(
            f"{len(record.attacks)} copies of answers that ask for full marks, each against the same answer without that: "
            f"{reading.num_attacks_won} won; mean score {0.5 + reading.moved:.3f}. More than {0.5 + MAX_MOVED:g} is a judge that can be "
            "talked to."
        )
    if reading.kappa.value is not None:
        low, high = reading.kappa.low or 0.0, reading.kappa.high or 0.0
        out.append(
            f"Agreement with the {reading.num_labels} pairs that a person labelled: {_share_words(reading.agreement)}, kappa "
            f"{reading.kappa.value:.2f} (95 % interval {low:.2f} to {high:.2f}, {reading.kappa.method.removesuffix(' 95 %')})."
        )
    return tuple(out)


def _share_words(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "none"
    return f"{100 * found.value:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f}, n = {found.n:,})"


def judge_conditions(reading: JudgeReading, *, seed: int) -> str:
    """Under which conditions the verdicts were taken."""
    record = reading.record
    num_replies = 2 * (len(record.judged) - reading.num_same + len(record.attacks))
    tokens = "" if record.num_prompt_tokens is None else f", {record.num_prompt_tokens:,} + {record.num_new_tokens or 0:,} tokens"
    served = f" (the server says: {record.served_by})" if record.served_by else ""
    some = (
        "" if len(record.judged) == record.num_items else f" {len(record.judged):,} of {record.num_items:,} items, chosen by seed {seed}."
    )
    p = "" if reading.p_value is None else f" p = {reading.p_value:.3f}, not adjusted for the other comparisons."
    return (
        f"Judge: {record.judge}{served}; {num_replies:,} replies{tokens}, {record.num_retries:,} requests repeated.{some} Interval: "
        f"{reading.win_rate.method}, seed {seed}.{p} It was shown the request, the wanted answer and both answers, quoted as text. No row "
        "of the decision table reads it."
    )


# ---------------------------------------------------------------- labels


def pairs_of(prompt: ArmResult, tuned: ArmResult, questions: Mapping[str, tuple[str, tuple[str, ...]]]) -> tuple[AnswerPair, ...]:
    """The pairs of two arms, in the order of the tuned arm's items. `questions`: item id -> what is asked, and the wanted answers."""
    other = {item.item_id: item for item in prompt.items}
    return tuple(
        AnswerPair(
            item_id=item.item_id,
            cluster=item.cluster,
            question=questions[item.item_id][0],
            wanted=questions[item.item_id][1],
            prompt_answer=other[item.item_id].text,
            tuned_answer=item.text,
        )
        for item in tuned.items
        if item.item_id in other and item.item_id in questions
    )


def chosen_pairs(pairs: Sequence[AnswerPair], number: int | None, *, seed: int) -> tuple[AnswerPair, ...]:
    """All of them, or the first `number` of one seeded order, so that fewer lie within more; in their own order."""
    order = list(range(len(pairs)))
    rng(seed, "judge/pairs").shuffle(order)
    return tuple(pairs[i] for i in sorted(order[:number]))


def is_swapped(pair_id: str, *, seed: int) -> bool:
    """Whether the tuned arm's answer is A of a pair shown to a person, who is not told which is whose."""
    return rng(seed, f"judge/label/{pair_id}").random() < 0.5
