"""The losses of one training, number by number: a change of data order, labels, loss, optimiser or schedule cannot pass unseen.

The values are the output of this test on the tiny model; after an intended change, print them anew and say why in docs/log.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.types import TokenRow
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.lora import LoraSettings, add_lora
from luthier.train.loop import FitSettings, FitState, StepRecord, fit
from luthier.train.optim import make_optimiser

LOSSES = (
    6.3137,
    6.1792,
    5.6616,
    5.3202,
    5.1678,
    4.8075,
    5.0206,
    4.967,
    4.8778,
    4.8254,
    4.7514,
    4.8033,
    4.8187,
    4.7431,
    4.7525,
    4.7177,
    4.7418,
    4.8247,
    4.7739,
    4.8959,
)
DEV_LOSSES = (4.967, 4.9358)


def _rows(n: int) -> list[TokenRow]:
    """Rows of a rule: after a shared header, the answer repeats the first two of three to eight tokens, then ends."""
    rows: list[TokenRow] = []
    for i in range(n):
        body = tuple(20 + (37 * i + 11 * j) % 300 for j in range(3 + i % 6))
        ids = (10, 11, 12, *body, 13, *body[:2], 2)
        rows.append(TokenRow(example_id=str(i), input_ids=ids, is_label=(False,) * (len(ids) - 3) + (True,) * 3))
    return rows


def test_losses_of_a_training(tmp_path: Path) -> None:
    model = add_lora(open_model(make_tiny_model(tmp_path / "model"), dtype=torch.float32), LoraSettings(r=4, alpha=8, dropout=0.0), seed=3)
    use_layout_attention(model.get_base_model())
    settings = FitSettings(
        lr=1e-2, batch=8, micro_batch=4, total_updates=20, warmup_updates=2, schedule="linear", max_grad_norm=1.0, eval_every=10,
        patience=0, save_every=0, seed=5,
    )  # fmt: skip
    records: list[StepRecord] = []

    def keep(record: StepRecord, state: FitState) -> None:
        del state
        records.append(record)

    optimiser = make_optimiser(model, weight_decay=0.01, compute_dtype=torch.float32)
    rows = _rows(96)
    fit(model, optimiser, rows[:80], rows[80:], settings, checkpoints=None, key="", on_step=keep, should_stop=lambda: False)
    assert [r.loss for r in records] == pytest.approx(LOSSES, rel=2e-4), repr([round(r.loss, 4) for r in records])
    dev = [r.dev_loss for r in records if r.dev_loss is not None]
    assert dev == pytest.approx(DEV_LOSSES, rel=2e-4), repr([round(d, 4) for d in dev])
