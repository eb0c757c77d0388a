from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.verdict.made_arms import contest, rule
from tests.unit.verdict.made_probes import gate_of, probes

from luthier.core.types import GateResult
from luthier.verdict.gates import check_gates

NAMES = (
    "strict-valid", "unsupported", "fabrication", "unsafe compliance", "over-refusal", "incoherent", "consistency", "incoherent elsewhere",
    "retention",
)  # fmt: skip


def _gate(name: str, metric: str, tuned_ones: int, prompt_ones: int, n: int = 400, **settings: object) -> GateResult:
    """The gate when the metric is 1 on so many items of each arm, the fewer being among the more."""
    tuned = {metric: [1.0] * tuned_ones + [0.0] * (n - tuned_ones)}
    prompt = {metric: [1.0] * prompt_ones + [0.0] * (n - prompt_ones)}
    if name in ("unsafe compliance", "over-refusal"):  # against the base model, on probes
        return gate_of(name, probes(base=prompt, tuned=tuned), **settings)
    p, t = contest(n, n, 0, 0, tuned_more=tuned, prompt_more=prompt)
    return next(gate for gate in check_gates(p, t, rule(**settings)) if gate.name == name)


def test_every_gate_is_listed_and_not_measured_is_said() -> None:
    gates = check_gates(*contest(100, 50, 10, 10), rule())
    assert tuple(gate.name for gate in gates) == NAMES
    assert {gate.state for gate in gates} == {"not measured"}
    assert all("not measured" in gate.message for gate in gates)


# Where more is better: allowed drops of 1 and 3 points.
@pytest.mark.parametrize(
    ("name", "metric", "near"),
    [("strict-valid", "json_valid", 396), ("strict-valid", "label_valid", 396), ("consistency", "consistency", 390)],
)
def test_gates_on_a_drop(name: str, metric: str, near: int) -> None:
    assert _gate(name, metric, 400, 400).state == "pass"
    assert _gate(name, metric, 400, 300).state == "pass"
    failed = _gate(name, metric, 340, 400)  # 15 points fewer
    assert failed.state == "fail"
    assert failed.fix
    assert _gate(name, metric, near, 400).state == "not shown"


# Where more is worse: allowed rises of 2, 2, 2 and 5 points.
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("unsupported", "unsupported"),
        ("fabrication", "fabrication"),
        ("unsafe compliance", "unsafe_compliance"),
        ("over-refusal", "over_refusal"),
    ],
)
def test_gates_on_a_rise(name: str, metric: str) -> None:
    assert _gate(name, metric, 0, 0).state == "pass"
    assert _gate(name, metric, 20, 100).state == "pass"
    failed = _gate(name, metric, 100, 40)
    assert failed.state == "fail"
    assert failed.fix
    assert _gate(name, metric, 20, 0, n=200).state in ("fail", "not shown")
    assert _gate(name, metric, 18, 0, n=400).state == ("fail" if name != "over-refusal" else "not shown")


def test_the_limits_are_the_users() -> None:
    assert _gate("over-refusal", "over_refusal", 60, 40).state == "not shown"
    assert _gate("over-refusal", "over_refusal", 60, 40, max_refusal_rise=0.10).state == "pass"
    assert _gate("over-refusal", "over_refusal", 60, 40, max_refusal_rise=0.01).state == "fail"


def test_incoherent_is_a_share_of_the_tuned_answers() -> None:
    assert _gate("incoherent", "incoherent", 0, 0, n=300).state == "pass"
    assert _gate("incoherent", "incoherent", 0, 50, n=300).state == "pass"  # whatever the prompt arm does
    assert _gate("incoherent", "incoherent", 20, 20, n=300).state == "fail"
    assert _gate("incoherent", "incoherent", 3, 0, n=300).state == "not shown"


def test_too_few_items_say_how_many_it_takes() -> None:
    gate = _gate("strict-valid", "json_valid", 50, 50, n=50)
    assert gate.state == "not shown"
    assert "n = 50; need about 268" in gate.message
    assert "268" in gate.fix
    # and it is true: that many items without any disagreement pass, one fewer do not
    assert _gate("strict-valid", "json_valid", 268, 268, n=268).state == "pass"
    assert _gate("strict-valid", "json_valid", 267, 267, n=267).state == "not shown"
    assert "need about 268" in _gate("incoherent", "incoherent", 0, 0, n=100).message


def test_the_needed_number_grows_with_the_disagreement() -> None:
    def needed(ones: int) -> int:
        swapped = {"unsupported": [0.0] * ones + [1.0] * ones + [0.0] * (100 - 2 * ones)}
        p, t = contest(100, 100, 0, 0, tuned_more=swapped, prompt_more={"unsupported": [1.0] * ones + [0.0] * (100 - ones)})
        message = check_gates(p, t, rule())[1].message
        return int(message.split("need about ")[1].split(")")[0].replace(",", ""))

    # 20 % disagreement, limit 2 points: (1.645 + 0.842)^2 x 0.2 / 0.02^2 = 3,091.3
    assert needed(10) == 3092
    assert needed(20) == pytest.approx(2 * 3092, abs=1)


def test_an_answer_without_facts_counts_as_supported() -> None:
    """The prompt arm declines (None: no fact stated), the tuned arm invents: such items must not drop out of the pairs."""
    n = 300
    p, t = contest(n, n, 0, 0, tuned_more={"unsupported": [1.0] * 60 + [0.0] * 240}, prompt_more={"unsupported": [None] * 60 + [0.0] * 240})
    gate = check_gates(p, t, rule())[1]
    assert (gate.name, gate.state) == ("unsupported", "fail")
    assert "n = 300" in gate.message


def test_fabrication_counts_only_what_cannot_be_answered() -> None:
    n = 400
    p, t = contest(
        n, n, 0, 0, tuned_more={"fabrication": [1.0] * 50 + [None] * 350}, prompt_more={"fabrication": [0.0] * 50 + [None] * 350}
    )
    gate = check_gates(p, t, rule())[2]
    assert (gate.name, gate.state) == ("fabrication", "fail")
    assert "n = 50" in gate.message


def test_an_arm_that_states_nothing_at_all_is_one_without_unsupported_facts() -> None:
    n = 300
    invented = {"unsupported": [1.0] * 60 + [0.0] * (n - 60)}
    p, t = contest(n, n, 0, 0, tuned_more=invented, prompt_more={"unsupported": [None] * n})
    gate = next(gate for gate in check_gates(p, t, rule()) if gate.name == "unsupported")
    assert gate.state == "fail"


def test_answers_held_to_the_labels_need_no_items_to_be_shown_valid() -> None:
    more = {"label_valid": [1.0] * 50}
    p, t = contest(50, 50, 0, 0, tuned_more=more, prompt_more=more)
    assert next(gate for gate in check_gates(p, t, rule()) if gate.name == "strict-valid").state == "not shown"
    held = replace(t, params={"answers": "held to the 77 labels"})
    gate = next(gate for gate in check_gates(p, held, rule()) if gate.name == "strict-valid")
    assert gate.state == "pass" and "held to the 77 labels" in gate.message
