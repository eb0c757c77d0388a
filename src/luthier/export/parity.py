"""The tested model and the artefact read back from disk, side by side: answers, distributions, template, tokens.

Both are computed in fp32, by different code: the engine that measured, and transformers' own `generate`. Where an answer differs all
the same, the tested model reads it: a tie is one whose every token it sees within a small gap of its own best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from luthier.core.errors import ModelError
from luthier.core.exports import DifferentAnswer
from luthier.core.types import Message
from luthier.export.loaders import Reloaded
from luthier.generate.choices import open_choices
from luthier.generate.held import Held, HeldToLabels, hold_to_schema
from luthier.tokens.template import ChatEncoder

BATCH = 8
STOP_TOKENS = 4  # at most so many tokens spell a stop text


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityItem:
    """One locked item as the tuned arm was asked it, and as the tested model answered."""

    item_id: str
    messages: tuple[Message, ...]
    reference_ids: tuple[int, ...]  # prompt and wanted answer
    reference_labels: tuple[bool, ...]
    tested: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How answers were written in the measurement, and are again."""

    max_new_tokens: int
    stop: str  # ends the answer of a model without chat training
    choices: tuple[str, ...]  # answers are held to these; empty: free
    json_schema: str = ""  # or to this


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """How far apart the distributions are, over every token of the reference answers, the end of the turn included."""

    num_tokens: int
    mean_kl: float
    max_kl: float
    max_logit_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One answer of the artefact: the tokens it chose, its end included where it ended by itself, and the text."""

    ids: tuple[int, ...]
    text: str


Reader = Callable[[Sequence[int], Sequence[int]], Tensor]  # tokens, places among them -> logits behind those, [places, tokens]


def reader(model: nn.Module) -> Reader:
    """How a model of transformers reads."""
    return lambda ids, at: _logits(model, torch.tensor([list(ids)]))[list(at)]


@torch.no_grad()
def distances(tested: Reader, artefact: Reader, items: Sequence[ParityItem], on_item: Callable[[], None]) -> Distances:
    """Teacher-forced on the reference answers: KL(tested || artefact) in nats, and the largest difference of any logit."""
    kls: list[float] = []
    largest = 0.0
    for item in items:
        at = [t - 1 for t, is_label in enumerate(item.reference_labels) if is_label]
        ours, theirs = tested(item.reference_ids, at), artefact(item.reference_ids, at)
        p_log, q_log = ours.log_softmax(-1), theirs.log_softmax(-1)
        kls += (p_log.exp() * (p_log - q_log)).sum(-1).tolist()
        largest = max(largest, float((ours - theirs).abs().max()))
        on_item()
    if not all(math.isfinite(kl) for kl in kls):
        raise ModelError("the artefact computes values that are not numbers", where="parity", fix="export as another --type, such as BF16")
    mean = max(0.0, sum(kls) / len(kls))
    return Distances(num_tokens=len(kls), mean_kl=mean, max_kl=max(kls), max_logit_difference=largest)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    return cast("Any", model)(input_ids=ids).logits[0].float()


class _StopAt(StoppingCriteria):
    """Rows that have written the stop text are done."""

    def __init__(self, encoder: ChatEncoder, stop: str) -> None:
        self._encoder, self._stop = encoder, stop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One truth value a row. The signature is transformers'."""
        del scores, kwargs
        return torch.tensor([self._stop in self._encoder.decode(row[-STOP_TOKENS:].tolist()).lstrip() for row in input_ids])


@torch.no_grad()
def write_answers(
    reloaded: Reloaded, encoder: ChatEncoder, items: Sequence[ParityItem], how: Conditions, on_item: Callable[[], None]
) -> list[Written]:
    """Greedy answers of the artefact by transformers' own `generate`. `encoder` is made from the artefact's own tokenizer."""
    model: Any = reloaded.model
    model.generation_config = GenerationConfig()  # what a folder says of sampling or repetition is no part of the comparison
    prompts = [encoder.encode_prompt(item.messages) for item in items]
    stop = "" if encoder.is_chat else how.stop
    held = _language(encoder, how, frozenset(reloaded.stop_ids), stop, model.config.get_text_config().vocab_size)
    pad = next(iter(sorted(reloaded.stop_ids)), 0)
    order = sorted(range(len(items)), key=lambda i: -len(prompts[i]))
    out: dict[int, Written] = {}
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in rows])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=how.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(reloaded.stop_ids) or None,
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([_StopAt(encoder, stop)] if stop else []),
            prefix_allowed_tokens_fn=_holder(held, width, reloaded.stop_ids) if held is not None else None,
        )
        for i, row in zip(rows, written[:, width:].tolist(), strict=True):
            out[i] = cut_answer(row, reloaded.stop_ids, encoder, stop)
            on_item()
    return [out[i] for i in range(len(items))]


def _language(encoder: ChatEncoder, how: Conditions, eos_ids: frozenset[int], stop: str, num_vocab: int) -> Callable[[], Held] | None:
    """What answers are held to, anew for each; None where they are free."""
    choices = open_choices(encoder.tokenizer, how.choices, stop, eos_ids)
    if choices is not None:
        return lambda: HeldToLabels(choices)
    first = hold_to_schema(how.json_schema, encoder, num_vocab)
    if first is None:
        return None
    return first.copy


def _holder(held: Callable[[], Held], width: int, stop_ids: frozenset[int]) -> Callable[[int, Tensor], list[int]]:
    """From what stands there, read again each time: which tokens may follow."""

    def allowed(row: int, ids: Tensor) -> list[int]:
        del row
        one = held()
        for token in ids[width:].tolist():
            if token in stop_ids or one.write(token):
                return sorted(stop_ids)
        return one.allowed().tolist()

    return allowed


def cut_answer(row: list[int], stop_ids: frozenset[int], encoder: ChatEncoder, stop: str) -> Written:
    """The answer in what was written: up to its end, or its stop text."""
    end = next((t for t, token in enumerate(row) if token in stop_ids), None)
    ids = row if end is None else row[: end + 1]
    text = encoder.decode(ids if end is None else ids[:-1])
    if stop:
        start = len(text) - len(text.lstrip())
        text = text[:start] + text[start:].partition(stop)[0]
    return Written(ids=tuple(ids), text=text)


@torch.no_grad()
def explain(
    tested: nn.Module, encoder: ChatEncoder, item: ParityItem, written: Written, how: Conditions, tie_gap: float
) -> DifferentAnswer:
    """How far below the tested model's best token the artefact's answer ever goes, along the artefact's own words.

    An answer that stays within `tie_gap` everywhere is one the tested model would give itself if rounding fell the other way.
    """
    prompt = encoder.encode_prompt(item.messages)
    logits_TV = _logits(tested, torch.tensor([[*prompt, *written.ids]]))[len(prompt) - 1 :]
    language = _language(encoder, how, encoder.eos_ids, "" if encoder.is_chat else how.stop, logits_TV.shape[-1])
    held, gap = language() if language is not None else None, 0.0
    for t, token in enumerate(written.ids):
        allowed = logits_TV[t] if held is None else logits_TV[t][held.allowed()]
        gap = max(gap, float(allowed.max()) - float(logits_TV[t][token]))
        if held is not None and token not in encoder.eos_ids and held.write(token):
            break
    return DifferentAnswer(item_id=item.item_id, tested=item.tested, artefact=written.text, gap=gap, is_tie=gap <= tie_gap)
