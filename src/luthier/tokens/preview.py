"""A row as the model reads it, and what of it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.types import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HALF = "\ufffd"  # what decoding gives for part of a character
_MAX_PARTS = 4  # a character has at most four bytes, so at most four tokens


def preview_tokens(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, bool], ...]:
    """(text, is trained) token by token, control tokens spelled out; tokens that share one character are one piece.

    The text is untrusted: render it for its sink.
    """
    pieces: list[tuple[str, bool]] = []
    start = 0
    while start < len(row.input_ids):
        stop = start + 1
        last = min(start + _MAX_PARTS, len(row.input_ids))
        text = _spell(row.input_ids[start:stop], tokenizer)
        while text.endswith(_HALF) and stop < last and row.is_label[stop] == row.is_label[start]:
            longer = _spell(row.input_ids[start : stop + 1], tokenizer)
            if longer == text + _spell(row.input_ids[stop : stop + 1], tokenizer):
                break  # the next token does not go on with this character
            stop, text = stop + 1, longer
        pieces.append((text, row.is_label[start]))
        start = stop
    return tuple(pieces)


def _spell(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
