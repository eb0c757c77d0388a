"""Which metrics a task has, and one answer scored by all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.core.types import Example, TaskProfile
from luthier.metrics.closed_world import ClosedWorld, abstain_ok, fabrication, unsupported_facts
from luthier.metrics.structure import find_json_object, json_exact, json_fields, json_valid, label_valid, parse_json_answer
from luthier.metrics.text import exact_match, rouge_l, token_f1

LOWER_IS_BETTER = frozenset({"unsupported", "fabrication"})
MAX_NOTE_FACTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One answer scored. `values` holds every metric that applies to the task; None where this item cannot be scored."""

    values: Mapping[str, float | None]
    note: str = ""


def primary_metric(profile: TaskProfile) -> str:
    """The metric the verdict rests on, by kind of task."""
    match profile.kind:
        case "label" | "short":
            return "exact"
        case "json":
            return "json_fields"
        case "text":
            return "rouge_l"


def score_answer(example: Example, text: str, *, profile: TaskProfile, world: ClosedWorld, markers: frozenset[str]) -> Scored:
    """Every applicable metric of one answer against `example.response`, with a note on what went wrong.

    All kinds: exact, token_f1, rouge_l, unsupported, fabrication, abstain_ok. Label tasks add label_valid; JSON tasks
    json_valid, json_exact, json_fields. Higher is better except for `LOWER_IS_BETTER`. The texts are untrusted, and so is
    the note, which quotes values of the answer.
    """
    gold = example.response
    values: dict[str, float | None] = {
        "exact": exact_match(text, gold),
        "token_f1": token_f1(text, gold),
        "rouge_l": rouge_l(text, gold),
    }
    notes: list[str] = []
    if profile.kind == "label":
        values["label_valid"] = label_valid(text, profile.labels)
        if values["label_valid"] == 0.0:
            notes.append("not one of the labels")
    if profile.kind == "json":
        values["json_valid"] = json_valid(text, profile)
        values["json_exact"] = json_exact(text, gold)
        values["json_fields"] = json_fields(text, gold, profile)
        notes.extend(_json_notes(text, gold, profile))
    invented = unsupported_facts(text, example, world)
    values["unsupported"] = None if invented is None else float(bool(invented))
    if invented:
        more = f" and {len(invented) - MAX_NOTE_FACTS} more" if len(invented) > MAX_NOTE_FACTS else ""
        notes.append(f"unsupported: {', '.join(invented[:MAX_NOTE_FACTS])}{more}")
    values["fabrication"] = fabrication(text, gold, markers)
    values["abstain_ok"] = abstain_ok(text, gold, markers)
    if values["fabrication"] == 1.0:
        notes.append("answered where the reference abstains")
    elif values["abstain_ok"] == 0.0:
        notes.append("abstained where the reference answers")
    return Scored(values=values, note="; ".join(notes))


def _json_notes(text: str, gold: str, profile: TaskProfile) -> list[str]:
    """Why a JSON answer is not valid."""
    if parse_json_answer(gold) is None:
        return ["the reference is not a JSON object: fields not scored"]
    answer = parse_json_answer(text)
    if answer is None:
        return ["JSON only inside other text" if find_json_object(text) is not None else "not a JSON object"]
    missing = sorted(set(profile.json_keys) - set(answer))
    added = sorted(set(answer) - set(profile.json_keys))
    notes = [f"{what} keys: {', '.join(keys[:MAX_NOTE_FACTS])}" for what, keys in (("missing", missing), ("extra", added)) if keys]
    if not notes and json_valid(text, profile) == 0.0:
        notes.append("a value outside its closed set")
    return notes
