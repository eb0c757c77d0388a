"""The items of the gate in llama.cpp: its tokens, its ends, its greedy answers. What is compared, and how, is that of `parity`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from luthier.export.llama_client import LlamaFile
from luthier.export.modelfile import expected_prompt
from luthier.export.parity import STOP_TOKENS, Conditions, ParityItem, Written, cut_answer
from luthier.generate.choices import open_choices
from luthier.tokens.template import ChatEncoder


def num_positions(items: Sequence[ParityItem], how: Conditions, encoder: ChatEncoder) -> int:
    """Room that every item has in it, with its reference and with the longest answer."""
    longest = max(max(len(item.reference_ids), len(encoder.encode_prompt(item.messages)) + how.max_new_tokens) for item in items)
    return -(-(longest + 1) // 256) * 256


def write_in_llama(
    llama: LlamaFile, encoder: ChatEncoder, items: Sequence[ParityItem], how: Conditions, on_item: Callable[[], None]
) -> list[Written]:
    """Greedy answers, ended where llama.cpp itself says an answer ends; held to the labels where the measurement was."""
    stop = "" if encoder.is_chat else how.stop
    held = open_choices(encoder.tokenizer, how.choices, stop, encoder.eos_ids)
    out: list[Written] = []
    for item in items:
        given = encoder.encode_prompt(item.messages)
        written: list[int] = []
        spelled = b""
        while len(written) < how.max_new_tokens:
            allowed = None if held is None else held.allowed(spelled).tolist()
            token = llama.next(given, is_first=not written, allowed=allowed)
            written.append(token)
            if token in llama.stop_ids or (stop and stop in encoder.decode(written[-STOP_TOKENS:]).lstrip()):
                break
            if held is not None:
                spelled = held.after(spelled, token)
            given = (token,)
        out.append(cut_answer(written, llama.stop_ids, encoder, stop))
        on_item()
    return out


def llama_checks(llama: LlamaFile, encoder: ChatEncoder, items: Sequence[ParityItem], written: Sequence[Written]) -> Mapping[str, bool]:
    """What must be equal, whatever the weights. `encoder` is the tested model's; prompts are read as llama-server reads them."""
    tokenizer = encoder.tokenizer
    texts = [expected_prompt(encoder, item.messages, strip_bos=False) for item in items]
    answers = [[token for token in answer.ids if token not in llama.stop_ids] for answer in written]
    template = tokenizer.get_chat_template() if encoder.is_chat else None
    return {
        "end of turn": encoder.eos_ids <= llama.stop_ids,
        "special tokens": llama.adds_bos == bool(encoder.bos_ids),
        "chat template": llama.chat_template == template,
        "tokens": all(llama.tokenise(text) == tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts),
        "spelling": all(llama.spell(ids) == encoder.decode(ids) for ids in answers),
    }
