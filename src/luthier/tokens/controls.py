"""Control tokens that only a template may write.

Text of rows and requests may spell `<|im_end|>`, and an ordinary tokeniser call turns that into the control token: whoever
writes the content then writes turns. So each such spelling in content is wrapped in two marks, characters of a private-use
plane, before the template is rendered; afterwards everything between marks is tokenised as plain text.

Content without such spellings, nearly all of it, is not touched, and its tokens are those of `apply_chat_template`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from luthier.core.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_FIRST_MARK, _LAST_MARK = 0xF0000, 0xFFFFD  # supplementary private-use plane A

Marks = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Controls:
    """The control tokens of a tokenizer: ids by spelling, and what is needed to find them whole or in part."""

    ids: Mapping[str, int]
    whole: re.Pattern[str]
    beginnings: frozenset[str]  # proper beginnings and ends: one more character from the template could complete them
    endings: frozenset[str]
    counted: frozenset[int]  # all but the unknown token, which plain text may produce


def find_controls(tokenizer: PreTrainedTokenizerBase) -> Controls:
    """Every added token marked special. Others, such as Qwen's `<think>`, are vocabulary that content may use."""
    ids = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special and token.content}
    spellings = sorted(ids, key=lambda spelling: (-len(spelling), spelling))  # the longest first, as the tokenizer matches
    return Controls(
        ids=ids,
        whole=re.compile("|".join(map(re.escape, spellings)) if spellings else r"(?!)"),
        beginnings=frozenset(spelling[:n] for spelling in spellings for n in range(1, len(spelling))),
        endings=frozenset(spelling[n:] for spelling in spellings for n in range(1, len(spelling))),
        counted=frozenset(ids.values()) - {tokenizer.unk_token_id if isinstance(tokenizer.unk_token_id, int) else -1},
    )


def pick_marks(contents: Sequence[str]) -> Marks:
    """Two characters that no content holds."""
    used = set("".join(contents))
    free = (chr(code) for code in range(_FIRST_MARK, _LAST_MARK) if chr(code) not in used)
    first, second = next(free, None), next(free, None)
    if first is None or second is None:
        raise InputError("the text uses every private-use character", fix="remove characters U+F0000 to U+FFFFD from this row")
    return first, second


def mark_content(controls: Controls, content: str, marks: Marks) -> str:
    """Wrap whole control spellings, and parts at either end that the template could complete."""
    start, stop = _edges(controls, content)
    first, last = marks
    middle = controls.whole.sub(lambda match: f"{first}{match.group()}{last}", content[start:stop])
    head = f"{content[: _leading(content)]}{first}{content[_leading(content) : start]}{last}" if start else ""
    tail = f"{first}{content[stop : len(content.rstrip())]}{last}{content[len(content.rstrip()) :]}" if stop < len(content) else ""
    return head + middle + tail


def _leading(content: str) -> int:
    return len(content) - len(content.lstrip())


def _edges(controls: Controls, content: str) -> tuple[int, int]:
    """Where the part between a forged end and a forged beginning starts and stops; spaces outside, which templates strip, do not count."""
    lead, end = _leading(content), len(content.rstrip())
    longest = max(map(len, controls.ids), default=0)
    start = next((n for n in range(min(end, lead + longest), lead, -1) if content[lead:n] in controls.endings), 0)
    stop = next((n for n in range(max(lead, end - longest), end) if content[n:end] in controls.beginnings), len(content))
    if start > stop:  # one short piece that is both
        return 0, lead if lead < end else 0
    return start, stop


def tokenise(tokenizer: PreTrainedTokenizerBase, controls: Controls, text: str, marks: Marks) -> list[int]:
    """Token ids of rendered text, without adding special tokens. Raises InputError if the template tore a mark apart."""
    first, last = marks
    if first not in text and last not in text:
        ids = _encode(tokenizer, text, plain=False)
        if sum(i in controls.counted for i in ids) == sum(controls.ids[m] in controls.counted for m in controls.whole.findall(text)):
            return ids  # the tokenizer saw the controls that are written here and no others (a normaliser can make some)
    out: list[int] = []
    pending: list[str] = []
    for piece, is_content in _pieces(text, first, last):
        at = 0
        if not is_content:
            for match in controls.whole.finditer(piece):
                out += _encode(tokenizer, "".join((*pending, piece[at : match.start()])), plain=True)
                out.append(controls.ids[match.group()])
                pending, at = [], match.end()
        pending.append(piece[at:])
    return out + _encode(tokenizer, "".join(pending), plain=True)


def _pieces(text: str, first: str, last: str) -> list[tuple[str, bool]]:
    """Split at the marks: (text, is between marks)."""
    out: list[tuple[str, bool]] = []
    for number, chunk in enumerate(text.split(first)):
        inside, found, after = chunk.partition(last)
        if bool(found) != (number > 0) or last in after:
            raise InputError(
                "the chat template changes the text of a message in a way that cannot be followed safely",
                fix="remove the control tokens, such as <|im_end|>, from this row",
            )
        out += [(inside, True), (after, False)] if number else [(inside, False)]
    return out


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, plain: bool) -> list[int]:
    """Straight to the Rust tokenizer: the same ids as `tokenizer(text)` gives, at a third of the time (tests hold them together)."""
    if not text:
        return []
    backend = cast("Tokenizer", tokenizer.backend_tokenizer)
    backend.encode_special_tokens = plain
    return backend.encode(text, add_special_tokens=False).ids
