"""Decoding: the same answers as transformers' own, whatever the batch; cached; stopped where it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM

from luthier.core.errors import InputError, ModelError
from luthier.core.types import Generation, GenerationRequest, Message, Sampling
from luthier.core.wait import Wait
from luthier.generate.batching import MAX_PAIRS, plan_batches, plan_passes
from luthier.generate.decode import decode
from luthier.generate.local import LocalModel, generate, peak_memory_gib, shared_prefix, single_latencies
from luthier.generate.rows import read_prefix
from luthier.generate.store import NoStore
from luthier.models.backbone import longest_window, use_layout_attention
from luthier.models.load import open_model
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.tokens.template import open_chat

EOS = frozenset([2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3)


@pytest.fixture(scope="module")
def local(folder: Path) -> LocalModel:
    model = open_model(folder, dtype=torch.float32)
    use_layout_attention(model)
    return LocalModel(voices=Voices(model), encoder=open_chat(open_tokenizer(folder)), fingerprint="tiny", context=512)


def _prompts() -> list[list[int]]:
    gen = torch.Generator().manual_seed(5)
    return [[7, 8, 9, *torch.randint(10, 500, (int(n),), generator=gen).tolist()] for n in (1, 9, 4, 4, 17, 2)]


def _reference(folder: Path, prompt: list[int], new: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=2)
    found = out[0, len(prompt) :].tolist()
    return found[: found.index(2)] if 2 in found else found


@pytest.mark.parametrize("num_prefix", [0, 1, 3])
def test_greedy_equals_transformers_generate(folder: Path, local: LocalModel, num_prefix: int) -> None:
    prompts = _prompts()
    prefix = read_prefix(local.voices, prompts[0][:num_prefix])
    got = decode(local.voices, prefix, [p[num_prefix:] for p in prompts], max_new_tokens=[12] * 6, eos_ids=EOS, sampling=[Sampling()] * 6)
    assert got == [_reference(folder, p, 12) for p in prompts]


def test_rows_leave_at_their_own_length(local: LocalModel) -> None:
    prompts = _prompts()
    prefix = read_prefix(local.voices, ())
    lengths = [1, 7, 3, 12, 2, 5]
    together = decode(local.voices, prefix, prompts, max_new_tokens=lengths, eos_ids=EOS, sampling=[Sampling()] * 6)
    alone = [
        decode(local.voices, prefix, [p], max_new_tokens=[n], eos_ids=EOS, sampling=[Sampling()])[0]
        for p, n in zip(prompts, lengths, strict=True)
    ]
    assert together == alone
    assert all(len(t) <= n for t, n in zip(together, lengths, strict=True))


def test_sampling_is_seeded_by_row_and_does_not_depend_on_the_batch(local: LocalModel) -> None:
    prompts, prefix = _prompts(), read_prefix(local.voices, ())
    sampling = [Sampling(temperature=1.0, seed=seed) for seed in range(6)]
    together = decode(local.voices, prefix, prompts, max_new_tokens=[8] * 6, eos_ids=EOS, sampling=sampling)
    alone = [
        decode(local.voices, prefix, [p], max_new_tokens=[8], eos_ids=EOS, sampling=[s])[0] for p, s in zip(prompts, sampling, strict=True)
    ]
    assert together == alone
    other = decode(
        local.voices,
        prefix,
        prompts,
        max_new_tokens=[8] * 6,
        eos_ids=EOS,
        sampling=[Sampling(temperature=1.0, seed=s + 100) for s in range(6)],
    )
    assert other != together


def test_prompts_that_are_the_same_are_read_once(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every row goes on by itself: with its own draws, at its own length."""
    different, prefix = _prompts(), read_prefix(local.voices, _prompts()[0][:3])
    prompts = [different[n][3:] for n in (4, 1, 4, 1, 2, 3, 4, 0)]  # 2 and 3 are equally long
    sampling = [Sampling(temperature=1.0, seed=seed) for seed in range(8)]
    lengths = [8, 3, 8, 12, 5, 5, 1, 9]
    alone = [
        decode(local.voices, prefix, [p], max_new_tokens=[n], eos_ids=EOS, sampling=[s])[0]
        for p, n, s in zip(prompts, lengths, sampling, strict=True)
    ]
    read: list[int] = []
    own = Voices.states
    monkeypatch.setattr(Voices, "states", lambda self, ids_BT, *rest: (read.append(ids_BT.numel()), own(self, ids_BT, *rest))[1])
    monkeypatch.setattr("luthier.generate.decode.MAX_READ", 20)
    together = decode(local.voices, prefix, prompts, max_new_tokens=lengths, eos_ids=EOS, sampling=sampling)
    assert together == alone and len({tuple(together[n]) for n in (0, 2)}) == 2
    assert read[:3] == [17, 2 * 9, 2 * 4] and read[3] == 8  # five prompts, padding included; then a token of each row


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_passes_are_in_order_and_as_large_as_may_be(lengths: list[int], most: int) -> None:
    passes = plan_passes(lengths, most)
    assert [i for start, end in passes for i in range(start, end)] == list(range(len(lengths)))
    for start, end in passes:
        assert end - start == 1 or (end - start) * max(lengths[start:end]) <= most
        assert end == len(lengths) or (end + 1 - start) * max(lengths[start : end + 1]) > most


def test_a_row_stops_when_told(local: LocalModel) -> None:
    seen: list[int] = []

    def on_token(row: int, token: int) -> bool:
        seen.append(token)
        return len(seen) < 3

    [got] = decode(
        local.voices,
        read_prefix(local.voices, ()),
        [_prompts()[1]],
        max_new_tokens=[10],
        eos_ids=frozenset(),
        sampling=[Sampling()],
        on_token=on_token,
    )
    assert got == seen and len(got) == 3


class _Memory(dict[str, Generation]):
    def put(self, key: str, generation: Generation) -> None:
        self[key] = generation


def _requests(n: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            item_id=f"i{k}", messages=(Message(role="user", content=f"Which kind of request is {k * 37}?"),), max_new_tokens=6
        )
        for k in range(n)
    ]


def test_generate_keeps_order_counts_and_caches_whole_batches(local: LocalModel) -> None:
    store = _Memory()
    first = generate(local, _requests(9), batch=4, store=store, on_progress=lambda done, total: None)
    assert [g.item_id for g in first] == [f"i{k}" for k in range(9)]
    assert all(g.num_cached_tokens > 0 and g.num_prompt_tokens > g.num_cached_tokens and g.latency_s > 0 for g in first)
    assert len(store) == 9
    lost = next(iter(store))
    del store[lost]  # as after a kill: the batch is decoded whole again, with the same result
    calls: list[int] = []
    again = generate(local, _requests(9), batch=4, store=store, on_progress=lambda done, total: calls.append(done))
    assert [g.text for g in again] == [g.text for g in first]
    assert calls[-1] == 9


def test_another_model_does_not_share_the_cache(local: LocalModel) -> None:
    store = _Memory()
    generate(local, _requests(2), batch=4, store=store, on_progress=lambda done, total: None)
    other = LocalModel(voices=local.voices, encoder=local.encoder, fingerprint="other", context=512)
    generate(other, _requests(2), batch=4, store=store, on_progress=lambda done, total: None)
    assert len(store) == 4


def test_too_long_a_prompt_is_refused_not_cut(local: LocalModel) -> None:
    small = LocalModel(voices=local.voices, encoder=local.encoder, fingerprint="tiny", context=20)
    with pytest.raises(InputError, match="tokens") as caught:
        generate(small, _requests(1), batch=1, store=NoStore(), on_progress=lambda done, total: None)
    assert "arms.shots" in caught.value.fix


def test_stop_request_between_batches(local: LocalModel) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(local, _requests(3), batch=1, store=NoStore(), on_progress=lambda done, total: None, should_stop=lambda: True)


def test_single_latencies_one_a_request(local: LocalModel) -> None:
    requests = _requests(3)
    found = list(single_latencies(local, requests, shared_prefix(local, requests)))
    assert len(found) == 3 and all(0 < (one.first_s or 0) <= one.seconds and one.num_new_tokens > 1 for one in found)
    assert all((one.tokens_per_s or 0) > 0 for one in found)
    [batched] = generate(local, requests[:1], batch=1, store=NoStore(), on_progress=lambda done, total: None)
    assert batched.num_new_tokens == found[0].num_new_tokens  # watching the first token changes nothing
    assert (peak_memory_gib() or 0) > 0.1


def test_the_rate_is_behind_the_first_token_and_needs_two() -> None:
    assert Wait(seconds=3.0, first_s=1.0, num_new_tokens=5).tokens_per_s == 2.0
    assert Wait(seconds=3.0, first_s=1.0, num_new_tokens=1).tokens_per_s is None
    assert Wait(seconds=3.0, num_new_tokens=0).tokens_per_s is None


def test_soft_capped_models_are_refused(folder: Path) -> None:
    model = open_model(folder, dtype=torch.float32)
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ModelError, match="final_logit_softcapping"):
        use_layout_attention(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_types": ["conv", "full_attention"]}, "no attention"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"logit_scale": 0.06}, "logit_scale"),
        ({"model_type": "gpt_oss"}, "sinks"),
    ],
)
def test_models_that_would_be_computed_wrongly_are_refused(folder: Path, change: dict[str, object], said: str) -> None:
    model = open_model(folder, dtype=torch.float32)
    for key, value in change.items():
        object.__setattr__(model.config, key, value)
    with pytest.raises(ModelError, match=said):
        use_layout_attention(model)


def test_a_window_without_layer_types_is_a_window(folder: Path) -> None:
    model = open_model(folder, dtype=torch.float32)
    assert longest_window(model) is None
    model.config.sliding_window = 128  # as Mistral states it
    assert longest_window(model) == 128
    model.config.use_sliding_window = False
    assert longest_window(model) is None


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.integers(1, 64), st.integers(0, 2000))
def test_batches_hold_every_request_once_within_limits(lengths: list[int], batch: int, num_prefix: int) -> None:
    plan = plan_batches(lengths, num_prefix=num_prefix, batch=batch)
    assert sorted(i for b in plan for i in b) == list(range(len(lengths)))
    for indices in plan:
        longest = max(lengths[i] for i in indices)
        assert len(indices) <= batch
        assert len(indices) == 1 or len(indices) * longest * (num_prefix + longest) <= MAX_PAIRS


def test_a_model_without_chat_training_is_stopped_at_the_stop_text(local: LocalModel) -> None:
    def one(model: LocalModel, stop: str) -> Generation:
        request = replace(_requests(1)[0], stop=stop, max_new_tokens=12)
        return generate(model, [request], batch=1, store=NoStore(), on_progress=lambda done, total: None)[0]

    plain = replace(local, encoder=replace(local.encoder, is_chat=False), fingerprint="plain")
    free = one(plain, "")
    stop = free.text.strip()[2:4]
    cut = one(plain, stop)
    assert stop in free.text and stop not in cut.text and free.text.startswith(cut.text)
    assert cut.num_new_tokens < free.num_new_tokens and cut.finish == "stop"
    assert one(local, one(local, "").text.strip()[2:4]).text == one(local, "").text  # a chat model ends its turns itself
