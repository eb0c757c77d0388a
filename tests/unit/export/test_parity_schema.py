"""Answers held to a JSON schema: transformers' own `generate`, held by masks, writes what the engine wrote."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tests.fixtures.tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM

from luthier.core.types import GenerationRequest, Message
from luthier.data.answer_schema import keeps_schema
from luthier.export.loaders import Reloaded
from luthier.export.parity import Conditions, ParityItem, explain, write_answers
from luthier.generate.local import LocalModel, generate
from luthier.generate.store import NoStore
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.tokens.template import open_chat

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["opening_hours", "open"]}, "handover": {"enum": [False, True]}},
    "required": ["intent", "handover"],
    "additionalProperties": False,
}


def test_the_artefact_is_held_as_the_tested_model_was(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=3)
    schema = json.dumps(SCHEMA)
    model = open_model(folder, dtype=torch.float32)
    use_layout_attention(model)
    encoder = open_chat(open_tokenizer(folder))
    local = LocalModel(voices=Voices(model), encoder=encoder, fingerprint="tiny", context=512)
    asked = [
        GenerationRequest(
            item_id=f"i{k}", messages=(Message(role="user", content=f"Kind {k * 37}?"),), max_new_tokens=60, json_schema=schema
        )
        for k in range(4)
    ]
    tested = [g.text for g in generate(local, asked, batch=4, store=NoStore(), on_progress=lambda done, total: None)]
    items = [
        ParityItem(item_id=r.item_id, messages=r.messages, reference_ids=(1, 2), reference_labels=(False, True), tested=text)
        for r, text in zip(asked, tested, strict=True)
    ]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reloaded = Reloaded(model=plain, tokenizer=open_tokenizer(folder), stop_ids=frozenset({2}), loader="test")
    how = Conditions(max_new_tokens=60, stop="", choices=(), json_schema=schema)
    written = write_answers(reloaded, encoder, items, how, lambda: None)
    assert all(keeps_schema(one.text, SCHEMA) for one in written)
    for item, one in zip(items, written, strict=True):
        if one.text != item.tested:  # another way to cut the same beginning into tokens: told to be within rounding, or it is a fault
            assert explain(plain, encoder, item, one, how, 1e-3).gap >= 0
    assert sum(one.text == item.tested for item, one in zip(items, written, strict=True)) >= 2
