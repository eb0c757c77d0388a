"""Losses of texts against transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.fixtures.tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM

from luthier.core.types import Example, TokenRow
from luthier.evaluate.probes import Probe, answer_row
from luthier.generate.likelihood import mean_losses
from luthier.pipeline.open import open_local
from luthier.train.precision import choose_precision

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("likelihood") / "model")


def _theirs(folder: Path, row: TokenRow) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([row.input_ids])
    labels = torch.where(torch.tensor([row.is_label]), ids, -100)
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


def test_losses_are_those_of_transformers(folder: Path) -> None:
    """Texts and answers of different lengths, several to a batch and over several batches."""
    local = open_local(folder, choose_precision("float32", settled=None))
    rows = [
        local.encoder.encode_example(Example(id=str(i), path="t", line=1, kind=kind, input=question, response=text))
        for i, (kind, question, text) in enumerate(
            [
                ("text", "", "The quick brown fox jumps over the lazy dog. " * 12),
                ("instruct", "Which kind of request is this?", "card_arrival"),
                ("text", "", "We are open from nine to five."),
                ("instruct", "When will it arrive?", "I have ordered a new card two weeks ago. " * 20),
                ("text", "", "dog"),
            ]
        )
    ]
    ours = mean_losses(local.voices, rows)
    theirs = [_theirs(folder, row) for row in rows]
    assert ours == pytest.approx(theirs, abs=TOLERANCE)
    shifted = [TokenRow(example_id=r.example_id, input_ids=r.input_ids, is_label=(*r.is_label[1:], False)) for r in rows[:2]]
    assert mean_losses(local.voices, shifted) != pytest.approx(theirs[:2], abs=TOLERANCE)  # the tolerance can fail


def test_an_answer_without_tokens_has_no_loss(folder: Path) -> None:
    local = open_local(folder, choose_precision("float32", settled=None))
    probe = Probe(id="1", kind="safe", prompt="Where is my money?")
    rows = [answer_row(local, probe, text) for text in ("", "We are open.", "")]
    first, second, third = mean_losses(local.voices, rows)
    assert first is None and third is None and second is not None
    assert rows[1].num_labels == local.encoder.count_tokens("We are open.")  # the end of the turn is not judged
