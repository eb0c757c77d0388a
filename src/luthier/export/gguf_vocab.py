"""A tokenizer as GGUF metadata holds it, and back: what llama.cpp needs to cut text into the very tokens of training.

GGUF stores no pre-tokeniser, only the name of one that llama.cpp has built in. A wrong name is a silent fault: most text comes out
right, digits or spaces do not. So the name is found by behaviour: each pre-tokeniser is built as llama.cpp defines it and must cut
a probe text as the model's own does. One that nobody knows is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from luthier.core.errors import ModelError
from luthier.tokens.template import ChatEncoder

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
SPACE = "▁"  # SentencePiece's
MERGED_NEVER = -1e9

_GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
_LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
_UPPER, _LOWER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
_TEKKEN = (
    f"[^\\r\\n\\p{{L}}\\p{{N}}]?{_UPPER}*{_LOWER}+|[^\\r\\n\\p{{L}}\\p{{N}}]?{_UPPER}+{_LOWER}*"
    "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
# What llama.cpp does under each name: the expressions it splits by, one after another (llama-vocab.cpp).
PRE_TOKENISERS: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": ("\\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace("{1,3}", ""),),
    "tekken": (_TEKKEN,),
}
_TAKES_WHOLE_WORDS = {"llama-bpe", "tekken"}  # a word that is a token is one, whatever the merges say
_PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \nA card (£12.50) x:   12 and 1234567 items; I've, we'LL, DON'T 3 33 333 3333 ½ ²\r\n"
    'café naïve ΑΒΓ абв 你好，世界 ありがとう 🚀🦙 e\u0301 https://a.b/c?d=e&f CamelCase HTTPServer !!! ``` """ {"key": [1, 2]}//\n/\n end'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokenizer of a GGUF file. `model` "gpt2": byte-level BPE with merges; "llama": SentencePiece with scores."""

    model: Literal["gpt2", "llama"]
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None  # ends a turn, where that is another token than EOS
    unk_id: int | None
    pad_id: int | None
    add_bos: bool
    add_space_prefix: bool
    chat_template: str | None


def read_vocabulary(encoder: ChatEncoder, *, num_rows: int, where: str) -> Vocabulary:
    """What a GGUF file has to say of this tokenizer; `num_rows` of the embedding are named, unused ones as padding.

    Raises ModelError for a tokenizer that llama.cpp could not be told about.
    """
    tokenizer = encoder.tokenizer
    spec: dict[str, Any] = json.loads(cast("Tokenizer", tokenizer.backend_tokenizer).to_str())
    model: dict[str, Any] = spec["model"]
    if model.get("type") != "BPE":
        raise _unknown(where, f"its model is {model.get('type')}")
    is_pieces = bool(model.get("byte_fallback"))
    vocab = tokenizer.get_vocab()
    by_id = {index: token for token, index in vocab.items()}
    added = tokenizer.added_tokens_decoder
    unk = tokenizer.unk_token_id if isinstance(tokenizer.unk_token_id, int) else None
    tokens, types = list[str](), list[int]()
    for index in range(num_rows):
        token = by_id.get(index)
        tokens.append(f"[PAD{index}]" if token is None else token)
        types.append(_type_of(token, index, added, unk if is_pieces else None, is_pieces=is_pieces))
    eos = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else encoder.end_id
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Vocabulary(
        model="llama" if is_pieces else "gpt2",
        pre="default" if is_pieces else find_pre_tokeniser(tokenizer, where=where),
        tokens=tuple(tokens),
        types=tuple(types),
        merges=() if is_pieces else tuple(merges),
        scores=_scores(tokens, types, model["merges"]) if is_pieces else (),
        bos_id=_id(tokenizer.bos_token_id),
        eos_id=eos,
        eot_id=encoder.end_id if encoder.end_id != eos else None,
        unk_id=unk,
        pad_id=_id(tokenizer.pad_token_id),
        add_bos=bool(encoder.bos_ids),
        add_space_prefix=is_pieces and _puts_space_first(spec),
        chat_template=tokenizer.get_chat_template() if tokenizer.chat_template else None,
    )


def _id(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _type_of(token: str | None, index: int, added: Mapping[int, Any], unk: int | None, *, is_pieces: bool) -> int:
    if token is None:
        return UNUSED
    if index == unk:
        return UNKNOWN
    if index in added:
        return CONTROL if added[index].special else USER_DEFINED
    if is_pieces and len(token) == 6 and token.startswith("<0x"):
        return BYTE
    return NORMAL


def _scores(tokens: Sequence[str], types: Sequence[int], merges: Sequence[Any]) -> tuple[float, ...]:
    """SentencePiece merges the pair whose result scores highest: the earlier a merge stands in the list, the higher."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        rank.setdefault(left + right, number)
    return tuple(
        -float(rank[token]) if token in rank else (MERGED_NEVER if kind == NORMAL else 0.0)
        for token, kind in zip(tokens, types, strict=True)
    )


def _puts_space_first(spec: Mapping[str, Any]) -> bool:
    parts = json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")])
    return '"Prepend"' in parts or '"prepend_scheme": "always"' in parts or '"prepend_scheme": "first"' in parts


def find_pre_tokeniser(tokenizer: PreTrainedTokenizerBase, *, where: str) -> str:
    """llama.cpp's name for how this byte-level tokenizer splits text before merging. Raises ModelError where it has none."""
    own = cast("Tokenizer", tokenizer.backend_tokenizer).pre_tokenizer
    pieces = [piece for piece, _ in own.pre_tokenize_str(_PROBE)] if own is not None else []
    for name in PRE_TOKENISERS:
        if pieces == [piece for piece, _ in build_pre_tokeniser(name).pre_tokenize_str(_PROBE)]:
            return name
    raise _unknown(where, "llama.cpp has no pre-tokeniser known to us that splits text as it does")


def _unknown(where: str, why: str) -> ModelError:
    return ModelError(
        f"this tokenizer cannot be written as GGUF: {why}",
        where=where,
        fix="--to merged, or a model with the tokenizer of " + ", ".join((*PRE_TOKENISERS, "or SentencePiece BPE")),
    )


def build_pre_tokeniser(name: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokeniser llama.cpp runs under `name`, on the bytes' visible alphabet."""
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in PRE_TOKENISERS[name]
    ]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def open_vocabulary(vocabulary: Vocabulary) -> PreTrainedTokenizerBase:
    """The tokenizer that a GGUF file describes, built from nothing but its metadata: what llama.cpp would do."""
    tokens = vocabulary.tokens
    ids = {token: index for index, token in enumerate(tokens)}
    unk = tokens[vocabulary.unk_id] if vocabulary.unk_id is not None else None
    if vocabulary.model == "gpt2":
        merges = [cast("tuple[str, str]", tuple(merge.split(" ", 1))) for merge in vocabulary.merges]
        backend = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=vocabulary.pre in _TAKES_WHOLE_WORDS))
        backend.pre_tokenizer = build_pre_tokeniser(vocabulary.pre)
        backend.decoder = decoders.ByteLevel()
    else:
        merges = _merges_from_scores(vocabulary, ids)
        backend = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
        steps = ([normalizers.Prepend(SPACE)] if vocabulary.add_space_prefix else []) + [normalizers.Replace(" ", SPACE)]
        backend.normalizer = normalizers.Sequence(steps)
        strip = [decoders.Strip(" ", 1, 0)] if vocabulary.add_space_prefix else []
        backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    special = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    backend.add_tokens(
        [AddedToken(t, special=special[k], normalized=False) for t, k in zip(tokens, vocabulary.types, strict=True) if k in special]
    )
    names = {
        name: tokens[index]
        for name, index in (("bos_token", vocabulary.bos_id), ("eos_token", vocabulary.eos_id), ("pad_token", vocabulary.pad_id))
        if index is not None
    }
    if vocabulary.add_bos and "bos_token" in names:
        bos = names["bos_token"]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    out = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **names, **({"unk_token": unk} if unk else {})
    )
    out.chat_template = vocabulary.chat_template
    return cast("PreTrainedTokenizerBase", out)


def _merges_from_scores(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best piece first."""
    ranked = sorted(
        (-score, index)
        for index, (score, kind) in enumerate(zip(vocabulary.scores, vocabulary.types, strict=True))
        if kind == NORMAL and score > MERGED_NEVER
    )
    out: list[tuple[str, str]] = []
    for _, index in ranked:
        piece = vocabulary.tokens[index]
        pairs = [(piece[:n], piece[n:]) for n in range(1, len(piece)) if piece[:n] in ids and piece[n:] in ids]
        out += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return out
