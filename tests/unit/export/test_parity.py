"""The answers of an artefact: by transformers and by llama.cpp's child, free and held to labels, as the engine gives them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.fixtures.fake_llama import make_fake_llama
from tests.fixtures.tiny_gguf import write_tiny_gguf
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.types import Message, Order
from luthier.export.llama_parity import llama_checks, num_positions, write_in_llama
from luthier.export.loaders import reload_gguf, reload_model
from luthier.export.parity import Conditions, ParityItem, distances, reader, write_answers
from luthier.generate.engine import Engine
from luthier.generate.llama_file import open_in_llama
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.tokens.template import ChatEncoder, open_chat

LABELS = ("card", "card_arrival", "lost_card", "top_up_failed")
TEXTS = ("where is my card", "it is lost", "the top up did not work, again and again and again", "x", "hello there", "")


@dataclass(frozen=True)
class Made:
    path: Path
    gguf: Path
    encoder: ChatEncoder
    items: tuple[ParityItem, ...]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("parity")
    path = make_tiny_model(root / "model")
    encoder = open_chat(open_tokenizer(path))
    gguf = write_tiny_gguf(path, root / "tiny.gguf")
    return Made(path, gguf, encoder, tuple(_item(encoder, text) for text in TEXTS))


def _item(encoder: ChatEncoder, text: str) -> ParityItem:
    messages = (Message(role="user", content=f"Name the kind.\n\n{text}"),)
    prompt, answer = encoder.encode_prompt(messages), encoder.encode_bare("lost_card")
    labels = (False,) * len(prompt) + (True,) * (len(answer) + 1)
    return ParityItem(item_id=text, messages=messages, reference_ids=(*prompt, *answer, encoder.end_id), reference_labels=labels, tested="")


def _of_engine(made: Made, how: Conditions) -> list[str]:
    model = open_model(made.path, dtype=torch.float32)
    use_layout_attention(model)
    engine = Engine(Voices(model), made.encoder, context=512, base_name="base")
    orders = [Order(messages=item.messages, max_new_tokens=how.max_new_tokens, choices=how.choices) for item in made.items]
    tickets = [engine.submit(order) for order in orders]
    texts = dict.fromkeys(tickets, "")
    while not engine.idle:
        for piece in engine.step():
            texts[piece.ticket] += piece.text
    return [texts[ticket] for ticket in tickets]


@pytest.mark.parametrize("choices", [(), LABELS], ids=["free", "held to labels"])
def test_answers_are_those_of_the_engine(choices: tuple[str, ...], made: Made, tmp_path: Path) -> None:
    """Labels of different lengths: rows of one batch end at different steps."""
    how = Conditions(max_new_tokens=24, stop="", choices=choices)
    want = _of_engine(made, how)
    count: list[int] = []
    written = write_answers(reload_model(made.path), made.encoder, made.items, how, lambda: count.append(1))
    assert [answer.text for answer in written] == want and len(count) == len(TEXTS)
    assert not choices or {text.strip() for text in want} <= set(LABELS)
    positions = num_positions(made.items, how, made.encoder)
    with closing(open_in_llama(make_fake_llama(tmp_path / "llama"), made.gguf, num_positions=positions)) as llama:
        written = write_in_llama(llama, made.encoder, made.items, how, lambda: None)
        assert [answer.text for answer in written] == want
        assert llama.program == "llama.cpp by llama-cpp-python 0.0-fake" and all(
            llama_checks(llama, made.encoder, made.items, written).values()
        )
        apart = distances(reader(reload_gguf(made.gguf).model), llama.logits, made.items, lambda: None)
        assert apart.num_tokens == sum(sum(item.reference_labels) for item in made.items) and apart.mean_kl < 1e-9
        with pytest.raises(Exception, match="longer than was said"):
            llama.logits([3] * (positions + 1), [0])
