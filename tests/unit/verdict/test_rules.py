"""Every row of the decision table by a case with a known answer, its neighbours that must not match, and the order of the rows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.unit.verdict.made_arms import METRIC, arm, contest, paired, prices, rule

from luthier.core.errors import ConfigError
from luthier.core.types import ArmResult, Verdict
from luthier.verdict.rules import decide

SAME = (300, 200, 8, 6)  # d = +0.7, within 5 points either way


def _floor(scores: Sequence[float], name: str = "nearest neighbour", dev: float = 0.5) -> ArmResult:
    return arm(name, scores, family="floor", dev=dev)


@pytest.mark.parametrize(
    ("counts", "strength"),
    [
        ((300, 150, 75, 15), "strong"),  # +20.0, lower end beyond the margin
        ((300, 200, 40, 20), "clear"),  # +6.7 [+1.6, +11.8]
        ((90, 40, 20, 2), "leaning"),  # 90 items
    ],
)
def test_fine_tune_better(counts: tuple[int, int, int, int], strength: str) -> None:
    found = decide(contest(*counts), rule())
    assert (found.code, found.strength, found.headline) == ("fine_tune_better", strength, "FINE-TUNE: better quality")
    mirrored = decide(contest(counts[0], counts[1], counts[3], counts[2]), rule())
    assert (mirrored.code, mirrored.strength, mirrored.headline) == ("prompt_better", strength, "PROMPT: better quality")


def test_a_difference_of_exactly_the_margin_counts() -> None:
    found = decide(contest(400, 300, 20, 0), rule(margin=0.05))
    assert found.primary is not None
    assert (found.primary.difference, found.code) == (0.05, "fine_tune_better")
    assert decide(contest(400, 300, 19, 0), rule(margin=0.05)).code != "fine_tune_better"


def test_real_but_smaller_than_the_margin_goes_to_economics() -> None:
    counts = (1000, 700, 30, 10)  # +2.0 [+0.8, +3.3]
    cheap = decide(contest(*counts, tuned_seconds=0.2), rule(volume_per_month=100_000))
    assert cheap.code == "fine_tune_as_good_cheaper"
    assert "real but smaller than you said matters" in cheap.sentence
    assert any("real but smaller" in reason for reason in cheap.reasons)
    assert decide(contest(*counts), rule(volume_per_month=100_000)).code == "prompt_as_good_simpler"


def test_fine_tune_as_good_and_cheaper() -> None:
    found = decide(contest(*SAME, tuned_seconds=0.2), rule(volume_per_month=100))
    assert (found.code, found.strength) == ("fine_tune_as_good_cheaper", "clear")
    assert found.headline == "FINE-TUNE: as good, cheaper"
    assert found.break_even_requests_per_month is not None
    assert found.break_even_requests_per_month.value == pytest.approx(0.1 / 6 / (0.8 * 0.00105), rel=0.01)


def test_cheaper_needs_the_volume_beyond_the_upper_end_of_the_break_even() -> None:
    arms = contest(*SAME, tuned_seconds=0.2)
    pays = decide(arms, rule(labelling_usd=600.0)).break_even_requests_per_month
    assert pays is not None and pays.high is not None and pays.value is not None
    assert int(pays.high) - 1 > pays.value
    assert decide(arms, rule(labelling_usd=600.0, volume_per_month=int(pays.high) + 1)).code == "fine_tune_as_good_cheaper"
    assert decide(arms, rule(labelling_usd=600.0, volume_per_month=int(pays.high) - 1)).code == "prompt_as_good_simpler"


def test_superiority_uses_the_95_percent_interval() -> None:
    """+8.0 points, 95 % [-0.8, +17.3], 90 % [+0.7, +15.7]: not shown better, one way or the other."""
    for counts in ((100, 40, 14, 6), (100, 40, 6, 14)):
        found = decide(contest(*counts), rule())
        assert found.primary is not None and found.primary.low90 * found.primary.high90 > 0 > found.primary.low95 * found.primary.high95
        assert found.code not in ("fine_tune_better", "prompt_better")


def test_not_worse_and_enough_use_the_90_percent_interval() -> None:
    """No difference, 95 % [-5.1, +5.1], 90 % [-4.25, +4.25]: within 5 points by the one-sided 5 % that equivalence asks for."""
    counts = (250, 150, 20, 20)
    found = decide(contest(*counts, tuned_seconds=0.2), rule())
    assert found.primary is not None and found.primary.low95 < -0.05 < found.primary.low90
    assert found.code == "equivalent_prompt"
    assert decide(contest(*counts, tuned_seconds=0.2), rule(volume_per_month=1000)).code == "fine_tune_as_good_cheaper"
    assert decide(contest(*counts), rule(volume_per_month=1000)).code == "prompt_as_good_simpler"
    tuned, prompt = paired(*counts)
    copy = [arm("few-shot", tuned, family="prompt"), arm("tuned", tuned, family="tuned")]
    assert decide([*copy, _floor(prompt)], rule()).code == "neither_needed"


def test_hosting_and_labelling_can_eat_the_saving() -> None:
    arms = contest(*SAME, tuned_seconds=0.2)
    assert decide(arms, rule(volume_per_month=1000)).code == "fine_tune_as_good_cheaper"
    assert decide(arms, rule(volume_per_month=1000, hosting_usd_per_month=50.0)).code == "prompt_as_good_simpler"
    assert decide(arms, rule(volume_per_month=1000, labelling_usd=5000.0)).code == "prompt_as_good_simpler"


def test_faster_alone_counts_where_nothing_is_dearer() -> None:
    waits = [1.0 + 0.01 * i for i in range(20)]
    arms = contest(*SAME, tuned_waits=[w / 4 for w in waits], prompt_waits=waits, train_seconds=0.0)
    free = rule(volume_per_month=100, prices=prices(0.0))
    found = decide(arms, free)
    assert (found.code, found.headline) == ("fine_tune_as_good_cheaper", "FINE-TUNE: as good, faster")
    assert "25 % of the time" in found.sentence
    assert decide(arms, replace(free, hosting_usd_per_month=1.0)).code == "prompt_as_good_simpler"


def test_prompt_as_good_and_simpler() -> None:
    found = decide(contest(*SAME), rule(volume_per_month=100_000))
    assert (found.code, found.headline) == ("prompt_as_good_simpler", "PROMPT: as good, simpler")
    # Not worse by the margin is enough for the prompt, also where the tuned arm may be worse by more.
    worse = decide(contest(300, 200, 10, 22), rule())
    assert worse.primary is not None and worse.primary.low90 < -0.05 < worse.primary.difference
    assert worse.code == "prompt_as_good_simpler"
    # Without a volume: when the tuned arm is dearer at any volume.
    assert decide(contest(*SAME, tuned_seconds=2.0), rule()).code == "prompt_as_good_simpler"


def test_equivalent_without_a_volume_keeps_the_prompt_and_shows_the_break_even() -> None:
    found = decide(contest(*SAME, tuned_seconds=0.2), rule())
    assert (found.code, found.strength) == ("equivalent_prompt", "clear")
    assert found.break_even_requests_per_month is not None
    assert found.break_even_requests_per_month.value is not None
    assert "pays from about" in found.sentence


def test_cheaper_but_perhaps_worse_is_not_decided_for_you() -> None:
    found = decide(contest(300, 200, 10, 22, tuned_seconds=0.2), rule(volume_per_month=1_000_000))
    assert found.code == "inconclusive"


def test_neither_needed() -> None:
    tuned, prompt = paired(*SAME)
    found = decide([*contest(*SAME), _floor(tuned)], rule())
    assert (found.code, found.best_floor) == ("neither_needed", "nearest neighbour")
    assert found.headline.startswith("NEITHER NEEDED")
    # It is checked before a clear win of one arm over the other, against the better arm.
    strong = paired(300, 150, 75, 15)[0]
    assert decide([*contest(300, 150, 75, 15), _floor(strong)], rule()).code == "neither_needed"
    assert decide([*contest(300, 150, 75, 15), _floor(prompt)], rule()).code == "fine_tune_better"


def test_the_floor_is_chosen_on_dev_too() -> None:
    tuned, _ = paired(*SAME)
    arms = [*contest(*SAME, tuned_seconds=0.2), _floor(tuned, "a", dev=0.4), _floor([0.0] * 300, "b", dev=0.6)]
    found = decide(arms, rule())
    assert (found.best_floor, found.code) == ("b", "equivalent_prompt")


def test_neither_yet() -> None:
    tuned, _ = paired(*SAME)
    arms = [*contest(*SAME), _floor(tuned)]  # about 69 points
    found = decide(arms, rule(min_quality=0.9))
    assert (found.code, found.headline[:11]) == ("neither_yet", "NEITHER YET")
    assert "--larger-model NAME" in found.next_steps[0] and "--endpoint" in found.next_steps[0]
    assert decide(arms, rule(min_quality=0.6)).code == "neither_needed"
    # A floor below the minimum is not "enough", even when it is as good as the rest within the margin.
    low_floor = paired(300, 203, 0, 0)[0]
    counts = (300, 205, 3, 3)
    assert decide([*contest(*counts), _floor(low_floor)], rule()).code == "neither_needed"
    assert decide([*contest(*counts), _floor(low_floor)], rule(min_quality=0.73)).code == "equivalent_prompt"


def test_a_baseline_measured_below_the_minimum_is_not_the_answer() -> None:
    """Half of the questions have no answer: always saying so scores 54 where the tuned model has 46, and 60 were asked for."""
    arms = [*contest(120, 30, 25, 2), _floor([1.0] * 65 + [0.0] * 55)]
    found = decide(arms, rule(min_quality=0.6))
    assert (found.code, found.strength) == ("neither_yet", "leaning")
    assert "nearest neighbour, has 54.2 (95 % interval" in found.sentence and "does not rule it out" in found.sentence
    assert decide(arms, rule()).code == "neither_needed" == decide(arms, rule(min_quality=0.5)).code
    assert decide(arms, rule(min_quality=0.7)).strength == "clear"  # no interval reaches that
    # Where an arm is better than the baseline, it is judged against the prompt as ever.
    better = decide([*contest(120, 30, 35, 2), _floor([1.0] * 30 + [0.0] * 90)], rule(min_quality=0.6))
    assert better.code == "fine_tune_better"


def test_arms_that_all_fail_the_task_are_not_a_case_for_the_baseline() -> None:
    """A model of 135M parameters on school maths: 0 of 300 against 1 of 300. "Use the baseline" would be absurd."""
    found = decide([*contest(300, 0, 1, 0), _floor([0.0] * 300)], rule())
    assert found.code == "neither_yet"


@pytest.mark.parametrize("counts", [(300, 150, 75, 15), SAME])
def test_a_failed_gate_blocks(counts: tuple[int, int, int, int]) -> None:
    n = counts[0]
    more = {"unsupported": [1.0] * 60 + [0.0] * (n - 60)}, {"unsupported": [0.0] * n}
    arms = contest(*counts, tuned_seconds=0.2, tuned_more=more[0], prompt_more=more[1])
    found = decide(arms, rule(volume_per_month=100_000))
    assert (found.code, found.headline) == ("blocked", "FINE-TUNE BLOCKED BY unsupported")
    assert any("unsupported" in step for step in found.next_steps)
    assert any("Until then" in step and "few-shot" in step for step in found.next_steps)
    # The limit is the user's.
    assert decide(arms, rule(volume_per_month=100_000, max_unsupported_rise=0.5)).code.startswith("fine_tune")


def test_a_failed_gate_does_not_matter_where_the_prompt_wins() -> None:
    more = {"unsupported": [1.0] * 300}, {"unsupported": [0.0] * 300}
    arms = contest(300, 150, 15, 75, tuned_more=more[0], prompt_more=more[1])
    assert decide(arms, rule()).code == "prompt_better"


def test_a_gate_that_is_not_shown_neither_passes_nor_fails() -> None:
    n = 300
    rare = {"fabrication": [0.0] * 20 + [None] * 280}
    found = decide(contest(n, 150, 75, 15, tuned_more=rare, prompt_more=rare), rule())
    assert (found.code, found.strength) == ("fine_tune_better", "clear")  # "strong" without the open gate
    assert "Not shown safe: fabrication" in found.sentence


def test_inconclusive_states_five_facts() -> None:
    found = decide(contest(120, 70, 13, 12), rule())
    assert (found.code, found.strength) == ("inconclusive", "none")
    text = found.sentence
    assert "+0.8 points" in text and "95 % interval -7.6 to +9.3" in text  # 1: difference and interval
    assert "n = 120" in text and "disagreement seen (21 %)" in text  # 2: disagreement and n
    assert re.search(r"5-point difference needs about 647 test items \(80 % power\)", text)  # 3: items needed
    assert "Until then keep the prompt: it is reversible" in text  # 4: the default
    assert "To settle it: label about 527 more test items" in text  # 5: what would settle it
    assert found.min_detectable_effect == pytest.approx(0.113, abs=0.001)


def test_a_failed_gate_is_named_where_nothing_is_decided_and_takes_away_the_leaning() -> None:
    more = {"unsupported": [1.0] * 60 + [0.0] * 60}, {"unsupported": [0.0] * 120}
    found = decide(contest(120, 70, 18, 12, tuned_more=more[0], prompt_more=more[1]), rule(volume_per_month=10))
    assert (found.code, found.strength) == ("inconclusive", "none")
    assert any("unsupported failed" in step for step in found.next_steps)


def test_halfway_leans_to_fine_tuning() -> None:
    found = decide(contest(120, 70, 18, 12), rule(volume_per_month=10))
    assert (found.code, found.strength, found.headline) == ("inconclusive", "leaning", "INCONCLUSIVE, leaning fine-tune")


@pytest.mark.parametrize(
    ("n", "expected"), [(29, "inconclusive"), (30, "fine_tune_better"), (99, "fine_tune_better"), (100, "fine_tune_better")]
)
def test_few_items_carry_no_verdict(n: int, expected: str) -> None:
    found = decide(contest(n, 0, n, 0), rule())  # right on all against wrong on all
    assert found.code == expected
    assert found.strength == {29: "none", 30: "leaning", 99: "leaning", 100: "strong"}[n]


def test_few_clusters_are_leaning_at_most() -> None:
    names = [f"c{i % 19}" for i in range(380)]
    found = decide(contest(380, 0, 380, 0, clusters=names), rule())
    assert (found.code, found.strength) == ("fine_tune_better", "leaning")


def test_without_a_prompt_or_a_tuned_arm_there_is_no_verdict() -> None:
    prompt, tuned = contest(*SAME)
    for arms, missing in (([prompt], "No tuned arm"), ([tuned], "No prompt arm"), ([], "No prompt arm and no tuned arm")):
        found = decide(arms, rule())
        assert (found.code, found.primary, found.min_detectable_effect) == ("inconclusive", None, None)
        assert missing in found.sentence
        assert found.next_steps
    apart = replace(tuned, items=tuple(replace(item, item_id=f"x{item.item_id}") for item in tuned.items))
    assert "no item" in decide([prompt, apart], rule()).sentence


def test_failed_arms_are_passed_over_and_named() -> None:
    failed = arm("few-shot retrieved", [1.0], family="prompt", dev=0.99, failed="out of memory")
    found = decide([*contest(*SAME), failed], rule())
    assert found.best_prompt == "few-shot"
    assert any("few-shot retrieved" in reason and "out of memory" in reason for reason in found.reasons)
    assert "No tuned arm" in decide([contest(*SAME)[0], replace(failed, family="tuned")], rule()).sentence


def test_the_best_arm_is_chosen_on_dev_never_on_test() -> None:
    tuned, prompt = paired(300, 200, 40, 10)
    lucky = arm("lucky on test", [1.0] * 300, family="prompt", dev=0.60)
    good = arm("good on dev", prompt, family="prompt", dev=0.70)
    unknown = arm("no dev score", [1.0] * 300, family="prompt", dev=None)
    found = decide([lucky, good, unknown, arm("tuned", tuned, family="tuned")], rule())
    assert found.best_prompt == "good on dev"
    assert found.primary is not None and found.primary.b == "good on dev"
    assert {(c.a, c.b) for c in found.secondary} == {("tuned", "lucky on test"), ("tuned", "no dev score")}
    assert all(c.p_holm is not None for c in found.secondary)


def test_equal_dev_scores_go_to_the_cheaper_arm_in_any_order() -> None:
    tuned, prompt = paired(*SAME)
    arms = [
        arm("8-shot", prompt, family="prompt", seconds=2.0),
        arm("2-shot", prompt, family="prompt", seconds=1.0),
        arm("tuned", tuned, family="tuned"),
    ]
    first, second = decide(arms, rule()), decide(arms[::-1], rule())
    assert first.best_prompt == second.best_prompt == "2-shot"
    assert (first.code, first.sentence, first.primary) == (second.code, second.sentence, second.primary)


@pytest.mark.parametrize(("joint_dev", "stands"), [(0.74, "tuned"), (0.75, "tuned + retrieval"), (0.60, "tuned")])
def test_retrieval_joins_only_where_it_gains_the_margin_on_dev(joint_dev: float, stands: str) -> None:
    tuned, prompt = paired(300, 150, 75, 15)
    arms = [
        arm("few-shot", prompt, family="prompt", dev=0.5),
        arm("tuned", tuned, family="tuned", dev=0.70),
        arm("tuned + retrieval", tuned, family="tuned", dev=joint_dev),
    ]
    found = decide(arms, rule())
    assert found.best_tuned == stands
    assert any("not worth another part" in reason for reason in found.reasons) == (joint_dev == 0.74)


@pytest.mark.parametrize("name", ["tuned + retrieval", "tuned"])
def test_the_joint_arm_is_said_to_be_both(name: str) -> None:
    arms = contest(300, 150, 75, 15, tuned_name=name)
    if name == "tuned":
        arms[1] = replace(arms[1], params={"shots": "retrieved"})
    found = decide(arms, rule())
    assert (found.code, found.headline) == ("fine_tune_better", "BOTH: fine-tune and keep the prompt/retrieval: better quality")
    assert any("retrieval" in step for step in found.next_steps)
    assert found.best_tuned == name


def test_training_seeds_that_disagree_are_inconclusive() -> None:
    arms = contest(300, 150, 75, 15)
    tuned = replace(arms[1], dev_score=0.9)
    weak = replace(contest(300, 150, 20, 15)[1], name="tuned, seed 1", seed=1)
    found = decide([arms[0], tuned, weak], rule())
    assert found.code == "inconclusive"
    assert "Training seeds disagree" in found.sentence
    assert "seeds" in found.next_steps[0]
    twin = replace(tuned, name="tuned, seed 1", seed=1)
    agreed = decide([arms[0], tuned, twin], rule())
    assert agreed.code == "fine_tune_better"
    assert any("recipe over 2 training seeds" in reason for reason in agreed.reasons)


def test_metrics_that_disagree_are_inconclusive() -> None:
    n = 300
    worse = {"json_exact": [0.0] * 100 + [1.0] * 200}, {"json_exact": [1.0] * n}
    arms = contest(n, 150, 75, 15, tuned_more=worse[0], prompt_more=worse[1])
    assert decide(arms, rule()).code == "fine_tune_better"
    found = decide(arms, rule(confirming_metrics=("json_exact",)))
    assert found.code == "inconclusive"
    assert "Metrics disagree" in found.sentence


def test_graded_scores_reach_a_verdict() -> None:
    prompt = arm("few-shot", [0.4 + 0.01 * (i % 11) for i in range(200)], family="prompt")
    tuned = arm("tuned", [0.5 + 0.01 * (i % 7) for i in range(200)], family="tuned")
    found = decide([prompt, tuned], rule())
    assert (found.code, found.strength) == ("fine_tune_better", "strong")
    assert found.min_detectable_effect is not None and 0 < found.min_detectable_effect < 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"margin": 0.0},
        {"margin": 5.0},
        {"min_quality": 70.0},
        {"volume_per_month": -1},
        {"hosting_usd_per_month": -1.0},
        {"labelling_usd": float("nan")},
        {"months_between_retrains": 0.0},
        {"metric": "unsupported"},
    ],
)
def test_rules_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        rule(**settings)


def _every_verdict() -> list[Verdict]:
    tuned, _ = paired(*SAME)
    more = {"unsupported": [1.0] * 60 + [0.0] * 240}, {"unsupported": [0.0] * 300}
    cases = [
        (contest(300, 150, 75, 15), rule()),
        (contest(300, 150, 15, 75), rule()),
        (contest(*SAME, tuned_seconds=0.2), rule(volume_per_month=100_000)),
        (contest(*SAME), rule(volume_per_month=100_000)),
        (contest(*SAME, tuned_seconds=0.2), rule()),
        ([*contest(*SAME), _floor(tuned)], rule()),
        ([*contest(*SAME), _floor(tuned)], rule(min_quality=0.9)),
        (contest(300, 150, 75, 15, tuned_more=more[0], prompt_more=more[1]), rule()),
        (contest(120, 70, 13, 12), rule()),
    ]
    return [decide(arms, settings) for arms, settings in cases]


def test_wording() -> None:
    verdicts = _every_verdict()
    assert len({verdict.code for verdict in verdicts}) == 9  # one of each
    for verdict in verdicts:
        primary = verdict.primary
        assert primary is not None
        text = " ".join((verdict.headline, verdict.sentence, *verdict.next_steps, *verdict.reasons))
        assert "significan" not in text
        assert "on data like your test set" in verdict.sentence
        assert f"n = {primary.n}" in verdict.sentence
        assert "interval" in verdict.sentence
        assert "-0.0" not in text and "nan" not in text and "None" not in text
        assert verdict.next_steps and verdict.reasons
        assert verdict.margin == 0.05 and verdict.metric == METRIC


def test_reasons_list_every_row_tried_in_order() -> None:
    found = decide(contest(120, 70, 13, 12), rule())
    starts = [
        "best on dev",
        "neither yet",
        "neither needed",
        "fine-tune, better",
        "prompt, better",
        "fine-tune, as good",
        "prompt, as good",
        "equivalent",
    ]
    assert [reason.startswith(start) for reason, start in zip(found.reasons, starts, strict=False)] == [True] * len(starts)
    assert "[-7.6, +9.3] (95 %, n = 120)" in found.reasons[3]
    assert all(reason.endswith("Does not hold.") for reason in found.reasons[1:-1])
    decided = decide(contest(300, 150, 75, 15), rule())
    assert decided.reasons[-1].startswith("fine-tune, better") and decided.reasons[-1].endswith(" Holds.")


def test_a_verdict_is_a_function_of_the_record() -> None:
    names = [f"c{i // 2}" for i in range(300)]
    arms = contest(300, 200, 40, 20, clusters=names)
    first, second = decide(arms, rule(seed=3)), decide(arms, rule(seed=3))
    assert first == second
    shuffled = [replace(a, items=tuple(reversed(a.items))) for a in arms]
    assert dataclasses.astuple(decide(shuffled, rule(seed=3)))[:5] == dataclasses.astuple(first)[:5]


def test_cheaper_but_not_shown_as_good_is_said_so_and_no_volume_is_asked_for() -> None:
    found = decide(contest(300, 200, 10, 22, tuned_seconds=0.2), rule())
    assert found.code == "prompt_as_good_simpler"
    assert "cheaper or faster, but not shown to be as good" in found.sentence
    assert not any("--volume" in step for step in found.next_steps)


def test_a_saving_within_the_drift_of_the_machine_is_none() -> None:
    counts, volume = (300, 200, 8, 6), rule(volume_per_month=10_000_000)
    assert decide(contest(*counts, tuned_seconds=0.85), volume).code == "fine_tune_as_good_cheaper"
    assert decide(contest(*counts, tuned_seconds=0.95), volume).code != "fine_tune_as_good_cheaper"


def test_near_a_border_the_items_named_are_those_for_the_border() -> None:
    found = decide(contest(1000, 700, 120, 80), rule())  # d = +4.0
    assert found.code == "inconclusive"
    assert "telling +4.0 from the margin of 5.0 needs about" in found.sentence


@pytest.mark.parametrize("counts", [(120, 70, 12, 13), (120, 70, 12, 12)])
def test_steps_do_not_contradict_each_other(counts: tuple[int, int, int, int]) -> None:
    found = decide(contest(*counts), rule())
    assert found.code == "inconclusive"
    assert not any("would only tell how much worse" in step for step in found.next_steps)


def test_a_margin_chosen_after_the_test_does_not_change_which_arm_is_compared() -> None:
    prompt, tuned = contest(300, 150, 60, 20)
    joint = replace(tuned, name="tuned + retrieval", dev_score=(tuned.dev_score or 0) + 0.03)
    assert decide((prompt, tuned, joint), rule(margin=0.02)).best_tuned == "tuned + retrieval"
    assert decide((prompt, tuned, joint), rule(margin=0.02, declared_margin=0.05)).best_tuned == "tuned"
