"""Which metrics a task has, and one answer scored by all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from luthier.core.errors import ConfigError
from luthier.core.types import Example, TaskProfile
from luthier.metrics.closed_world import ClosedWorld, fabrication, over_abstention, unsupported_facts
from luthier.metrics.number import number_match
from luthier.metrics.own import OwnMetric
from luthier.metrics.refusal import repeats_itself
from luthier.metrics.structure import find_json_object, json_exact, json_fields, json_valid, label_valid, parse_json_answer
from luthier.metrics.text import chrf, edit_similarity, exact_match, rouge_l, token_f1

LOWER_IS_BETTER = frozenset({"unsupported", "fabrication", "over_abstention", "incoherent"})
MEANINGS: Mapping[str, str] = {  # every metric there is, in the order shown
    "exact": "the answer is the reference, case and final punctuation aside",
    "number": "the number the answer comes to is the reference's, whatever the way there",
    "json_exact": "every field of the reference right",
    "json_fields": "mean over the reference's fields: right or wrong; overlap of words where the text is long",
    "json_valid": "a JSON object with exactly the wanted keys, values of closed sets within them",
    "label_valid": "one of the labels",
    "token_f1": "overlap of words with the reference",
    "rouge_l": "longest common run of words with the reference",
    "chrf": "overlap of runs of 1 to 6 characters with the reference (chrF2)",
    "edit_similarity": "1 less the share of characters to change to make the answer the reference",
    "unsupported": "of the answers that state values: share with one that neither input nor known facts hold",
    "fabrication": "of the items whose reference says it is not known: share that were answered all the same",
    "over_abstention": "of the items whose reference answers: share that were declined",
    "incoherent": "share of the answers that repeat themselves where the reference does not, or are empty",
}
OF_CHARACTERS = ("chrf", "edit_similarity")  # say nothing of labels and objects
MAX_NOTE_FACTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One answer scored. `values` holds every metric that applies to the task; None where this item cannot be scored."""

    values: Mapping[str, float | None]
    note: str = ""


def primary_metric(profile: TaskProfile) -> str:
    """The metric the verdict rests on, by kind of task."""
    if profile.number_form:
        return "number"
    match profile.kind:
        case "label" | "short":
            return "exact"
        case "json":
            return "json_fields"
        case "text":
            return "rouge_l"


def metrics_of(profile: TaskProfile) -> tuple[str, ...]:
    """The metrics that `score_answer` gives for this kind of task, in the order of `MEANINGS`."""
    of_json = {"json_exact", "json_fields", "json_valid"}
    others = {"json": {"label_valid", *OF_CHARACTERS}, "label": {*of_json, *OF_CHARACTERS}}
    left_out = others.get(profile.kind, {"label_valid", *of_json})
    left_out = left_out | ({"unsupported"} if profile.number_form else {"number"})
    return tuple(name for name in MEANINGS if name not in left_out)


def check_metric(name: str, profile: TaskProfile) -> str:
    """`name`, if a verdict on this task can rest on it; for one of your own see `own.py`. Raises ConfigError with the nearest name."""
    usable = [metric for metric in metrics_of(profile) if metric not in LOWER_IS_BETTER]
    if name in usable:
        return name
    lower = f" ({name} is better when lower)" if name in LOWER_IS_BETTER else ""
    nearest = get_close_matches(name, usable, n=1, cutoff=0.5) or [primary_metric(profile)]
    raise ConfigError(
        f"found {name!r}{lower}, expected one of {', '.join(usable)} for answers of kind {profile.kind}, or your own as module:function",
        where="decide.metric",
        fix=f"--metric {nearest[0]}",
    )


def score_answer(
    example: Example, text: str, *, profile: TaskProfile, world: ClosedWorld, markers: frozenset[str], own: OwnMetric | None = None
) -> Scored:
    """Every applicable metric of one answer against `example.response`, with a note on what went wrong; the user's own comes last.

    With several references the overlap scores and the number are those of the reference that fits best.

    All kinds: exact, token_f1, rouge_l, unsupported, fabrication, over_abstention, incoherent. Answers that come to a number have number
    instead of unsupported, for a value that was worked out stands in no input; short and free text has chrf and edit_similarity;
    label tasks label_valid; JSON tasks json_valid, json_exact, json_fields. Higher is better except for `LOWER_IS_BETTER`.
    The texts are untrusted, and so is the note, which quotes values of the answer.
    """
    gold = example.response
    references = (gold, *example.references)
    values: dict[str, float | None] = {
        "exact": max(exact_match(text, right) for right in references),
        "token_f1": max(token_f1(text, right) for right in references),
        "rouge_l": max(rouge_l(text, right) for right in references),
    }
    if profile.kind in ("short", "text"):
        values["chrf"] = max(chrf(text, right) for right in references)
        values["edit_similarity"] = max(edit_similarity(text, right) for right in references)
    notes: list[str] = []
    if profile.number_form:
        found = [number_match(text, right) for right in references]
        values["number"] = max((score for score in found if score is not None), default=None)
    if profile.kind == "label":
        values["label_valid"] = label_valid(text, profile.labels)
        if values["label_valid"] == 0.0:
            notes.append("not one of the labels")
    if profile.kind == "json":
        values["json_valid"] = json_valid(text, profile)
        values["json_exact"] = json_exact(text, gold)
        values["json_fields"] = json_fields(text, gold, profile)
        notes.extend(_json_notes(text, gold, profile))
    invented = () if profile.number_form else unsupported_facts(text, example, world)
    if not profile.number_form:
        values["unsupported"] = None if invented is None else float(bool(invented))
    if invented:
        more = f" and {len(invented) - MAX_NOTE_FACTS} more" if len(invented) > MAX_NOTE_FACTS else ""
        notes.append(f"unsupported: {', '.join(invented[:MAX_NOTE_FACTS])}{more}")
    values["fabrication"] = fabrication(text, gold, markers)
    values["over_abstention"] = over_abstention(text, gold, markers)
    values["incoherent"] = float(repeats_itself(text) and not repeats_itself(gold))
    if values["fabrication"] == 1.0:
        notes.append("answered where the reference abstains")
    elif values["over_abstention"] == 1.0:
        notes.append("abstained where the reference answers")
    if values["incoherent"] == 1.0:
        notes.append("empty, or repeats itself")
    if own is not None:
        values[own.name] = own.score(example, text)
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
