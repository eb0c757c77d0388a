"""The same question put another way: instruction and format reworded by template, the input in another case and with typos.

Deterministic, and the same for every arm. What carries meaning stays as it is: numbers, quoted texts, JSON keys, text in brackets, code,
addresses, names, and every word of the wanted answer. A change that would touch these is left out, and none is made up in its place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from luthier.core.seeds import rng
from luthier.core.types import Example, Message
from luthier.data.normalise import normalise
from luthier.metrics.consistency import Way

# Not to be touched: quoted and bracketed texts, code, addresses, key-value heads, and whatever holds a digit, an underscore or the like.
_SPANS = r'"[^"\n]*"|“[^”\n]*”|`[^`\n]*`|\[[^\]\n]*\]|\{[^}\n]*\}|<[^>\n]*>|https?://\S+|\S+@\S+'
_SIGNED = r"\S*[\d_/\\#$%€£+*=]\S*"
VALUES = re.compile(f"{_SPANS}|{_SIGNED}")
_KEPT = re.compile(rf"{_SPANS}|[\w-]+(?=\s*[:=\[{{])|{_SIGNED}")
_WORD = re.compile(r"[^\W\d_]+")
MIN_TYPO_CHARS = 5
WORDS_PER_TYPO = 8
_LONG = (
    ("do not", "don't"), ("does not", "doesn't"), ("did not", "didn't"), ("is not", "isn't"), ("are not", "aren't"),
    ("was not", "wasn't"), ("cannot", "can't"), ("could not", "couldn't"), ("would not", "wouldn't"), ("will not", "won't"),
    ("has not", "hasn't"), ("have not", "haven't"), ("i am", "i'm"), ("i have", "i've"), ("i will", "i'll"), ("it is", "it's"),
    ("that is", "that's"), ("what is", "what's"), ("you are", "you're"), ("we are", "we're"), ("they are", "they're"),
)  # fmt: skip

Rewording = Callable[[str], str]
REWORDINGS: tuple[Rewording, ...] = (lambda text: f"Please do the following. {text}", lambda text: f"### Task\n{text}")
NUM_INPUTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One question put another way."""

    way: Way
    name: str
    shown: str  # the part that was changed, as it is now
    messages: tuple[Message, ...]


def reworded(example: Example, messages: Sequence[Message], number: int) -> Changed:
    """The prompt with the item's instruction reworded wherever it stands; without an instruction, with the last turn reworded."""
    way = REWORDINGS[number]
    instruction = example.instruction.strip()
    holds = [bool(instruction) and instruction in message.content for message in messages]
    if any(holds):
        new = way(instruction)
        changed = [replace(m, content=m.content.replace(instruction, new)) if hit else m for m, hit in zip(messages, holds, strict=True)]
    else:
        new = way(messages[-1].content)
        changed = [*messages[:-1], replace(messages[-1], content=new)]
    return Changed(way="reworded", name=f"reworded {number + 1}", shown=new, messages=tuple(changed))


def input_changed(example: Example, number: int, *, seed: int) -> Example | None:
    """The item with its input (the instruction, where there is no input) written another way; None where nothing can be changed."""
    text = example.input or example.instruction
    keep = frozenset(word for word in _words(example.response))
    change = _other_case if number == 0 else _typos
    new = change(text, keep, rng(seed, f"evaluate/perturb/{example.id}/{number}"))
    if new == text or not keeps_meaning(text, new, keep):
        return None
    return replace(example, input=new) if example.input else replace(example, instruction=new)


def shots_shuffled(example: Example, messages: Sequence[Message], *, seed: int) -> tuple[Message, ...] | None:
    """The solved examples before the question in another order; None with fewer than two. The same order for every item with as many."""
    if example.history:
        return None  # which turns are examples cannot be told
    head = [message for message in messages if message.role == "system"]
    turns = list(messages[len(head) : -1])
    pairs = [(turns[i], turns[i + 1]) for i in range(0, len(turns) - 1, 2)]
    roles = [(a.role, b.role) for a, b in pairs]
    if len(pairs) < 2 or len(turns) != 2 * len(pairs) or set(roles) != {("user", "assistant")}:
        return None
    order = list(range(len(pairs)))
    stream = rng(seed, f"evaluate/order of {len(pairs)} shots")
    while order == sorted(order):
        stream.shuffle(order)
    return (*head, *(turn for place in order for turn in pairs[place]), messages[-1])


def keeps_meaning(before: str, after: str, keep: frozenset[str] = frozenset()) -> bool:
    """Whether all that carries meaning is there as before: kept spans letter by letter and in order, and the words of `keep`."""
    if _KEPT.findall(before) != _KEPT.findall(after):
        return False
    return [word for word in _words(before) if word in keep] == [word for word in _words(after) if word in keep]


def _words(text: str) -> list[str]:
    return [normalise(word) for word in _WORD.findall(text)]


def _other_case(text: str, keep: frozenset[str], stream: random.Random) -> str:
    """As typed in a hurry: everything lower-case. A text that is so already begins with capitals."""
    del keep, stream  # case changes no word
    lower = _outside(
        text, lambda part: _WORD.sub(lambda word: word[0] if len(word[0]) > 1 and word[0].isupper() else word[0].lower(), part)
    )
    if lower != text:
        return lower
    return _outside(text, lambda part: re.sub(r"(^|[.!?]\s+)([^\W\d_])", lambda found: found[1] + found[2].upper(), part))


def _typos(text: str, keep: frozenset[str], stream: random.Random) -> str:
    """Contractions the other way round, and in about every eighth word that may be touched two letters changed places."""
    told = _outside(text, _contractions)
    places: list[tuple[int, int]] = []
    for start, end in _free_spans(told):
        places += [
            (start + word.start(), start + word.end()) for word in _WORD.finditer(told[start:end]) if _may_be_misspelt(word[0], keep)
        ]
    chosen = sorted(stream.sample(places, -(-len(places) // WORDS_PER_TYPO))) if places else []
    letters = list(told)
    for start, end in chosen:
        at = stream.choice([i for i in range(start + 1, end - 2) if letters[i] != letters[i + 1]] or [start])
        letters[at], letters[at + 1] = (letters[at + 1], letters[at]) if at > start else (letters[at], letters[at + 1])
    return "".join(letters)


def _may_be_misspelt(word: str, keep: frozenset[str]) -> bool:
    """Long lower-case words; a capital may begin a name, and words of the wanted answer may be what is asked for."""
    return len(word) >= MIN_TYPO_CHARS and word.isascii() and word.islower() and normalise(word) not in keep


def _contractions(text: str) -> str:
    """Each long form shortened; where there is none, each short form written out."""
    for pairs in (_LONG, tuple((short, long) for long, short in _LONG)):
        new = text
        for old, other in pairs:
            new = re.sub(
                rf"(?<![\w']){re.escape(old)}(?![\w'])", lambda found, other=other: _like(found[0], other), new, flags=re.IGNORECASE
            )
        if new != text:
            return new
    return text


def _like(old: str, new: str) -> str:
    return new[0].upper() + new[1:] if old[0].isupper() else new


def _free_spans(text: str) -> list[tuple[int, int]]:
    """Where text may be changed: all between what must stay."""
    ends = [0, *(place for found in _KEPT.finditer(text) for place in found.span()), len(text)]
    return [(ends[i], ends[i + 1]) for i in range(0, len(ends), 2) if ends[i] < ends[i + 1]]


def _outside(text: str, change: Callable[[str], str]) -> str:
    out, at = "", 0
    for start, end in _free_spans(text):
        out += text[at:start] + change(text[start:end])
        at = end
    return out + text[at:]
