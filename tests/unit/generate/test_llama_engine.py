"""The engine over llama.cpp: from a file in fp32 it answers every order as the in-process engine does, however rows enter and leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.fixtures.fake_llama import make_fake_llama
from tests.fixtures.orders import answer_orders, assert_same_answers
from tests.fixtures.tiny_gguf import write_tiny_gguf
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.errors import ContextError, InputError, ModelError
from luthier.core.types import Message, Order, Sampling
from luthier.generate.engine import Engine
from luthier.generate.llama_engine import LlamaEngine
from luthier.generate.llama_file import LlamaFile, open_in_llama
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.tokens.template import ChatEncoder, open_chat

CONTEXT = 256
TEXTS = ["Which kind of request is this? " * (k % 4) + f"I have {k * 37} quick brown foxes" for k in range(7)]
SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}'


@dataclass(frozen=True)
class Made:
    python: str
    gguf: Path
    encoder: ChatEncoder
    voices: Voices

    def open_file(self, num_rows: int = 3) -> LlamaFile:
        return open_in_llama(self.python, self.gguf, num_positions=CONTEXT, num_rows=num_rows)

    def engine(self, num_rows: int = 3) -> LlamaEngine:
        return LlamaEngine(lambda: self.open_file(num_rows), self.encoder, name="tuned", context=CONTEXT, num_rows=num_rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("llama")
    path = make_tiny_model(root / "model", seed=3)
    gguf = write_tiny_gguf(path, root / "tiny-F32.gguf")
    model = open_model(path, dtype=torch.float32)
    use_layout_attention(model)
    return Made(make_fake_llama(root / "llama"), gguf, open_chat(open_tokenizer(path)), Voices(model.eval()))


@pytest.fixture(scope="module")
def engine(made: Made) -> Iterator[LlamaEngine]:
    engine = made.engine()
    yield engine
    engine.close()


def _order(text: str, **given: object) -> Order:
    return Order(**{"messages": (Message(role="user", content=text),), "max_new_tokens": 12, **given})  # type: ignore[arg-type]


ORDERS = {
    "greedy, more than there are rows": [_order(text) for text in TEXTS],
    "drawn": [_order(text, sampling=Sampling(temperature=1.5, top_p=0.95, seed=k)) for k, text in enumerate(TEXTS)],
    "against repetition": [_order(text, sampling=Sampling(repetition_penalty=1.7)) for text in TEXTS[:3]],
    "held to a schema": [_order(TEXTS[0], json_schema=SCHEMA), _order(TEXTS[2], choices=("yes", "no"))],
    "with log-probabilities": [_order(TEXTS[1], num_logprobs=3), _order(TEXTS[3])],
    "with a stop text": [_order(TEXTS[1], stop=("e",)), _order(TEXTS[4])],
    "a raw text": [Order(text="Once upon", max_new_tokens=5)],
}


@pytest.mark.parametrize("name", ORDERS)
def test_answers_are_those_of_the_engine_in_process(name: str, made: Made, engine: LlamaEngine) -> None:
    want = answer_orders(Engine(made.voices, made.encoder, context=CONTEXT, base_name="tuned"), ORDERS[name])
    found = answer_orders(engine, ORDERS[name])
    assert_same_answers(found, want)
    assert engine.num_active == engine.num_waiting == 0


def test_the_next_turn_reads_only_what_is_new(made: Made, engine: LlamaEngine) -> None:
    first = (Message(role="user", content=TEXTS[5]),)
    [answer] = answer_orders(engine, [Order(messages=first, max_new_tokens=6)])
    said = "".join(piece.text for piece in answer)
    second = (*first, Message(role="assistant", content=said), Message(role="user", content="And now?"))
    [found] = answer_orders(engine, [Order(messages=second, max_new_tokens=6)])
    assert found[-1].num_cached_tokens >= len(made.encoder.encode_prompt(first)) - 1
    [want] = answer_orders(
        Engine(made.voices, made.encoder, context=CONTEXT, base_name="tuned"), [Order(messages=second, max_new_tokens=6)]
    )
    assert [piece.tokens for piece in found] == [piece.tokens for piece in want]


def test_who_comes_between_does_not_cost_a_conversation_what_was_read_of_it(made: Made) -> None:
    """Both begin with the template's own words; a row with a long history is not given away for those."""
    engine = made.engine(num_rows=2)
    try:
        first = (Message(role="user", content=TEXTS[3]),)
        answer_orders(engine, [Order(messages=first, max_new_tokens=3)])
        answer_orders(engine, [_order("no", max_new_tokens=3)])
        [found] = answer_orders(engine, [Order(messages=first, max_new_tokens=3)])
        assert found[-1].num_cached_tokens == len(made.encoder.encode_prompt(first)) - 1
    finally:
        engine.close()


def test_a_long_prompt_is_read_in_stretches_while_others_write(made: Made, engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.generate.llama_engine.MAX_READ", 16)
    orders = [_order("short", max_new_tokens=8), _order(TEXTS[3], max_new_tokens=4)]
    short, long = map(engine.submit, orders)
    steps: list[dict[int, tuple[int, ...]]] = []
    while not engine.idle:
        steps.append({piece.ticket: piece.tokens for piece in engine.step()})
    first, last = (next(n for n, step in enumerate(steps) if ticket in step) for ticket in (short, long))
    assert last > first + 2 and all(short in step for step in steps[first : first + 3])  # one writes while the other is read
    found = [[step[ticket] for step in steps if ticket in step] for ticket in (short, long)]
    want = answer_orders(Engine(made.voices, made.encoder, context=CONTEXT, base_name="tuned"), orders)
    assert found == [[piece.tokens for piece in pieces] for pieces in want]


def test_cancel_frees_the_row_and_what_was_read_harms_nobody(made: Made, engine: LlamaEngine) -> None:
    orders = [_order(text, max_new_tokens=9) for text in TEXTS[:4]]
    tickets = [engine.submit(order) for order in orders]
    found: dict[int, list[tuple[int, ...]]] = {ticket: [] for ticket in tickets}
    for piece in engine.step():
        found[piece.ticket].append(piece.tokens)
    assert engine.num_active == 3 and engine.num_waiting == 1
    engine.cancel(tickets[1])
    engine.cancel(tickets[1])
    assert engine.num_active == 2
    while not engine.idle:
        for piece in engine.step():
            found[piece.ticket].append(piece.tokens)
    want = answer_orders(Engine(made.voices, made.encoder, context=CONTEXT, base_name="tuned"), orders)
    for n in (0, 2, 3):
        assert found[tickets[n]] == [piece.tokens for piece in want[n]]


def test_orders_that_cannot_be_answered_are_refused(engine: LlamaEngine) -> None:
    with pytest.raises(ContextError, match="the model sees 256"):
        engine.submit(_order("x", max_new_tokens=300))
    with pytest.raises(ModelError, match="tuned"):
        engine.submit(_order("x", voice="tunes"))
    with pytest.raises(InputError, match="beyond the vocabulary"):
        engine.submit(Order(prompt_ids=(10**6,), max_new_tokens=2))
    assert engine.idle


def test_a_llama_cpp_that_ends_takes_its_orders_along_and_is_opened_again(made: Made, tmp_path: Path) -> None:
    pythons = [make_fake_llama(tmp_path / "dying", "abort later"), made.python]
    opened: list[str] = []

    def open_file() -> LlamaFile:
        opened.append(pythons[min(len(opened), 1)])
        return open_in_llama(opened[-1], made.gguf, num_positions=CONTEXT, num_rows=2)

    engine = LlamaEngine(open_file, made.encoder, name="tuned", context=CONTEXT, num_rows=2)
    try:
        ticket = engine.submit(_order(TEXTS[0]))
        with pytest.raises(ModelError, match="ended with signal 6"):
            for _ in range(3):
                engine.step()
        engine.cancel(ticket)
        assert engine.idle
        [found] = answer_orders(engine, [_order(TEXTS[0])])
        assert found[-1].finish is not None and len(opened) == 2
    finally:
        engine.close()


def test_what_is_no_answer_is_an_error_and_ends_it(made: Made, tmp_path: Path) -> None:
    python = make_fake_llama(tmp_path / "lying", "no answers")  # a token beyond the vocabulary
    engine = LlamaEngine(
        lambda: open_in_llama(python, made.gguf, num_positions=CONTEXT), made.encoder, name="tuned", context=CONTEXT, num_rows=1
    )
    engine.submit(_order(TEXTS[0]))
    with pytest.raises(ModelError, match="said something that is no answer"):
        engine.step()
    engine.close()
    engine.close()
