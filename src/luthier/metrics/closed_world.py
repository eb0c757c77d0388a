"""Hallucination without a judge: invented values, and answers where the reference says it does not know.

The world is closed: a model fine-tuned on the training rows may state what its input, its instructions or the training
responses state. A price, date, code or address from anywhere else is unsupported. That is a lower bound on invention (a wrong
name is not seen) and can accuse an answer that computes a value; both sides of a comparison are measured alike.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from luthier.core.types import Example
from luthier.data.normalise import normalise
from luthier.metrics.facts import bare_numbers, bare_value, fact_tokens, weaker_forms
from luthier.metrics.structure import parse_json_answer, text_fields

MIN_MARKER_INPUTS = 3  # a marker answers at least this many different inputs
MAX_HEAD_CHARS = 300  # an abstention is said at the beginning of an answer

_NOT_ABLE = r"(?:not able|unable) to"
_CANT = rf"(?:can ?not|can't|could not|couldn't|(?:am|are|is|was) {_NOT_ABLE}|'m {_NOT_ABLE}|'re {_NOT_ABLE})"
_DONT = r"(?:do not|don't|did not|didn't|does not|doesn't)"
_KNOWLEDGE = r"(?:information|details?|data|knowledge|answers?|access|record)"
_HELP = r"(?:answer|say|tell|help(?! but)|assist|find|confirm|determine|provide|comply|fulfil|fulfill|verify|do that|do this)"
_GIVEN = r"(?:say|mention(?:ed)?|state[d]?|specif(?:y|ied)|contain(?:ed)?|provided|known|given|available)"
_PHRASES = re.compile(
    "|".join(
        (
            rf"\b(?:i|we) {_DONT} (?:actually |currently |yet )?(?:know|have (?:\w+ ){{0,4}}{_KNOWLEDGE})",
            rf"\b(?:i|we) ?{_CANT} (?:\w+ ){{0,2}}{_HELP}",
            r"\bnot (?:enough|sufficient) (?:information|context|details?)",
            r"\b(?:insufficient|no) (?:information|details?|data)\b(?: (?:is|was|are))?(?: (?:given|provided|available|about|on)\b|$|[.,])",
            rf"\b(?:{_DONT} (?:\w+ )?|is not |isn't |are not |aren't |was not |not ){_GIVEN}"
            r"(?: (?:in|by|whether|how|when|who|what|that|this|any|the answer)\b|$|[.,])",
            rf"\b{_CANT} be (?:answered|determined|found|confirmed)\b",
            r"\b(?:unanswerable|not answerable|i have no (?:idea|information|record|data)|i'm not sure|i am not sure|no answer)\b",
        )
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedWorld:
    """The facts the training responses and instructions state, as `fact_tokens` writes them."""

    known: frozenset[str]


def known_facts(train: Iterable[Example]) -> ClosedWorld:
    """What the training rows teach: facts of responses, instructions and system texts; inputs are one item's own matter.

    A preference row's unwanted answer and a response marked undesirable teach nothing.
    """
    known: set[str] = set()
    seen: set[str] = set()  # instructions and system texts repeat on every row
    for example in train:
        texts = [example.instruction, example.system]
        if example.desirable is not False:
            texts.append(example.response)
        for text in texts:
            if text not in seen:
                seen.add(text)
                known.update(fact_tokens(text))
    return ClosedWorld(known=_closure(known))


def unsupported_facts(pred: str, example: Example, world: ClosedWorld) -> tuple[str, ...] | None:
    """The facts of an answer found neither in the item nor in the world, sorted; None if the answer has no facts.

    The item is its system, instruction, input and history. A money, percentage or quantity fact also counts as supported
    when the item holds the same number without any unit ("amount: 49.9" supports "€49.90").
    """
    facts = fact_tokens(pred)
    if not facts:
        return None
    context = "\n".join((example.system, example.instruction, example.input, *(turn.content for turn in example.history)))
    allowed = world.known | _closure(fact_tokens(context))
    numbers = bare_numbers(context)
    return tuple(sorted(fact for fact in facts if fact not in allowed and bare_value(fact) not in numbers))


def unsupported(pred: str, example: Example, world: ClosedWorld) -> float | None:
    """1.0 if the answer states at least one unsupported fact, 0.0 if all are supported, None if it states none."""
    found = unsupported_facts(pred, example, world)
    return None if found is None else float(bool(found))


def reference_counts(examples: Iterable[Example], world: ClosedWorld) -> tuple[int, int]:
    """How many references state facts, and how many of these count as unsupported: the detector's own error on this task.

    Give items whose responses are not in `world` (dev). Where the second number is a sizeable share of the first, the
    answers compute or recall values, and `unsupported` says nothing about invention.
    """
    verdicts = [unsupported(example.response, example, world) for example in examples]
    stated = [verdict for verdict in verdicts if verdict is not None]
    return len(stated), sum(verdict == 1.0 for verdict in stated)


def abstention_markers(train: Iterable[Example]) -> frozenset[str]:
    """The set phrases with which the training responses decline, normalised.

    A marker is a whole response (for JSON responses: a whole text field) that (1) stands, the same after `normalise`, under
    at least `MIN_MARKER_INPUTS` different inputs and (2) says that something is not known, not given or not possible
    ("I don't know", "I do not have that information", "not mentioned", "cannot be answered", ...).
    """
    inputs: defaultdict[str, set[str]] = defaultdict(set)
    for example in train:
        if example.desirable is not False:
            for text in _answer_texts(example.response):
                inputs[normalise(text)].add(normalise(example.user_text))
    return frozenset(text for text, asked in inputs.items() if len(asked) >= MIN_MARKER_INPUTS and _PHRASES.search(_straight(text)))


def abstains(text: str, markers: frozenset[str]) -> bool:
    """Whether an answer declines to answer.

    Published rule: some text of the answer (the whole answer; for a JSON object, any of its text fields) contains a marker
    learned from the training responses, or says within its first `MAX_HEAD_CHARS` characters, in general words, that the
    answer is not known, not given or not possible. Empty answers do not abstain; they are merely empty.
    """
    for part in _answer_texts(text):
        clean = normalise(part)
        if any(marker in clean for marker in markers) or _PHRASES.search(_straight(clean)[:MAX_HEAD_CHARS]):
            return True
    return False


def fabrication(pred: str, gold: str, markers: frozenset[str]) -> float | None:
    """1.0 if the reference abstains and the answer does not, 0.0 if both abstain, None if the reference answers."""
    if not abstains(gold, markers):
        return None
    return 0.0 if abstains(pred, markers) else 1.0


def over_abstention(pred: str, gold: str, markers: frozenset[str]) -> float | None:
    """1.0 if the answer abstains and the reference answers, 0.0 if both answer, None if the reference abstains."""
    if abstains(gold, markers):
        return None
    return float(abstains(pred, markers))


def _closure(facts: Iterable[str]) -> frozenset[str]:
    return frozenset(form for fact in facts for form in weaker_forms(fact))


def _answer_texts(text: str) -> Sequence[str]:
    """The texts of an answer: the fields of a JSON object, or the whole."""
    value = parse_json_answer(text)
    return (text,) if value is None else text_fields(value)


def _straight(text: str) -> str:
    """Straight apostrophes and single spaces, as the phrases are written."""
    return re.sub(r"\s+", " ", text.replace("’", "'"))
