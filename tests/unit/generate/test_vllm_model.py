"""The requests of an evaluation, answered by vLLM: every one means what it means to Luthier's own engine, but for what is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.fake_vllm import install_fake_vllm
from tests.fixtures.tiny_model import make_tiny_model
from tests.unit.generate.test_vllm_engine import make_adapters

from luthier.core.errors import InputError, ModelError
from luthier.core.types import Generation, GenerationRequest, Message
from luthier.generate import vllm_model
from luthier.generate.local import LocalModel, generate
from luthier.generate.store import NoStore
from luthier.generate.vllm_model import VllmModel, generate_in_vllm, single_latency
from luthier.pipeline.in_vllm import InVllm
from luthier.pipeline.open import open_local
from luthier.store.cache import GenerationCache
from luthier.train.precision import Precision

FP32 = Precision(torch.float32, "for the test")
LABELS = ("card_arrival", "card", "top up", "yes")
SCHEMA = json.dumps({
    "type": "object",
    "properties": {"kind": {"enum": ["card", "cards", "größe"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "n"],
    "additionalProperties": False,
})  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {
    "free": {},
    "held to labels": {"choices": LABELS},
    "held to a schema": {"json_schema": SCHEMA, "max_new_tokens": 40},
    "cut off": {"max_new_tokens": 2},
    "with a stop text": {"stop": "e"},
    "labels and a stop text": {"choices": LABELS, "stop": "\n\n"},
}
Opened = Callable[..., tuple[VllmModel, VllmModel]]


@pytest.fixture(scope="module", params=["chat", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = {} if request.param == "chat" else {"chat_template": None}
    return make_tiny_model(tmp_path_factory.mktemp("vllm") / "model", seed=3, **more)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    return make_adapters(folder, folder.parent)["one"]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_vllm(tmp_path / "installed", monkeypatch)


def asked(num: int = 7, **given: Any) -> list[GenerationRequest]:
    given = {"max_new_tokens": 12, **given}
    texts = ["Which kind of request is this? " * (k % 4) + f"I have {k * 37} quick brown foxes" for k in range(num)]
    return [GenerationRequest(item_id=f"i{k}", messages=(Message(role="user", content=text),), **given) for k, text in enumerate(texts)]


def opened(folder: Path, adapter: Path | None, until: ExitStack, *, memory: float | None = None) -> tuple[VllmModel, VllmModel]:
    return InVllm(until, memory).open_models(folder, FP32, adapter=adapter, max_active=3)


def answered(model: VllmModel | LocalModel, requests: Sequence[GenerationRequest], **given: Any) -> tuple[Generation, ...]:
    told: dict[str, Any] = {"batch": 3, "store": NoStore(), "on_progress": lambda done, total: None, **given}
    return generate_in_vllm(model, requests, **told) if isinstance(model, VllmModel) else generate(model, requests, **told)


def assert_same(found: Sequence[Generation], want: Sequence[Generation], *, within: float = 1e-4) -> None:
    """All but times and what was cached."""
    for ours, theirs in zip(found, want, strict=True):
        assert replace(ours, latency_s=0, num_cached_tokens=0, choice_logprob=None) == replace(
            theirs, latency_s=0, num_cached_tokens=0, choice_logprob=None
        )
        assert (ours.choice_logprob is None) == (theirs.choice_logprob is None)
        assert ours.choice_logprob is None or ours.choice_logprob == pytest.approx(theirs.choice_logprob, abs=within)


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_those_of_the_own_engine(name: str, folder: Path, adapter: Path) -> None:
    """Of the base model and of the tuned one, with the probability of each label."""
    requests = asked(**ASKED[name])
    with ExitStack() as until:
        both = opened(folder, adapter, until)
        for model, own in zip(both, (open_local(folder, FP32), open_local(folder, FP32, adapter=adapter)), strict=True):
            found = answered(model, requests)
            assert_same(found, answered(own, requests))
            assert all(one.latency_s > 0 for one in found)
        assert answered(both[0], requests)[0].text != "" and not _running(both[0]).requests
        assert len({one.fingerprint for one in both} | {own.fingerprint}) == 3  # answers of different engines are never mixed


def test_a_label_may_end_with_any_end_of_the_model(folder: Path) -> None:
    """vLLM knows the tokenizer's; of the others, one that stands within a label's way is an end too."""
    own = open_local(folder, FP32)
    both_ends = replace(own.encoder, eos_ids=frozenset({1, 2}))
    with ExitStack() as until:
        base, _ = opened(folder, None, until)
        requests = asked(choices=("card", "card_arrival"))
        assert_same(answered(replace(base, encoder=both_ends), requests), answered(replace(own, encoder=both_ends), requests))


def test_without_an_adapter_both_are_the_base(folder: Path) -> None:
    with ExitStack() as until:
        base, tuned = opened(folder, None, until)
        assert base is tuned and not _running(base).asked.enable_lora
        assert_same(answered(base, asked()), answered(open_local(folder, FP32), asked()))


def test_it_computes_apart_within_its_share_and_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    with ExitStack() as until:
        base, _ = opened(folder, None, until, memory=0.25)
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
        running = _running(base)
        assert (running.asked.gpu_memory_utilization, running.asked.max_num_seqs) == (0.25, 3)
        ended: list[bool] = []
        monkeypatch.setattr(running.engine_core, "shutdown", lambda: ended.append(True))
        until.callback(lambda: ended.append(False))
    assert ended == [False]  # what was registered first is asked last: the one it was opened with
    with ExitStack() as until:
        base, _ = opened(folder, None, until)
        _running(base).requests["left"] = None
    assert not _running(base).requests


def test_what_is_drawn_depends_on_the_seed_alone(folder: Path) -> None:
    with ExitStack() as until:
        base, _ = opened(folder, None, until)
        one, same, other = ([g.text for g in answered(base, asked(temperature=1.5, seed=seed))] for seed in (3, 3, 4))
        assert one == same != other


def test_an_answer_is_asked_for_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all that were whole when it was stopped are there."""
    monkeypatch.setattr(vllm_model, "CHUNKS", 1)
    store = GenerationCache(tmp_path / "generations.jsonl")
    with ExitStack() as until:
        base, _ = opened(folder, None, until)
        told: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            answered(base, asked(), store=store, on_progress=lambda done, total: told.append(done), should_stop=lambda: 3 in told)
        assert len(store) == 3 and not _running(base).requests and told[0] == 0 and told == sorted(told) and told[-1] == 3
        first = answered(base, asked(), store=store)
        monkeypatch.setattr(_running(base), "fails", True)
        assert answered(base, [replace(r, item_id=f"{r.item_id} again") for r in asked()], store=store) == tuple(
            replace(g, item_id=f"{g.item_id} again") for g in first
        )


def test_where_it_fails_nothing_is_left_under_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as until:
        base, _ = opened(folder, None, until)
        monkeypatch.setattr(_running(base), "fails", True)
        with pytest.raises(ModelError, match=r"vLLM 0\.32\.0 failed: CUDA error: an illegal memory access"):
            answered(base, asked())
        assert not _running(base).requests
        with pytest.raises(KeyboardInterrupt):  # Ctrl-C ended its process
            answered(base, asked(), should_stop=iter([False, True]).__next__)


def test_a_given_up_answer_is_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as until:
        base, _ = opened(folder, None, until)
        running = _running(base)
        write = running._write

        def given_up(name: str, request: Any) -> Any:
            output = write(name, request)
            output.outputs[0].finish_reason, output.finished = "abort", True
            return output

        monkeypatch.setattr(running, "_write", given_up)
        with pytest.raises(ModelError, match="gave up an answer: abort") as error:
            answered(base, asked(1))
        assert error.value.where == "item i0"


def test_a_label_of_which_not_all_is_known_has_no_probability(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer log-probabilities than tokens the labels allow: their sum is not the whole."""
    monkeypatch.setattr(vllm_model, "MAX_ALLOWED", 1)
    with ExitStack() as until:
        base, _ = opened(folder, None, until)
        found = answered(base, asked(choices=LABELS))
        assert {one.choice_logprob for one in found} == {None} and {one.text.strip() for one in found} <= set(LABELS)


def test_too_long_is_refused_before_anything_is_asked(folder: Path) -> None:
    with ExitStack() as until:
        base, _ = opened(folder, None, until)
        with pytest.raises(InputError, match="the model sees 512") as error:
            answered(base, asked(2, max_new_tokens=510))
        assert error.value.where == "item i0" and not _running(base).requests


def test_a_single_answer_is_timed_to_its_first_token(folder: Path) -> None:
    with ExitStack() as until:
        base, _ = opened(folder, None, until)
        wait = single_latency(base, asked(1)[0])
        assert wait.first_s is not None and 0 < wait.first_s < wait.seconds
        assert wait.num_new_tokens == answered(base, asked(1))[0].num_new_tokens


def _running(model: VllmModel) -> Any:
    return model.vllm.running
