"""The form of the training answers as constraints that can be checked, and answers held to them.

As in IFEval (Zhou et al. 2023) each constraint is verifiable by a few lines of code and an answer follows the instruction
only if it keeps all of them. Which ones hold is learnt from the training answers alone; the wanted answers of the test items
show what a faultless arm would reach.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.types import Example, TaskProfile
from luthier.metrics.structure import parse_json_answer
from luthier.metrics.text import word_tokens

MIN_ANSWERS = 20  # fewer training answers show no form
ALMOST_ALL = 0.98  # of the training answers keep a constraint: it holds
SELDOM = 0.02  # of the training answers: a mark of going on is none
MAX_ANSWERS = 5_000  # training answers looked at
OTHER_SCRIPT = 0.1  # share of an answer's letters in scripts that training answers do not use
MIN_COPIED_WORDS = 6  # of the question in a row, at the beginning of the answer

BEHAVIOUR_MEANINGS: dict[str, str] = {  # values of an item that need no reference and hold for every task
    "answers": "an answer, instead of going on with the conversation or repeating the question",
    "stops": "ended by itself, not cut off at the longest length",
    "keeps_form": "keeps every check of form that was learnt from the training answers",
}

# What chat models add and finished answers seldom hold; each counts as forbidden where no more than 2 % of the training answers have it.
FORBIDDEN: dict[str, re.Pattern[str]] = {
    "code fence": re.compile(r"```"),
    "more than one line": re.compile(r"\S[^\S\n]*\n\s*\S"),
    "list": re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE),
    "heading or bold": re.compile(r"^\s*#{1,6}\s|\*\*\S", re.MULTILINE),
    "preamble": re.compile(
        r"^\s*(?:(?:sure|certainly|of course|here(?:'s| is| are)|okay|ok|the answer is)\b|(?:answer|output|response):)", re.IGNORECASE
    ),
    "talk about being a model": re.compile(r"\bas an? (?:ai|language model|assistant)\b", re.IGNORECASE),
    "web address": re.compile(r"https?://|www\."),
}  # fmt: skip
# Marks that a model goes on with the conversation, or the list of tasks, instead of ending its answer.
GOES_ON = re.compile(
    r"^\s*(?:#{1,3}\s*)?(?:user|human|customer|assistant|system|question|instruction|input|output|example|task|q|a)\s*\d*\s*:"
    r"|<\|?(?:im_start|im_end|user|assistant|eot|endoftext|start_of_turn|end_of_turn)",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What (almost) all training answers have in common. An empty tuple or None: no such constraint."""

    num_answers: int  # training answers it was learnt from
    min_words: int | None = None  # 1st percentile
    max_words: int | None = None  # 99th percentile
    starts: tuple[str, ...] = ()  # the answer begins with one of these
    ends: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # a JSON object with these keys
    forbidden: tuple[str, ...] = ()  # names of `FORBIDDEN`
    scripts: tuple[str, ...] = ()  # writing systems of the letters
    may_go_on: bool = False  # training answers hold turn marks themselves
    may_copy: bool = False  # training answers begin with words of their question themselves
    may_ask: bool = False  # training answers end with questions themselves

    @property
    def names(self) -> tuple[str, ...]:
        """The constraints there are, in the order shown."""
        has = {
            "length": self.min_words is not None,
            "beginning": bool(self.starts),
            "end": bool(self.ends),
            "keys": bool(self.keys),
            "nothing added": bool(self.forbidden),
            "writing system": bool(self.scripts),
        }
        return tuple(name for name, holds in has.items() if holds)

    def words_of(self, name: str) -> str:
        """One constraint in words."""
        match name:
            case "length":
                return f"{self.min_words:,} to {self.max_words:,} words" if self.min_words != self.max_words else f"{self.min_words} words"
            case "beginning":
                return "begins with " + " or ".join(json.dumps(text, ensure_ascii=False) for text in self.starts)
            case "end":
                return "ends with " + " or ".join(json.dumps(text, ensure_ascii=False) for text in self.ends)
            case "keys":
                return f"a JSON object with {', '.join(self.keys)}"
            case "nothing added":
                return f"no {', '.join(self.forbidden)}"
            case _:
                return f"written in {', '.join(self.scripts)}"


def learn_form(train: Sequence[Example], profile: TaskProfile) -> AnswerForm:
    """The constraints that at least 98 % of the training answers keep; none from fewer than 20."""
    rows = [row for row in train if row.desirable is not False][:MAX_ANSWERS]
    answers = [row.response for row in rows]
    n = len(answers)
    if n < MIN_ANSWERS:
        return AnswerForm(num_answers=n, may_go_on=True, may_copy=True, may_ask=True)
    lengths = sorted(len(word_tokens(text)) for text in answers)
    scripts = Counter(script for text in answers for script in set(_scripts(text)))
    return AnswerForm(
        num_answers=n,
        min_words=lengths[math.floor(0.01 * (n - 1))],
        max_words=lengths[math.ceil(0.99 * (n - 1))],
        starts=_common_ends([text.strip()[:1] for text in answers]),
        ends=_common_ends([text.strip()[-1:] for text in answers]),
        keys=profile.json_keys if profile.kind == "json" else (),
        forbidden=tuple(name for name, found in FORBIDDEN.items() if sum(bool(found.search(text)) for text in answers) <= SELDOM * n),
        scripts=tuple(script for script, count in scripts.most_common() if count > SELDOM * n),
        may_go_on=sum(bool(GOES_ON.search(text)) for text in answers) > SELDOM * n,
        may_copy=sum(_copies(row.response, row.user_text) for row in rows) > SELDOM * n,
        may_ask=sum(_asks(text) for text in answers) > SELDOM * n,
    )


def broken(text: str, form: AnswerForm) -> tuple[str, ...]:
    """Names of the constraints that an answer breaks, in the order of `form.names`."""
    clean = text.strip()
    num_words = len(word_tokens(text))
    answer = parse_json_answer(text) if form.keys else None
    letters = _scripts(text)
    breaks = {
        "length": not (form.min_words or 0) <= num_words <= (form.max_words if form.max_words is not None else num_words),
        "beginning": bool(form.starts) and clean[:1] not in form.starts,
        "end": bool(form.ends) and clean[-1:] not in form.ends,
        "keys": bool(form.keys) and (answer is None or not set(form.keys) <= set(answer)),
        "nothing added": any(FORBIDDEN[name].search(text) for name in form.forbidden),
        "writing system": sum(script not in form.scripts for script in letters) > OTHER_SCRIPT * len(letters),
    }
    return tuple(name for name in form.names if breaks[name])


def keeps_form(text: str, form: AnswerForm) -> float | None:
    """1.0 if every constraint is kept; None where there is none."""
    return None if not form.names else float(not broken(text, form))


def answers_instead(text: str, question: str, form: AnswerForm) -> float:
    """1.0 if this is an answer, 0.0 if the text goes on instead: turn marks, the question once more, or further questions.

    A habit that training answers have themselves is none. The texts are untrusted.
    """
    goes_on = not form.may_go_on and GOES_ON.search(text)
    copies = not form.may_copy and _copies(text, question)
    asks = not form.may_ask and _asks(text)
    return float(bool(text.strip()) and not (goes_on or copies or asks))


def _copies(text: str, question: str) -> bool:
    """Begins with six words in a row of the question."""
    asked, said = word_tokens(question), word_tokens(text)
    first = said[:MIN_COPIED_WORDS]
    return len(first) == MIN_COPIED_WORDS and any(first == asked[at : at + MIN_COPIED_WORDS] for at in range(len(asked)))


def _asks(text: str) -> bool:
    """Nothing but questions, or two of them and more at the end."""
    parts = [part for part in re.split(r"(?<=[.!?。！？])\s+|\n+", text.strip()) if part]
    asking = [part.rstrip(" \"'”").endswith(("?", "？")) for part in parts]
    return bool(asking) and (all(asking) or (len(asking) >= 2 and asking[-1] and asking[-2]))


def _common_ends(ends: Sequence[str]) -> tuple[str, ...]:
    """Up to three signs, no letters or digits, that almost all answers begin or end with."""
    counts = Counter(end for end in ends if end and not end.isalnum())
    common = counts.most_common(3)
    return tuple(end for end, count in common if count > SELDOM * len(ends)) if sum(c for _, c in common) >= ALMOST_ALL * len(ends) else ()


def _scripts(text: str) -> list[str]:
    """The writing system of every letter, by the first word of its Unicode name: LATIN, CYRILLIC, CJK, ..."""
    return [unicodedata.name(char, "UNKNOWN").partition(" ")[0].partition("-")[0] for char in text if char.isalpha()]
