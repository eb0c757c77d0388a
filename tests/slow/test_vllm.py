"""The engine over a real vLLM, where one is installed beside Luthier: what the fake one of the unit tests claims of it.

docs/serve.md says how to install it; on a processor: LD_PRELOAD=.../libiomp5.so python -m pytest -m slow tests/slow/test_vllm.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.e2e.test_vllm_run import assert_it_says_so, assert_same_scores, make_place, record_of, run
from tests.fixtures.orders import answer_orders
from tests.fixtures.tiny_model import make_tiny_model
from tests.unit.generate.test_vllm_engine import CONTEXT, ORDERS, TEXTS, Made, make_adapters, order
from tests.unit.generate.test_vllm_model import ASKED, FP32, answered, asked, assert_same, opened

from luthier.core.errors import InputError
from luthier.core.types import Piece, Sampling
from luthier.generate.engine import Engine
from luthier.generate.vllm_engine import VllmEngine
from luthier.generate.vllm_package import require_vllm
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.lora import load_adapter
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.pipeline.open import open_local
from luthier.tokens.template import open_chat

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM is installed"),
    pytest.mark.filterwarnings("default"),  # its own
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("vllm") / "model", seed=3)


@pytest.fixture(scope="module")
def adapters(folder: Path) -> dict[str, Path]:
    return make_adapters(folder, folder.parent)


@pytest.fixture(scope="module")
def engine(folder: Path, adapters: dict[str, Path]) -> Iterator[VllmEngine]:
    with ExitStack() as until:
        yield Made(folder, open_chat(open_tokenizer(folder)), None).engine(adapters=adapters, until=until)


@pytest.fixture(scope="module")
def own(folder: Path, adapters: dict[str, Path]) -> Engine:
    model: Any = open_model(folder, dtype=torch.float32)
    use_layout_attention(model)
    for name, path in adapters.items():
        model = load_adapter(model, path, name=name)
    return Engine(
        Voices(model.eval(), {name: name for name in adapters}), open_chat(open_tokenizer(folder)), context=CONTEXT, base_name="tuned"
    )


def _text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("name", ORDERS)
def test_answers_are_those_of_the_engine_in_process(name: str, engine: VllmEngine, own: Engine) -> None:
    for ours, theirs in zip(answer_orders(engine, ORDERS[name]), answer_orders(own, ORDERS[name]), strict=True):
        assert _text(ours) == _text(theirs) and ours[-1].finish == theirs[-1].finish
        assert ours[-1].num_prompt_tokens == theirs[-1].num_prompt_tokens
        for piece, other in zip(ours, theirs, strict=False):
            for one, wanted in zip(piece.logprobs, other.logprobs, strict=True):
                assert one.spelled == wanted.spelled and one.logprob == pytest.approx(wanted.logprob, abs=1e-3)
                assert [spelled for spelled, _ in one.likeliest] == [spelled for spelled, _ in wanted.likeliest]
    assert engine.idle


def test_each_adapter_answers_under_its_own_name(engine: VllmEngine, own: Engine) -> None:
    orders = [order(text, voice=voice) for text in TEXTS[:3] for voice in ("one", "", "two")]
    want, found = ([_text(pieces) for pieces in answer_orders(each, orders)] for each in (own, engine))
    assert want == found and len(set(want[:3])) == 3


def test_what_is_drawn_depends_on_the_seed_alone(engine: VllmEngine) -> None:
    drawn = [order(TEXTS[1], sampling=Sampling(temperature=1.5, top_p=0.95, top_k=40, min_p=0.01, seed=seed)) for seed in (3, 3, 4)]
    one, same, other = (_text(pieces) for pieces in answer_orders(engine, drawn))
    assert one == same != other


def test_an_order_that_is_given_up_leaves_at_once(engine: VllmEngine) -> None:
    ticket, kept = engine.submit(order(TEXTS[0], max_new_tokens=100)), engine.submit(order(TEXTS[1]))
    engine.step()
    engine.cancel(ticket)
    found = [piece for _ in range(200) if not engine.idle for piece in engine.step()]
    assert {piece.ticket for piece in found} == {kept} and found[-1].finish is not None


def test_what_it_cannot_do_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(InputError, match="temperature must be"):
        engine.submit(order("x", sampling=Sampling(temperature=3)))
    assert engine.idle


def test_the_requests_of_an_evaluation_in_a_process_of_its_own(folder: Path, adapters: dict[str, Path]) -> None:
    """Base and tuned, held to labels with the probability of each, to a schema, and free; then all its memory is given back."""
    with ExitStack() as until:
        both = opened(folder, adapters["one"], until, memory=0.2)
        for model, own in zip(both, (open_local(folder, FP32), open_local(folder, FP32, adapter=adapters["one"])), strict=True):
            for given in ASKED.values():
                assert_same(answered(model, asked(**given)), answered(own, asked(**given)), within=1e-3)
        one, same, other = ([g.text for g in answered(both[0], asked(temperature=1.5, seed=seed))] for seed in (3, 3, 4))
        assert one == same != other


def test_a_run_has_the_scores_of_the_own_engine(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    for name, more in (("own", ()), ("vllm", ("--vllm", "--set", "arms.vllm_memory=0.2"))):
        done = run(place, name, *more, env={})
        assert done.returncode == 0, done.stderr
    assert_same_scores(record_of(place, "vllm"), record_of(place, "own"))
    assert_it_says_so(record_of(place, "vllm"), require_vllm())
