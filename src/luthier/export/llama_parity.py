"""The items of the gate in llama.cpp: its tokens, its ends, its greedy answers. What is compared, and how, is that of `parity`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from luthier.export.modelfile import expected_prompt
from luthier.export.parity import STOP_TOKENS, Conditions, ParityItem, Written, cut_answer
from luthier.generate.choices import open_choices
from luthier.generate.llama_file import LlamaFile, LlamaRow, tokenizer_checks
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
        prompt = encoder.encode_prompt(item.messages)
        written: list[int] = []
        spelled = b""
        while len(written) < how.max_new_tokens:
            kept, ids = (len(prompt) + len(written) - 1, written[-1:]) if written else (0, prompt)
            [found] = llama.step([LlamaRow(number=0, kept=kept, ids=ids, wants="token" if held is None else "logits")])
            if held is not None and isinstance(found, Tensor):
                allowed = held.allowed(spelled)
                token = int(allowed[found[allowed].max(dim=0).indices])
            else:
                assert isinstance(found, int)
                token = found
            written.append(token)
            if token in llama.stop_ids or (stop and stop in encoder.decode(written[-STOP_TOKENS:]).lstrip()):
                break
            if held is not None:
                spelled = held.after(spelled, token)
        out.append(cut_answer(written, llama.stop_ids, encoder, stop))
        on_item()
    return out


def llama_checks(llama: LlamaFile, encoder: ChatEncoder, items: Sequence[ParityItem], written: Sequence[Written]) -> Mapping[str, bool]:
    """What must be equal, whatever the weights. `encoder` is the tested model's; prompts are read as llama-server reads them."""
    texts = [expected_prompt(encoder, item.messages, strip_bos=False) for item in items]
    answers = [[token for token in answer.ids if token not in llama.stop_ids] for answer in written]
    spelling = all(llama.spell(ids) == encoder.decode(ids) for ids in answers)
    return {**tokenizer_checks(llama, encoder, texts), "spelling": spelling}
