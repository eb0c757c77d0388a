"""The bytes each token stands for: what a model can be held to a closed set of answers by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>\Z")


@dataclass(frozen=True, slots=True)
class Spelling:
    """Every token that is text. Special and added tokens are no text and stand in neither."""

    of_id: Mapping[int, bytes]
    ids_of: Mapping[bytes, tuple[int, ...]]  # several tokens can spell the same bytes


@lru_cache(maxsize=4)
def read_spelling(tokenizer: PreTrainedTokenizerBase) -> Spelling | None:
    """The bytes of each token of a byte-level or a SentencePiece vocabulary; None for a tokenizer of another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    kinds = _kinds(json.loads(backend.decoder.__getstate__()))  # the decoder's own JSON
    if kinds == {"ByteLevel"}:
        spell = _byte_level
    elif "Replace" in kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        spell = _sentence_piece
    else:
        return None
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    added = set(tokenizer.added_tokens_decoder)
    of_id: dict[int, bytes] = {}
    ids_of: dict[bytes, list[int]] = {}
    for token, token_id in vocabulary.items():
        spelled = None if token_id in added else spell(token)
        if spelled:
            of_id[token_id] = spelled
            ids_of.setdefault(spelled, []).append(token_id)
    return Spelling(of_id, {spelled: tuple(sorted(ids)) for spelled, ids in ids_of.items()})


def _kinds(decoder: dict[str, Any]) -> set[str]:
    """The steps of a decoder, by name; a replacement other than SentencePiece's "▁" is a step we do not know."""
    if decoder["type"] == "Sequence":
        return set().union(*(_kinds(step) for step in decoder["decoders"]))
    if decoder["type"] == "Replace" and (decoder.get("pattern"), decoder.get("content")) != ({"String": "▁"}, " "):
        return {"another replacement"}
    return {str(decoder["type"])}


def _byte_level(token: str) -> bytes | None:
    """GPT-2's alphabet: each byte a visible character."""
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    except KeyError:
        return None


def _sentence_piece(token: str) -> bytes:
    found = _BYTE_TOKEN.match(token)
    return bytes([int(found[1], 16)]) if found else token.replace("▁", " ").encode("utf-8", "surrogatepass")


def _visible_bytes() -> dict[str, int]:
    """Printable Latin-1 stands for itself; the others, in order, for the characters from U+0100 on (Radford et al. 2019)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(rest)}


_BYTE_OF_CHAR = _visible_bytes()
