"""Answers held to a JSON schema in an evaluation: always valid, and nothing changed where the answer kept it anyway."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.types import Generation, GenerationRequest, Message
from luthier.data.answer_schema import keeps_schema
from luthier.generate.held import hold_to_schema
from luthier.generate.local import LocalModel, generate
from luthier.generate.store import NoStore
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.tokens.template import open_chat

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["opening_hours", "open", "größe"]}, "handover": {"enum": [False, True]}, "n": {"enum": [None, "7"]}},
    "required": ["intent", "handover", "n"],
    "additionalProperties": False,
}
FREE_TEXT = {**SCHEMA, "properties": {"reply": {"type": "string"}, "n": {"type": "integer"}}, "required": ["reply", "n"]}
VOCAB = 512


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder: Path = make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3, vocab=VOCAB)
    model = open_model(folder, dtype=torch.float32)
    use_layout_attention(model)
    return LocalModel(voices=Voices(model), encoder=open_chat(open_tokenizer(folder)), fingerprint="tiny", context=512)


def _requests(schema: object, **changes: object) -> list[GenerationRequest]:
    text = json.dumps(schema, ensure_ascii=False) if schema else ""
    return [
        GenerationRequest(item_id=f"i{k}", messages=(Message(role="user", content=f"Which kind is {k * 37}?"),), max_new_tokens=90,
                          json_schema=text, **changes)  # type: ignore[arg-type]
        for k in range(8)
    ]  # fmt: skip


def _answers(local: LocalModel, requests: list[GenerationRequest], batch: int = 3) -> tuple[Generation, ...]:
    return generate(local, requests, batch=batch, store=NoStore(), on_progress=lambda done, total: None)


def test_every_answer_keeps_the_schema_whatever_the_model(local: LocalModel) -> None:
    free = _answers(local, _requests(None))
    assert not any(keeps_schema(g.text, SCHEMA) for g in free)
    held = _answers(local, _requests(SCHEMA))
    assert all(keeps_schema(g.text, SCHEMA) and g.finish == "stop" for g in held)
    assert [g.text for g in _answers(local, _requests(SCHEMA), batch=8)] == [g.text for g in held]
    hot = _answers(local, [replace(request, temperature=50.0, seed=k) for k, request in enumerate(_requests(SCHEMA))])
    assert all(keeps_schema(g.text, SCHEMA) for g in hot) and len({g.text for g in hot}) > 1
    plain = replace(local, encoder=replace(local.encoder, is_chat=False))
    assert all(keeps_schema(g.text, SCHEMA) for g in _answers(plain, _requests(SCHEMA, stop="\n\n")))


def test_an_answer_that_is_cut_off_says_so(local: LocalModel) -> None:
    cut = _answers(local, [replace(request, max_new_tokens=4) for request in _requests(SCHEMA)])
    assert all(g.finish == "length" and g.num_new_tokens == 4 for g in cut)


def test_which_tokens_may_follow_is_told_alike_one_by_one_and_all_at_once(local: LocalModel) -> None:
    held = hold_to_schema(json.dumps(SCHEMA), local.encoder, VOCAB)
    assert held is not None
    is_complete = False
    for token in local.encoder.encode_bare('{"intent": "open", "handover": true, "n": null}'):
        allowed = held.allowed().tolist()
        accepted = [t for t in range(VOCAB) if held.accepts(t)]
        # Where the text is settled, all at once names one way to cut it into tokens only; one by one takes every way.
        assert set(allowed) <= set(accepted) and token in accepted and len(accepted) < VOCAB
        assert allowed == accepted or len(allowed) == 1
        is_complete = held.write(token)
    assert is_complete and held.allowed().tolist() == sorted(local.encoder.eos_ids) and held.accepts(2) and not held.accepts(40)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(reply=st.text(max_size=30), n=st.integers(-(10**6), 10**6), data=st.data())
def test_whatever_keeps_the_schema_could_be_written_however_it_is_cut_into_tokens(
    local: LocalModel, reply: str, n: int, data: st.DataObject
) -> None:
    text = json.dumps({"reply": reply, "n": n}, ensure_ascii=False)
    assert keeps_schema(text, FREE_TEXT)
    held = hold_to_schema(json.dumps(FREE_TEXT), local.encoder, VOCAB)
    assert held is not None
    cut = data.draw(st.integers(0, len(text)))
    for token in (*local.encoder.encode_bare(text[:cut]), *local.encoder.encode_bare(text[cut:])):
        assert held.accepts(token), (text, cut)
        held.write(token)
    assert held.accepts(2), text


def test_the_likeliest_token_is_taken_where_it_may_follow(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that writes valid answers writes the same ones when held: its logits are what decides, masks are not even asked for."""
    wanted = local.encoder.encode_bare('{"intent": "open", "handover": false, "n": "7"}')
    steps = iter(range(10**6))

    def logits(h: torch.Tensor) -> torch.Tensor:
        step = next(steps)
        out = torch.zeros(len(h), VOCAB)
        out[:, wanted[step] if step < len(wanted) else 2] = 9.0
        return out

    monkeypatch.setattr(local.voices, "logits", logits)
    monkeypatch.setattr("luthier.generate.held.HeldToGrammar.allowed", None)
    found = _answers(local, _requests(SCHEMA)[:1])
    assert found[0].text == '{"intent": "open", "handover": false, "n": "7"}' and found[0].finish == "stop"
