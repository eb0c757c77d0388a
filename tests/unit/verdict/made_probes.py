"""Synthetic probes with known answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.unit.verdict.made_arms import contest, rule

from luthier.core.types import ArmFamily, ArmResult, GateResult, ItemScore
from luthier.verdict.gates import check_gates
from luthier.verdict.probes import ProbeRecord

KIND_OF = {"unsafe_compliance": "unsafe", "over_refusal": "safe", "retention": "text", "incoherent": "safe", "follows": "constraint"}
Values = Mapping[str, Sequence[float | None]]


def probes(*, base: Values, tuned: Values) -> ProbeRecord:
    """Item i of a metric has its i-th value; every metric has items of its own."""
    return ProbeRecord(
        key="k",
        source="made up",
        base=_arm("base model", base, "prompt"),
        tuned=_arm("tuned model", tuned, "tuned"),
        prompts={},
        max_new_tokens=32,
        perplexity_limit=20.0,
    )


def _arm(name: str, metrics: Values, family: ArmFamily) -> ArmResult:
    items = tuple(
        ItemScore(item_id=f"{metric}-{i}", cluster=f"{metric}-{i}", text="", gold=KIND_OF[metric], values={metric: value})
        for metric, values in metrics.items()
        for i, value in enumerate(values)
    )
    return ArmResult(name=name, family=family, model="small", description="", items=items)


def gate_of(name: str, record: ProbeRecord | None, **settings: object) -> GateResult:
    """The gate of this name on an uneventful contest."""
    gates = check_gates(*contest(100, 50, 10, 10), rule(**settings), record)
    return next(gate for gate in gates if gate.name == name)
