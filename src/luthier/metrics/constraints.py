"""Instructions whose keeping a few lines of code can verify, by the published definitions of IFEval (Zhou et al., arXiv 2311.07911).

All 25 types. Those with a language (`DETECTED`) need the extra `language`. As there, an answer without letters of any language counts
as one in the language asked for, and a short answer is judged like a long one. Answers are untrusted text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.metrics.language import language_of
from luthier.metrics.sentences import count_capital_words, count_sentences

Values = Mapping[str, Any]
RELATIONS = ("at least", "less than")
FENCES = ("```json", "```Json", "```JSON", "```")
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
DETECTED = frozenset({"language:response_language", "change_case:english_capital", "change_case:english_lowercase"})
WORD_ENDS = frozenset(".,?!'\"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """One instruction: its IFEval name, and its numbers and words."""

    kind: str
    values: Values


def is_kept(constraint: Constraint, answer: str) -> bool:
    """Strict: the answer as it is. An empty one keeps nothing.

    Raises KeyError for a value that is missing, MissingExtraError where a language is asked for and the extra is not there.
    """
    return bool(answer.strip()) and CHECKS[constraint.kind](answer, constraint.values)


def missing_values(constraint: Constraint) -> tuple[str, ...]:
    """The values this type needs and does not have."""
    return tuple(name for name in NEEDS.get(constraint.kind, ()) if constraint.values.get(name) is None)


def odd_relation(constraint: Constraint) -> Any:
    """The relation that is none of `RELATIONS`; None where all are."""
    given = [value for name, value in constraint.values.items() if name.endswith("relation") and value is not None]
    return next((value for value in given if value not in RELATIONS), None)


def _related(count: int, relation: str, number: int) -> bool:
    return count < number if relation == "less than" else count >= number


def _frequency(answer: str, values: Values) -> bool:
    found = len(re.findall(re.escape(values["keyword"]), answer, flags=re.IGNORECASE))
    return _related(found, values["relation"], values["frequency"])


def _highlights(answer: str, values: Values) -> bool:
    single = sum(bool(found.strip("*").strip()) for found in re.findall(r"\*[^\n*]*\*", answer))
    double = sum(bool(found[2:-2].strip()) for found in re.findall(r"\*\*[^\n*]*\*\*", answer))
    return single + double >= values["num_highlights"]


def _bullets(answer: str, values: Values) -> bool:
    stars, dashes = (len(re.findall(mark, answer, flags=re.MULTILINE)) for mark in (r"^[^\S\n]*\*[^*\n].*$", r"^[^\S\n]*-.*$"))
    return stars + dashes == values["num_bullets"]


def _paragraphs(answer: str, values: Values) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", answer)
    if any(not part.strip() for part in parts[1:-1]):
        return False
    return sum(bool(part.strip()) for part in parts) == values["num_paragraphs"]


def _nth_paragraph(answer: str, values: Values) -> bool:
    parts = answer.split("\n\n")
    num, nth = sum(bool(part.strip()) for part in parts), values["nth_paragraph"]
    if nth > num or not (paragraph := parts[nth - 1].strip()):
        return False
    word = paragraph.split()[0].lstrip("'").lstrip('"').lower()
    first = word[: next((i for i, char in enumerate(word) if char in WORD_ENDS), len(word))]
    return num == values["num_paragraphs"] and first == values["first_word"].lower()


def _two_responses(answer: str, values: Values) -> bool:
    del values
    parts = answer.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    given = [part.strip() for part in parts if part.strip()]
    return len(given) == 2 and given[0] != given[1]


def _postscript(answer: str, values: Values) -> bool:
    marker = values["postscript_marker"]
    spelled = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}.get(marker, rf"\s*{re.escape(marker.lower())}.*$")
    return re.search(spelled, answer.lower(), flags=re.MULTILINE) is not None


def _json(answer: str, values: Values) -> bool:
    del values
    text = answer.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _quoted(answer: str, values: Values) -> bool:
    del values
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _sections(answer: str, values: Values) -> bool:
    return len(re.split(rf"\s?{re.escape(values['section_spliter'])}\s?\d+\s?", answer)) - 1 >= values["num_sections"]


def _is_in(answer: str, code: str) -> bool:
    return language_of(answer) in (code, None)


def _words_there(answer: str, words: Any, *, whole: bool) -> list[bool]:
    edge = r"\b" if whole else ""
    return [re.search(f"{edge}{re.escape(word)}{edge}", answer, flags=re.IGNORECASE) is not None for word in words]


CHECKS: Mapping[str, Callable[[str, Values], bool]] = {
    "punctuation:no_comma": lambda answer, values: "," not in answer,
    "length_constraints:number_words": lambda a, v: _related(len(re.findall(r"\w+", a)), v["relation"], v["num_words"]),
    "length_constraints:number_sentences": lambda a, v: _related(count_sentences(a), v["relation"], v["num_sentences"]),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "keywords:existence": lambda a, v: all(_words_there(a, v["keywords"], whole=False)),
    "keywords:forbidden_words": lambda a, v: not any(_words_there(a, v["forbidden_words"], whole=True)),
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": lambda a, v: _related(a.lower().count(v["letter"].lower()), v["let_relation"], v["let_frequency"]),
    "detectable_content:number_placeholders": lambda a, v: len(re.findall(r"\[.*?\]", a)) >= v["num_placeholders"],
    "detectable_content:postscript": _postscript,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:title": lambda a, v: any(found.strip("<>").strip() for found in re.findall(r"<<[^\n]+>>", a)),
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": lambda a, v: any(one in a for one in ANSWERS),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda a, v: a.strip().lower().startswith(v["prompt_to_repeat"].strip().lower()),
    "startend:quotation": _quoted,
    "startend:end_checker": lambda a, v: a.strip().strip('"').lower().endswith(v["end_phrase"].strip().lower()),
    "change_case:english_capital": lambda a, v: a.isupper() and _is_in(a, "en"),
    "change_case:english_lowercase": lambda a, v: a.islower() and _is_in(a, "en"),
    "change_case:capital_word_frequency": lambda a, v: _related(count_capital_words(a), v["capital_relation"], v["capital_frequency"]),
    "language:response_language": lambda a, v: _is_in(a, v["language"]),
}
NEEDS: Mapping[str, tuple[str, ...]] = {
    "length_constraints:number_words": ("relation", "num_words"),
    "length_constraints:number_sentences": ("relation", "num_sentences"),
    "length_constraints:number_paragraphs": ("num_paragraphs",),
    "length_constraints:nth_paragraph_first_word": ("num_paragraphs", "nth_paragraph", "first_word"),
    "keywords:existence": ("keywords",),
    "keywords:forbidden_words": ("forbidden_words",),
    "keywords:frequency": ("keyword", "relation", "frequency"),
    "keywords:letter_frequency": ("letter", "let_relation", "let_frequency"),
    "detectable_content:number_placeholders": ("num_placeholders",),
    "detectable_content:postscript": ("postscript_marker",),
    "detectable_format:number_highlighted_sections": ("num_highlights",),
    "detectable_format:number_bullet_lists": ("num_bullets",),
    "detectable_format:multiple_sections": ("section_spliter", "num_sections"),
    "combination:repeat_prompt": ("prompt_to_repeat",),
    "startend:end_checker": ("end_phrase",),
    "change_case:capital_word_frequency": ("capital_relation", "capital_frequency"),
    "language:response_language": ("language",),
}
