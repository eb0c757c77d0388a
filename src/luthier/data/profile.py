"""What kind of answer the responses are: a label, a JSON object, a short answer or free text."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

from luthier.core.types import Example, TaskProfile
from luthier.data.final_number import number_form
from luthier.data.normalise import UNSPACED, normalise

JSON_SHARE = 0.95  # of the responses that must parse, and of the objects a key must be in
NUMBER_SHARE = 0.95  # of the responses that must come to a number
SHORT_WORDS = 8
LABEL_WORDS, LABEL_CHARS = 8, 80
MAX_LABELS, MAX_ENUM = 1000, 200
MIN_REPEATS = 3  # a closed set is used this many times over on average
UNSEEN_SHARE = 0.02


def profile_task(train: Sequence[Example]) -> TaskProfile:
    """Find the task kind with the numbers it rests on.

    A set of answers is taken to be closed when each is used three times on average and those seen only once make up at most 2 %
    of the rows: by Good and Turing (Biometrika 1953) that is the share of rows with an answer not seen yet.
    Without any wanted response the kind is "text".
    """
    responses = [e.response for e in train if e.kind != "text" and e.desirable is not False]
    longest = max((len(e.response) for e in train), default=0)
    if not responses:
        return TaskProfile(kind="text", evidence=f"{len(train)} rows, none with a response to a prompt", max_response_chars=longest)
    objects = [found for text in responses if (found := parse_object(text)) is not None]
    n = len(responses)
    if len(objects) >= JSON_SHARE * n:
        keys = _usual_keys(objects)
        enums = _enums(objects, keys)
        evidence = f"{len(objects)} of {n} responses are JSON objects; keys in at least 95 %: {', '.join(keys) or 'none'}"
        closed = ", ".join(f"{key} ({len(values)})" for key, values in enums.items())
        return TaskProfile(
            kind="json",
            evidence=evidence + (f"; closed sets: {closed}" if closed else ""),
            json_keys=keys,
            json_enums=enums,
            max_response_chars=longest,
        )
    median_words = statistics.median(len(UNSPACED.sub(" x ", text).split()) for text in responses)
    labels = _closed_set(responses, max_values=MAX_LABELS)
    if labels and all(len(label) <= LABEL_CHARS and len(label.split()) <= LABEL_WORDS for label in labels):
        evidence = f"{n} responses are {len(labels)} distinct short answers, {n / len(labels):.1f} rows each on average"
        return TaskProfile(kind="label", evidence=evidence, labels=labels, max_response_chars=longest)
    distinct = len({normalise(text) for text in responses})
    evidence = f"{distinct} distinct answers in {n} rows, median length {median_words:g} words"
    short = median_words <= SHORT_WORDS and statistics.median(map(len, responses)) <= LABEL_CHARS
    form = number_form(responses, NUMBER_SHARE)
    if form:
        evidence += f"; at least {100 * NUMBER_SHARE:.0f} % come to a number, written {form}"
    return TaskProfile(kind="short" if short else "text", evidence=evidence, max_response_chars=longest, number_form=form)


def parse_object(text: str) -> dict[str, object] | None:
    """The JSON object that is the whole text, or None; duplicate keys, NaN and Infinity are not JSON."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", value) if isinstance(value, dict) and is_writable(text, value) else None


def is_writable(text: str, value: object) -> bool:
    """Whether what was parsed from JSON `text` can be written as UTF-8: an escape such as \\ud83d alone is half a character."""
    if "\\ud" not in text.lower():
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def stratum_of(response: str, profile: TaskProfile) -> str:
    """The label that split parts are balanced by: the label itself, or the closed-set values of a JSON answer; else ""."""
    if profile.kind == "label":
        return normalise(response)
    if profile.kind == "json" and profile.json_enums:
        found = parse_object(response) or {}
        return json.dumps([as_text(found.get(key)) for key in profile.json_enums])
    return ""


def as_text(value: object) -> str | None:
    """A string as it is, true, false and null as JSON spells them, None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return None


def _usual_keys(objects: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """Keys in at least 95 % of the objects, by their mean position."""
    counts: Counter[str] = Counter()
    places: dict[str, int] = defaultdict(int)
    for found in objects:
        for place, key in enumerate(found):
            counts[key] += 1
            places[key] += place
    usual = [key for key, count in counts.items() if count >= JSON_SHARE * len(objects)]
    return tuple(sorted(usual, key=lambda key: (places[key] / counts[key], key)))


def _enums(objects: Sequence[Mapping[str, object]], keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Keys whose values are short texts, true or false (or null) from a closed set, most frequent first."""
    enums: dict[str, tuple[str, ...]] = {}
    for key in keys:
        raw = [found[key] for found in objects if key in found]
        texts = [text for value in raw if (text := as_text(value)) is not None]
        if len(texts) < len(raw) or all(value is None for value in raw):
            continue
        values = _closed_set(texts, max_values=MAX_ENUM)
        if values and all(len(value) <= LABEL_CHARS // 2 and len(value.split()) <= LABEL_WORDS // 2 for value in values):
            enums[key] = values
    return enums


def _closed_set(texts: Sequence[str], *, max_values: int) -> tuple[str, ...]:
    """The distinct texts, most frequent first and in their most frequent spelling, or () if the set does not look closed."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for text, count in Counter(texts).items():
        spellings[normalise(text)][text.strip()] += count
    n = len(texts)
    totals = {name: sum(found.values()) for name, found in spellings.items()}
    num_once = sum(total == 1 for total in totals.values())
    if len(totals) > max_values or len(totals) * MIN_REPEATS > n or num_once > max(1, UNSEEN_SHARE * n):
        return ()
    order = sorted(totals, key=lambda name: (-totals[name], name))
    return tuple(min(spellings[name], key=lambda text: (-spellings[name][text], text)) for name in order)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _refuse(name: str) -> object:
    raise ValueError(f"not JSON: {name}")
