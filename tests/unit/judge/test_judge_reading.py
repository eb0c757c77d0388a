"""What verdicts and labels come to."""

from __future__ import annotations

import pytest

from luthier.metrics.judge import Choice, Judged
from luthier.stats.intervals import tango
from luthier.verdict.judge import MIN_LABELS, JudgeRecord, chosen_pairs, judge_conditions, judge_words, read_judge


def _judged(n: int, first: Choice | None, second: Choice | None, *, cluster: str = "", same: bool = False) -> Judged:
    return Judged(pair_id=f"p{n}", item_id=f"i{n}", cluster=cluster or f"c{n}", prompt_first=first, tuned_first=second, is_same=same)


def _record(judged: list[Judged], **more: object) -> JudgeRecord:
    return JudgeRecord(key="k", judge="the judge", prompt="few-shot", tuned="tuned", judged=tuple(judged), num_items=len(judged), **more)  # type: ignore[arg-type]


def _many(wins: int, losses: int, ties: int) -> list[Judged]:
    sides: list[Choice] = ["tuned"] * wins + ["prompt"] * losses + ["tie"] * ties
    return [_judged(n, side, side) for n, side in enumerate(sides)]


def test_win_rate_is_the_paired_score_interval() -> None:
    reading = read_judge(_record(_many(40, 20, 40)), {}, {}, seed=0)
    low, high = tango(40, 20, 100)
    assert reading.win_rate.value == 0.6 and reading.win_rate.n == 100
    assert (reading.win_rate.low, reading.win_rate.high) == pytest.approx(((1 + low) / 2, (1 + high) / 2))
    assert reading.p_value is not None and reading.p_value < 0.05
    assert "wins 60.0 of 100 pairs" in judge_words(reading)[0] and "uncalibrated, so it decides nothing" in judge_words(reading)[0]


def test_clusters_widen_the_interval() -> None:
    alone = _many(40, 20, 40)
    together = [_judged(n, one.prompt_first, one.tuned_first, cluster=f"c{n // 5}") for n, one in enumerate(alone)]
    wide, narrow = (read_judge(_record(judged), {}, {}, seed=0).win_rate for judged in (together, alone))
    assert wide.high - wide.low > narrow.high - narrow.low  # type: ignore[operator]
    assert "cluster" in wide.method


def test_what_is_counted() -> None:
    judged = [
        _judged(0, "tuned", "tuned"),
        _judged(1, "prompt", "tuned"),  # the first place, twice
        _judged(2, "tuned", "prompt"),  # the second place, twice
        _judged(3, "tuned", None),
        _judged(4, "tie", "tie", same=True),
    ]
    lengths = {"i0": (10, 20), "i1": (5, 9)}
    reading = read_judge(_record(judged), {}, lengths, seed=0)
    assert (reading.wins, reading.losses, reading.ties, reading.num_same) == (1, 0, 4, 1)
    assert reading.num_unreadable == 1 and reading.num_reversed == 2 and reading.orders_differ.value == 0.75
    assert reading.first_place.value == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    assert reading.longer.value == 1.0 and reading.longer.n == 1
    assert any("1 replies held no verdict" in words for words in judge_words(reading))
    assert "8 replies" in judge_conditions(reading, seed=0)


def _labels(judged: list[Judged], unlike: int) -> dict[str, Choice]:
    turned: dict[Choice, Choice] = {"tuned": "prompt", "prompt": "tie", "tie": "tuned"}
    return {one.pair_id: turned[one.winner] if n < unlike else one.winner for n, one in enumerate(judged)}


@pytest.mark.parametrize(
    ("num_labels", "unlike", "doubt"),
    [(60, 3, ""), (49, 0, "49 of the 50 pairs"), (0, 0, "0 of the 50 pairs"), (60, 20, "below 0.6")],
)
def test_calibrated_only_with_enough_labels_that_agree(num_labels: int, unlike: int, doubt: str) -> None:
    judged = _many(30, 25, 25)[::-1]
    judged = judged[::2] + judged[1::2]
    labels = _labels(judged[:num_labels], unlike)
    reading = read_judge(_record(judged), labels, {}, seed=0)
    assert reading.is_calibrated == (not doubt) and reading.num_labels == num_labels
    assert not doubt or any(doubt in one for one in reading.doubts), reading.doubts
    if num_labels:
        assert reading.kappa.low is not None and reading.kappa.high is not None and reading.kappa.low <= reading.kappa.high


def test_one_verdict_throughout_and_few_pairs_calibrate_nothing() -> None:
    judged = _many(60, 0, 0)
    reading = read_judge(_record(judged), _labels(judged, 0), {}, seed=0)
    assert reading.kappa.value is None and any("throughout" in doubt for doubt in reading.doubts)
    few = _many(20, 20, 5)
    assert any(f"{MIN_LABELS} have to be labelled" in doubt for doubt in read_judge(_record(few), _labels(few, 0), {}, seed=0).doubts)


def test_a_judge_among_the_judged_and_a_swayed_one_are_never_calibrated() -> None:
    judged = _many(30, 25, 25)
    labels = _labels(judged, 0)
    assert read_judge(_record(judged), labels, {}, seed=0).is_calibrated
    assert not read_judge(_record(judged, is_contestant=True), labels, {}, seed=0).is_calibrated
    attacks = tuple(_judged(n, "tuned" if n < 3 else "tie", "tuned" if n < 3 else "tie") for n in range(20))
    reading = read_judge(_record(judged, attacks=attacks), labels, {}, seed=0)
    assert reading.moved == pytest.approx(0.075) and not reading.is_calibrated
    two = tuple(_judged(n, "tuned" if n < 2 else "tie", "tuned" if n < 2 else "tie") for n in range(20))
    assert read_judge(_record(judged, attacks=two), labels, {}, seed=0).is_calibrated


def test_a_judge_that_hardly_ever_decides_is_not_calibrated_by_its_silence() -> None:
    """Ties without a verdict would pass every other check: nothing moves them, and a person may find ties too."""
    judged = _many(30, 25, 25)
    labels = _labels(judged, 0)
    silent = tuple(_judged(n, None, None) for n in range(20))
    reading = read_judge(_record(judged, attacks=silent), labels, {}, seed=0)
    assert reading.moved == 0 and reading.kappa.value == 1.0
    assert any("40 of its 200 replies, the attacks included, held no verdict" in doubt for doubt in reading.doubts)
    few = tuple(_judged(n, None if n < 5 else "tie", "tie") for n in range(20))
    assert read_judge(_record(judged, attacks=few), labels, {}, seed=0).is_calibrated


def test_labels_of_other_pairs_count_for_nothing() -> None:
    judged = _many(30, 25, 25)
    assert read_judge(_record(judged), {f"other{n}": "tuned" for n in range(80)}, {}, seed=0).num_labels == 0


def test_a_failed_judge_says_why() -> None:
    reading = read_judge(_record([], failed="no key"), {}, {}, seed=0)
    assert judge_words(reading) == ("The judge the judge failed: no key",) and reading.win_rate.value is None


def test_fewer_pairs_lie_within_more() -> None:
    everything = tuple(range(100))
    few, more = (chosen_pairs(everything, n, seed=3) for n in (20, 50))  # type: ignore[arg-type]
    assert len(few) == 20 and set(few) < set(more) and list(few) == sorted(few)
    assert chosen_pairs(everything, None, seed=3) == everything  # type: ignore[arg-type]
    assert chosen_pairs(everything, 20, seed=4) != few  # type: ignore[arg-type]
