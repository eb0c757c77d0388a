"""The engine over vLLM: every order means what it means to the engine in process, but for what is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.fake_vllm import install_fake_vllm, make_fake_vllm
from tests.fixtures.orders import answer_orders, assert_same_answers
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.errors import ContextError, EngineEnded, InputError, MissingExtraError, ModelError
from luthier.core.types import Message, Order, Sampling
from luthier.generate.engine import Engine
from luthier.generate.vllm_engine import VllmEngine
from luthier.generate.vllm_package import require_vllm
from luthier.kernels.device import choose_device
from luthier.models.backbone import use_layout_attention
from luthier.models.load import inspect_folder, open_model
from luthier.models.lora import LoraSettings, add_lora, load_adapter, save_adapter
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.pipeline.in_vllm import InVllm
from luthier.tokens.template import ChatEncoder, open_chat
from luthier.train.precision import Precision

CONTEXT = 512
TEXTS = ["Which kind of request is this? " * (k % 4) + f"I have {k * 37} quick brown foxes" for k in range(7)]
SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}'


@dataclass(frozen=True)
class Made:
    path: Path
    encoder: ChatEncoder
    voices: Voices | None

    def engine(self, *, adapters: Mapping[str, Path] | None = None, max_active: int = 3, until: ExitStack | None = None) -> VllmEngine:
        precision = Precision(torch.float32, "for the test", choose_device("auto"))
        opened = InVllm(until or ExitStack()).open_engine
        return opened(self.path, precision, base_name="tuned", adapters=adapters or {}, max_active=max_active)

    def own(self) -> Engine:
        assert self.voices is not None
        return Engine(self.voices, self.encoder, context=CONTEXT, base_name="tuned")


def make_adapters(model: Path, root: Path) -> dict[str, Path]:
    """Two that change the model's answers, by name."""
    folders = {"one": root / "one", "two": root / "two"}
    for seed, folder in enumerate(folders.values()):
        trained = add_lora(open_model(model, dtype=torch.float32), LoraSettings(r=4, alpha=16, dropout=0.0), seed)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        save_adapter(trained, folder, base_info=inspect_folder(model))
    return folders


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = make_tiny_model(tmp_path_factory.mktemp("vllm") / "model", seed=3)
    model = open_model(path, dtype=torch.float32)
    use_layout_attention(model)
    return Made(path, open_chat(open_tokenizer(path)), Voices(model.eval()))


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_vllm(tmp_path / "installed", monkeypatch)


def order(text: str, **given: object) -> Order:
    return Order(**{"messages": (Message(role="user", content=text),), "max_new_tokens": 12, **given})  # type: ignore[arg-type]


ORDERS = {
    "greedy, more than there are places": [order(text) for text in TEXTS],
    "against repetition": [order(text, sampling=Sampling(repetition_penalty=1.7)) for text in TEXTS[:3]],
    "held to a schema": [order(TEXTS[0], json_schema=SCHEMA), order(TEXTS[1])],
    "held to an expression": [order(TEXTS[0], regex="[0-9]{4}")],
    "held to labels": [order(TEXTS[2], choices=("yes", "no"))],
    "with log-probabilities": [order(TEXTS[1], num_logprobs=3), order(TEXTS[3], num_logprobs=0)],
    "with a stop text": [order(TEXTS[1], stop=("e",)), order(TEXTS[4])],
    "a raw text": [Order(text="Once upon", max_new_tokens=5)],
    "tokens": [Order(prompt_ids=(5, 7, 11, 13), max_new_tokens=5)],
}


@pytest.mark.parametrize("name", ORDERS)
def test_answers_are_those_of_the_engine_in_process(name: str, made: Made) -> None:
    want = answer_orders(made.own(), ORDERS[name])
    engine = made.engine()
    found = answer_orders(engine, ORDERS[name])
    assert_same_answers(found, want)
    assert engine.num_active == engine.num_waiting == 0 and not _running(engine).requests


def test_each_adapter_answers_under_its_own_name(made: Made, tmp_path: Path) -> None:
    """As the engine in process does with the same adapters, all of them and the base in one batch."""
    folders = make_adapters(made.path, tmp_path)
    adapted: Any = open_model(made.path, dtype=torch.float32)
    use_layout_attention(adapted)
    for name, folder in folders.items():
        adapted = load_adapter(adapted, folder, name=name)
    own = Engine(Voices(adapted.eval(), {name: name for name in folders}), made.encoder, context=CONTEXT, base_name="tuned")
    orders = [order(text, voice=voice) for text in TEXTS[:3] for voice in ("one", "", "two")]
    with ExitStack() as until:
        want, found = (answer_orders(engine, orders) for engine in (own, made.engine(adapters=folders, until=until)))
    told = [["".join(piece.text for piece in pieces) for pieces in every] for every in (want, found)]
    assert told[0] == told[1] and len(set(told[0][:3])) == 3


def test_what_is_drawn_depends_on_the_seed_alone(made: Made) -> None:
    drawn = [order(TEXTS[1], sampling=Sampling(temperature=1.5, seed=seed)) for seed in (3, 3, 4)]
    one, same, other = (["".join(piece.text for piece in pieces)] for pieces in answer_orders(made.engine(), drawn))
    assert one == same != other


def test_who_waits_and_who_is_answered_can_be_told(made: Made) -> None:
    engine = made.engine(max_active=2)
    tickets = [engine.submit(order(text)) for text in TEXTS[:3]]
    assert (engine.num_active, engine.num_waiting) == (0, 3)
    engine.step()
    assert (engine.num_active, engine.num_waiting) == (2, 1)
    for ticket in (*tickets, 99):
        engine.cancel(ticket)
    assert engine.idle and engine.step() == () and _running(engine).aborted == [str(ticket) for ticket in tickets]


def test_an_end_of_its_own_ends_the_answer(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that is whole to vLLM ends there, whatever is known here."""
    engine = made.engine()
    running = _running(engine)
    write = running._write

    def ended(name: str, request: Any) -> Any:
        output = write(name, request)
        output.outputs[0].finish_reason, output.finished = "stop", True
        running.requests.pop(name, None)
        return output

    monkeypatch.setattr(running, "_write", ended)
    [pieces] = answer_orders(engine, [order(TEXTS[0])])
    assert [piece.finish for piece in pieces] == [None, "stop"] and pieces[-1].num_new_tokens == 1


@pytest.mark.parametrize("reason", ["error", "abort", None])
def test_an_answer_it_gives_up_is_an_error(made: Made, monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    engine = made.engine()
    running = _running(engine)
    write = running._write

    def given_up(name: str, request: Any) -> Any:
        output = write(name, request)
        output.outputs[0].finish_reason, output.finished = reason, True
        return output

    monkeypatch.setattr(running, "_write", given_up)
    engine.submit(order(TEXTS[0]))
    with pytest.raises(ModelError, match="gave up an answer"):
        engine.step()


def test_what_it_cannot_do_is_refused(made: Made) -> None:
    engine = made.engine()
    with pytest.raises(InputError, match=r"temperature must be in \[0, 2\]") as told:
        engine.submit(order("x", sampling=Sampling(temperature=3)))
    assert told.value.where == "temperature"
    with pytest.raises(InputError, match="cannot be used"):
        engine.submit(order("x", json_schema='{"type": "nothing"}'))
    with pytest.raises(ContextError):
        engine.submit(order("x" * 4000))
    with pytest.raises(ModelError, match="there is no model"):
        engine.submit(order("x", voice="nobody"))
    assert engine.idle
    with pytest.raises(ModelError, match="more KV cache memory is needed") as told:
        made.engine(max_active=13)
    assert "than there is" not in str(told.value) and "leave --vllm out" in told.value.fix


def test_a_broken_engine_is_an_error_of_the_model(made: Made) -> None:
    engine = made.engine()
    engine.submit(order("x"))
    _running(engine).fails = True
    with pytest.raises(EngineEnded, match="illegal memory access"):
        engine.step()


def test_one_too_old_or_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert require_vllm() == "0.32.0"
    monkeypatch.syspath_prepend(make_fake_vllm(tmp_path / "old", "0.9.1"))
    with pytest.raises(MissingExtraError, match=r"found vLLM 0\.9\.1, expected 0\.32 or newer"):
        require_vllm()
    monkeypatch.setattr("luthier.generate.vllm_package.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="there is no vLLM here"):
        require_vllm()


def _running(engine: VllmEngine) -> Any:
    return engine._vllm.running
