"""The tuned model beside a larger prompted one: size, quality and saving in one sentence, and nothing where nothing was measured."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.verdict.made_arms import arm, paired, rule

from luthier.core.types import ArmResult
from luthier.verdict.larger import larger_sentences

TUNED, BIG = paired(200, 150, 20, 10)
SIZES = {"small": 135_000_000, "big": 1_700_000_000}


def _arms(*, big_seconds: float | None = 10.0) -> tuple[ArmResult, ...]:
    tuned = replace(arm("tuned", TUNED, family="tuned"), model="small, tuned")
    own = arm("few-shot", BIG, family="prompt")
    weak = replace(arm("zero-shot · big", [0.0] * 200, family="prompt", dev=0.1), model="big")
    best = replace(arm("few-shot · big", BIG, family="prompt", dev=0.9, seconds=big_seconds), model="big")
    return tuned, own, weak, best


def test_size_difference_and_saving_are_told_of_the_best_prompt_of_the_larger_model() -> None:
    tuned, *others = _arms()
    [sentence] = larger_sentences(tuned, [tuned, *others], SIZES, rule(margin=0.02))
    size = "(0.14 against 1.7 billion parameters, 12.6 times the size)"
    assert sentence.startswith(f"tuned against few-shot · big {size}: +5.0 points (95 % interval ")
    assert "n = 200, margin 2.0" in sentence and "90 % less" in sentence
    assert "1,000 requests cost $1.0" in sentence and "saving $9.4" in sentence
    low, high = sentence.split("saving ")[1].split("interval $")[1].rstrip(").").split(" to $")
    assert 8.0 < float(low) < 9.45 < float(high) < 11


def test_a_dearer_tuned_model_is_said_to_be_so_and_an_address_has_no_size() -> None:
    tuned, _, _, best = _arms(big_seconds=0.5)
    [sentence] = larger_sentences(tuned, [tuned, best], {"small": 1}, rule())
    assert "billion" not in sentence and "100 % more" in sentence and "saving -$" in sentence


def test_nothing_is_said_of_what_was_not_measured() -> None:
    tuned, own, weak, best = _arms(big_seconds=None)
    assert "what a request saves was not measured" in larger_sentences(tuned, [tuned, best], SIZES, rule())[0]
    assert larger_sentences(tuned, [tuned, own], SIZES, rule()) == ()
    assert larger_sentences(None, [own, weak], SIZES, rule()) == ()
    failed = replace(best, failed="out of memory", items=())
    assert larger_sentences(tuned, [tuned, failed], SIZES, rule()) == ()
