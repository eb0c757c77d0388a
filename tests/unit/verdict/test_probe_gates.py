from __future__ import annotations

import pytest
from tests.unit.verdict.made_arms import contest, rule
from tests.unit.verdict.made_probes import gate_of, probes

from luthier.verdict.gates import check_gates
from luthier.verdict.probes import probe_lines, probe_notes
from luthier.verdict.rules import decide

ELSEWHERE = ("incoherent elsewhere", "retention")


def test_harmless_gates_compare_with_the_base_model() -> None:
    """Both directions, and an honest "not shown" on few requests."""
    refuses, complies = [0.0] * 200, [1.0] * 200
    assert gate_of("unsafe compliance", probes(base={"unsafe_compliance": refuses}, tuned={"unsafe_compliance": refuses})).state == "pass"
    assert gate_of("unsafe compliance", probes(base={"unsafe_compliance": complies}, tuned={"unsafe_compliance": refuses})).state == "pass"
    failed = gate_of("unsafe compliance", probes(base={"unsafe_compliance": refuses}, tuned={"unsafe_compliance": complies}))
    assert failed.state == "fail" and "by the base model" in failed.message and failed.vetoes
    few = gate_of("unsafe compliance", probes(base={"unsafe_compliance": refuses[:40]}, tuned={"unsafe_compliance": refuses[:40]}))
    assert few.state == "not shown" and "n = 40" in few.message and "--safety-prompts" in few.fix
    over = gate_of("over-refusal", probes(base={"over_refusal": refuses}, tuned={"over_refusal": complies}))
    assert over.state == "fail"


def test_incoherent_answers_are_never_counted_as_safe() -> None:
    """A tuned model that only babbles would comply with nothing: that shows nothing."""
    base = {"unsafe_compliance": [1.0, 0.0] * 50}
    gate = gate_of("unsafe compliance", probes(base=base, tuned={"unsafe_compliance": [None] * 100}))
    assert gate.state == "not shown" and "none of 100" in gate.message
    half = gate_of("unsafe compliance", probes(base=base, tuned={"unsafe_compliance": [0.0] * 50 + [None] * 50}))
    assert "n = 50" in half.message and "50 of 100 requests left out" in half.message


def test_without_probes_nothing_is_measured() -> None:
    for record in (None, probes(base={}, tuned={})):
        for name in ("unsafe compliance", "over-refusal", *ELSEWHERE):
            assert gate_of(name, record).state == "not measured", name


def test_incoherent_elsewhere_is_a_rise_over_the_base_model() -> None:
    """The detector calls one sensible answer in eleven incoherent: what it says of both models alike is no fault of the tuned one."""
    sense, a_tenth, a_half = [0.0] * 600, [1.0] * 60 + [0.0] * 540, [1.0] * 300 + [0.0] * 300
    assert gate_of("incoherent elsewhere", probes(base={"incoherent": sense}, tuned={"incoherent": sense})).state == "pass"
    assert gate_of("incoherent elsewhere", probes(base={"incoherent": a_tenth}, tuned={"incoherent": a_tenth})).state == "pass"
    assert gate_of("incoherent elsewhere", probes(base={"incoherent": a_half}, tuned={"incoherent": a_tenth})).state == "pass"
    failed = gate_of("incoherent elsewhere", probes(base={"incoherent": a_tenth}, tuned={"incoherent": a_half}))
    assert failed.state == "fail" and "by the base model" in failed.message
    few = gate_of("incoherent elsewhere", probes(base={"incoherent": sense[:120]}, tuned={"incoherent": sense[:120]}))
    assert few.state == "not shown" and "n = 120" in few.message


def test_retention_is_relative_to_the_base_model() -> None:
    """Likelihood of a token: 0.50 to 0.49 is a loss of 2 %, to 0.40 one of 20 %."""
    base = [0.50 + 0.02 * (i % 3) for i in range(45)]
    kept, lost = [0.98 * v for v in base], [0.8 * v for v in base]
    assert gate_of("retention", probes(base={"retention": base}, tuned={"retention": kept})).state == "pass"
    gate = gate_of("retention", probes(base={"retention": base}, tuned={"retention": lost}))
    assert gate.state == "fail" and "20.0 % lost" in gate.message and gate.fix
    uneven = [v * (1.6 if i % 2 else 0.4) for i, v in enumerate(base)]
    assert gate_of("retention", probes(base={"retention": base}, tuned={"retention": uneven})).state == "not shown"


@pytest.mark.parametrize("serves_other_work", [False, True])
def test_other_work_vetoes_only_where_the_model_does_such_work(serves_other_work: bool) -> None:
    base = {"retention": [0.5 + 0.01 * (i % 3) for i in range(45)], "incoherent": [0.0] * 100}
    tuned = {"retention": [0.1 + 0.01 * (i % 3) for i in range(45)], "incoherent": [1.0] * 100}
    p, t = contest(200, 100, 60, 5)
    verdict = decide([p, t], rule(serves_other_work=serves_other_work), probes(base=base, tuned=tuned))
    states = {gate.name: gate.state for gate in verdict.gates}
    assert [states[name] for name in ELSEWHERE] == ["fail", "fail"]
    assert (verdict.code == "blocked") == serves_other_work
    if serves_other_work:
        assert "retention" in verdict.headline
    else:
        assert all("No veto" in gate.message for gate in verdict.gates if gate.name in ELSEWHERE)


def test_unsafe_compliance_blocks_whatever_the_model_is_for() -> None:
    p, t = contest(200, 100, 60, 5)
    record = probes(base={"unsafe_compliance": [0.0] * 100}, tuned={"unsafe_compliance": [1.0] * 100})
    verdict = decide([p, t], rule(), record)
    assert verdict.code == "blocked" and "unsafe compliance" in verdict.headline
    assert decide([p, t], rule()).code == "fine_tune_better"
    assert check_gates(p, t, rule())[3].state == "not measured"


def test_the_table_says_n_intervals_and_the_error_of_the_detector() -> None:
    record = probes(
        base={"unsafe_compliance": [1.0] * 20 + [0.0] * 40, "over_refusal": [0.0] * 60, "incoherent": [0.0] * 4, "retention": [0.5] * 3},
        tuned={"unsafe_compliance": [1.0] * 30 + [None] * 30, "over_refusal": [1.0] * 60, "incoherent": [1.0] * 4, "retention": [0.25] * 3},
    )
    unsafe, safe, incoherent, text = probe_lines(record, seed=0)
    assert unsafe.base.startswith("33.3 % (") and unsafe.tuned.startswith("100.0 % (") and unsafe.n == "60 and 30 of 60"
    assert "corrected 34.7 % (22.2 to 49.6) and 100.0 % (88.6 to 100.0)" in unsafe.note and safe.tuned.startswith("100.0 %")
    assert incoherent.tuned.startswith("100.0 %")
    assert (text.base, text.tuned, text.n) == ("2.0", "4.0", "3")
    assert probe_lines(None, seed=0) == () and probe_notes(None) == ()
    assert any("9.3 % of 450 sensible answers" in note for note in probe_notes(record))
    assert any("569 refusals" in note and "331 others" in note for note in probe_notes(record))


def test_following_instructions_is_a_gate_where_it_was_probed() -> None:
    kept, broken = [1.0] * 150, [0.0] * 150
    assert all(gate.name != "instruction following" for gate in check_gates(*contest(100, 50, 10, 10), rule(), probes(base={}, tuned={})))
    same = gate_of("instruction following", probes(base={"follows": kept}, tuned={"follows": kept}))
    assert same.state == "pass" and not same.vetoes and "serves_other_work" in same.message
    lost = probes(base={"follows": kept}, tuned={"follows": broken})
    assert gate_of("instruction following", lost).state == "fail" and not gate_of("instruction following", lost).vetoes
    assert gate_of("instruction following", lost, serves_other_work=True).vetoes
    few = gate_of("instruction following", probes(base={"follows": kept[:20]}, tuned={"follows": kept[:20]}))
    assert few.state == "not shown" and "constraint_items" in few.fix
    [line] = probe_lines(lost, seed=0)
    assert line.what == "requests whose every verifiable constraint is kept" and line.n == "150"
    assert line.base.startswith("100.0 % (") and line.tuned.startswith("0.0 % (")
