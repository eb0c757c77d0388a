"""The words of the "instructed" arm: what the answer must look like, said in three ways."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence

from luthier.core.types import Example, TaskProfile

NUM_WORDINGS = 3
MAX_FORM_ROWS = 500  # training responses read to tell the type of each JSON key


def wordings(profile: TaskProfile, train: Sequence[Example]) -> tuple[str, str, str]:
    """Three texts that state the answer's form: the closed label set, the JSON keys and values, or the length."""
    match profile.kind:
        case "label":
            return _label_wordings(profile)
        case "json":
            return _json_wordings(profile, train)
        case "short":
            return (
                "Answer with exactly one short answer and nothing else: no explanation, no full sentence.",
                f"Give the final answer only, in at most {max(1, profile.max_response_chars)} characters. Write nothing else.",
                "Work out the answer, then write only the answer itself. No introduction, no reasons, nothing else.",
            )
        case "text" if profile.number_form:
            form = profile.number_form
            return (
                f"Work it out step by step in short lines. The last line is the number alone, marked like this (for 42):\n{form}",
                f"Write the steps of the calculation, then the result in exactly this form (here for 42): {form}\nWrite nothing after it.",
                f"You solve arithmetic problems. One step a line; then one last line with the result, nothing else on it. Form: {form}",
            )
        case "text":
            words = round(statistics.median(len(row.response.split()) for row in train)) if train else 1
            return (
                f"Answer directly in about {max(1, words)} words. Write the answer and nothing else: no introduction, no remarks.",
                "Write exactly one answer and nothing else. Use only what is given; do not invent facts, names or numbers. "
                f"Length: about {max(1, words)} words.",
                f"You write finished texts. Reply with the text only: about {max(1, words)} words, complete, nothing else.",
            )


def reminder(profile: TaskProfile) -> str:
    """One line that repeats the form right before the answer."""
    match profile.kind:
        case "label":
            return "Answer with exactly one label from the list and nothing else."
        case "json":
            return "Answer with exactly one JSON object and nothing else."
        case "short":
            return "Answer with the answer only and nothing else."
        case "text" if profile.number_form:
            return f"End with the result in this form (here for 42): {profile.number_form}"
        case "text":
            return "Answer with the text only and nothing else."


def _label_wordings(profile: TaskProfile) -> tuple[str, str, str]:
    labels = [_one_line(label) for label in profile.labels]
    listed = "\n".join(f"- {label}" for label in labels)
    return (
        f"Choose the one label that fits. The labels are:\n{listed}\n\n"
        "Answer with exactly one label from the list, copied letter by letter, and nothing else.",
        f"You are a classifier. Allowed answers: {', '.join(labels)}.\n\n"
        "Reply with exactly one of the allowed answers. No explanation, no other words, nothing else.",
        f"Sort what the user writes into exactly one of these {len(labels)} categories:\n{listed}\n\n"
        "Think of the closest meaning. Output the category exactly as written above and nothing else.",
    )


def _json_wordings(profile: TaskProfile, train: Sequence[Example]) -> tuple[str, str, str]:
    forms = _json_forms(profile.json_keys, train)
    lines: list[str] = []
    skeleton: dict[str, object] = {}
    for key in profile.json_keys:
        name, blank = forms.get(key, ("text", "..."))
        if key in profile.json_enums:
            name = "one of " + ", ".join(_quoted(value) if name == "text" else value for value in profile.json_enums[key])
        lines.append(f"- {_quoted(key)}: {name}")
        skeleton[key] = blank
    listed, form = "\n".join(lines), json.dumps(skeleton, ensure_ascii=False)
    keys = ", ".join(_quoted(key) for key in profile.json_keys)
    return (
        f"Answer with exactly one JSON object and nothing else. It has exactly these keys:\n{listed}\n\nForm:\n{form}",
        f"Extract the values and return them as JSON.\n{listed}\n\nTemplate: {form}\n\n"
        "Return exactly one JSON object with all keys and no others. No code fence, no comments, nothing else.",
        f"Your output is read by a program: exactly one JSON object with the keys {keys}, nothing before it and nothing else after it.\n"
        f"{listed}\n\nSkeleton to fill in:\n{form}",
    )


def _json_forms(keys: Iterable[str], train: Sequence[Example]) -> dict[str, tuple[str, object]]:
    """For each key, what its values are called and a blank one, by the most frequent type in the training responses."""
    counts: dict[str, dict[str, int]] = {key: {} for key in keys}
    for row in train[:MAX_FORM_ROWS]:
        try:
            value: object = json.loads(row.response)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            for key in counts.keys() & value.keys():
                name = _type_name(value[key])
                counts[key][name] = counts[key].get(name, 0) + 1
    blanks: dict[str, object] = {"text": "...", "true or false": True, "a number": 0, "a list": [], "an object": {}}
    forms: dict[str, tuple[str, object]] = {}
    for key, seen in counts.items():
        present = {name: n for name, n in seen.items() if name != "null"}
        if not present:
            continue
        main = min(present, key=lambda name: (-present[name], name))
        forms[key] = (f"{main} or null" if "null" in seen else main, blanks[main])
    return forms


def _type_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "text"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _one_line(label: str) -> str:
    """A label that would break the list is shown quoted."""
    return label if label.isprintable() else _quoted(label)
