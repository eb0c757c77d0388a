"""What must not depend on how the work is cut up: batch pieces, shared prefixes, interruptions. On a tiny model, in fp32."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.fixtures.tiny_model import make_tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from luthier.core.errors import RunError
from luthier.core.types import TokenRow
from luthier.models.backbone import use_layout_attention
from luthier.tokens.tree import tree_batch
from luthier.train import checkpoint, loop
from luthier.train.loop import FitSettings, FitState, StepRecord, fit
from luthier.train.objectives.sft import sft_loss
from luthier.train.optim import lr_at, make_optimiser
from luthier.train.order import epoch_batches, updates
from luthier.train.step import Pieces, evaluate_loss, train_step

SETTINGS = FitSettings(
    lr=3e-3, batch=8, micro_batch=8, total_updates=12, warmup_updates=2, schedule="cosine", max_grad_norm=1.0, eval_every=4, patience=0,
    save_every=3, seed=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def _model(folder: Path, *, dropout: float = 0.0) -> nn.Module:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"))
    gen = torch.Generator().manual_seed(2)
    for name, p in model.named_parameters():
        if "lora_B" in name:  # not zero, so that gradients reach lora_A too
            p.data = torch.randn(p.shape, generator=gen) * 0.05
    use_layout_attention(model.get_base_model())
    return model


def _rows(n: int, *, seed: int = 0) -> list[TokenRow]:
    gen = torch.Generator().manual_seed(seed)
    rows: list[TokenRow] = []
    for i in range(n):
        head = list(range(10, 17))  # shared by all rows
        body = torch.randint(20, 400, (3 + int(torch.randint(0, 9, (1,), generator=gen)),), generator=gen).tolist()
        answer = [*torch.randint(20, 400, (1 + int(torch.randint(0, 5, (1,), generator=gen)),), generator=gen).tolist(), 2]
        rows.append(
            TokenRow(example_id=str(i), input_ids=(*head, *body, *answer), is_label=(False,) * (7 + len(body)) + (True,) * len(answer))
        )
    return rows


def _grads(model: nn.Module, rows: list[TokenRow], *, share_prefix: bool) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = sft_loss(model, tree_batch(rows, share_prefix=share_prefix))
    loss.sum.backward()
    return float(loss.sum.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_prefix_tree_equals_packed_equals_rows_alone(folder: Path) -> None:
    model, rows = _model(folder), _rows(6)
    tree_loss, tree = _grads(model, rows, share_prefix=True)
    packed_loss, packed = _grads(model, rows, share_prefix=False)
    alone_loss, alone = 0.0, {}
    for row in rows:
        loss, grads = _grads(model, [row], share_prefix=False)
        alone_loss += loss
        alone = {n: alone[n] + g if alone else g for n, g in grads.items()}
    assert tree_loss == pytest.approx(alone_loss, rel=1e-5)
    assert packed_loss == pytest.approx(alone_loss, rel=1e-5)
    for name, want in alone.items():
        torch.testing.assert_close(tree[name], want, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(packed[name], want, atol=2e-4, rtol=1e-3)
    other_loss, _ = _grads(model, [replace(rows[0], input_ids=(*rows[0].input_ids[:-2], 77, 2)), *rows[1:]], share_prefix=True)
    assert other_loss != pytest.approx(alone_loss, rel=1e-5)  # the tolerance can fail


def test_loss_equals_transformers_own(folder: Path) -> None:
    model, rows = _model(folder), _rows(3)
    want = 0.0
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    reference.load_state_dict(model.state_dict())
    for row in rows:
        labels = torch.tensor([[t if wanted else -100 for t, wanted in zip(row.input_ids, row.is_label, strict=True)]])
        with torch.no_grad():
            want += float(reference(input_ids=torch.tensor([row.input_ids]), labels=labels).loss) * row.num_labels
    with torch.no_grad():
        got = float(sft_loss(model, tree_batch(rows)).sum)
    assert got == pytest.approx(want, rel=1e-5)


def test_pieces_hold_so_many_tokens_with_the_prefix_counted_once() -> None:
    def row(number: int, own: int) -> TokenRow:
        ids = (*range(10), *(100 * number + t for t in range(own)))
        return TokenRow(example_id=str(number), input_ids=ids, is_label=(False,) * 10 + (True,) * own)

    rows = [row(1, 40), row(2, 50), row(3, 60), row(4, 200), row(5, 1)]
    pieces = Pieces().of(rows, max_tokens=110)
    assert [[r.example_id for r in piece] for piece in pieces] == [["1", "2"], ["3"], ["4"], ["5"]]  # a row too long for all goes alone
    even = Pieces().of([row(number, 20) for number in range(1, 12)], max_tokens=210)  # 220 tokens, and 200 fit
    assert [len(piece) for piece in even] == [6, 5]
    assert [len(piece) for piece in Pieces(micro_batch=2).of(rows, max_tokens=1)] == [2, 2, 1]
    assert [len(piece) for piece in Pieces(micro_batch=2, halvings=1).of(rows, max_tokens=1)] == [1] * 5
    assert len(Pieces().of(rows, max_tokens=10_000)) == 1
    halved = Pieces(halvings=1).of([row(number, 20) for number in range(1, 12)], max_tokens=420)
    assert [len(piece) for piece in halved] == [6, 5]


@pytest.mark.parametrize(
    ("prefix", "own", "pieces"),
    [
        (1312, [208, 427, 110, 165], [4]), (1312, [400] * 4, [2, 2]), (640, [160] * 8, [4, 4]), (8000, [200] * 20, [5, 5, 5, 5]),
        (1200, [9] * 4, [4]),
    ],
)  # fmt: skip
def test_a_long_prefix_is_not_computed_for_every_row(prefix: int, own: list[int], pieces: list[int]) -> None:
    """As many tokens of its own as the prefix has, or the limit: an update of four rows behind eight solved examples is one piece."""
    head = tuple(range(prefix))
    rows = [
        TokenRow(example_id=str(i), input_ids=(*head, *([10_000 + i] * n)), is_label=(False,) * prefix + (True,) * n)
        for i, n in enumerate(own)
    ]
    assert [len(piece) for piece in Pieces().of(rows, max_tokens=1280)] == pieces
    one_by_one = Pieces(halvings=11).of(rows, max_tokens=1280)
    assert [len(piece) for piece in one_by_one] == [1] * len(rows)  # where memory runs out, it still comes down to single rows


@pytest.mark.parametrize("micro_batch", [4, 3, 1, None])
def test_accumulation_does_not_change_the_update(folder: Path, micro_batch: int | None) -> None:
    after: list[dict[str, torch.Tensor]] = []
    losses: list[float] = []
    for size in (8, micro_batch):
        model = _model(folder)
        optimiser = make_optimiser(model, weight_decay=0.0, compute_dtype=torch.float32)
        result = train_step(model, optimiser, _rows(8), pieces=Pieces(micro_batch=size), lr=1e-2, max_grad_norm=1.0)
        losses.append(result.loss)
        after.append({n: m.detach().clone() for n, m in optimiser.masters.items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, want in after[0].items():
        torch.testing.assert_close(after[1][name], want, atol=2e-4, rtol=1e-3)


def _fit(
    folder: Path, where: Path | None, *, stop_at: int | None = None, dropout: float = 0.0, **changes: object
) -> tuple[dict[str, torch.Tensor], FitState]:
    model = _model(folder, dropout=dropout)
    torch.manual_seed(9)
    optimiser = make_optimiser(model, weight_decay=0.01, compute_dtype=torch.float32)
    seen: list[int] = []

    def on_step(record: StepRecord, state: FitState) -> None:
        seen.append(record.step)

    settings = replace(SETTINGS, **changes)
    state = fit(
        model, optimiser, _rows(30), _rows(6, seed=1), settings, checkpoints=where, key="k", on_step=on_step,
        should_stop=lambda: stop_at is not None and seen[-1] >= stop_at,
    )  # fmt: skip
    return {n: m.detach().clone() for n, m in optimiser.masters.items()}, state


@pytest.mark.parametrize("stop_at", [1, 3, 4, 7, 11])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_interrupted_and_resumed_is_bit_equal(folder: Path, tmp_path: Path, stop_at: int, dropout: float) -> None:
    want, whole = _fit(folder, tmp_path / "a", dropout=dropout)
    with pytest.raises(KeyboardInterrupt):
        _fit(folder, tmp_path / "b", stop_at=stop_at, dropout=dropout)
    got, resumed = _fit(folder, tmp_path / "b", dropout=dropout)
    assert [s.loss for s in resumed.history] == [s.loss for s in whole.history]
    assert all(torch.equal(got[n], want[n]) for n in want)


def test_damaged_checkpoint_falls_back_to_the_one_before(folder: Path, tmp_path: Path) -> None:
    want, _ = _fit(folder, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        _fit(folder, tmp_path / "b", stop_at=8)
    newest = sorted((tmp_path / "b").glob("step-*"))[-1]
    data = bytearray((newest / "state.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "state.safetensors").write_bytes(data)
    found = checkpoint.latest_checkpoint(tmp_path / "b", key="k")
    assert found is not None and found.step == 6
    got, _ = _fit(folder, tmp_path / "b")
    assert all(torch.equal(got[n], want[n]) for n in want)


def test_a_checkpoint_is_not_pruned_for_stale_ones_with_higher_numbers(tmp_path: Path) -> None:
    for step in (200, 250):
        checkpoint.save_checkpoint(tmp_path, step=step, tensors={"x": torch.zeros(1)}, state={}, key="other")
    checkpoint.save_checkpoint(tmp_path, step=50, tensors={"x": torch.ones(1)}, state={}, key="k")
    found = checkpoint.latest_checkpoint(tmp_path, key="k")
    assert found is not None and found.step == 50


def test_checkpoint_of_another_training_is_not_taken(folder: Path, tmp_path: Path) -> None:
    _fit(folder, tmp_path)
    assert checkpoint.latest_checkpoint(tmp_path, key="other") is None
    assert checkpoint.latest_checkpoint(tmp_path, key="k") is not None


@pytest.mark.parametrize("fail_at", ["save_file", "fsync", "rename"])
def test_failed_write_leaves_the_old_checkpoint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: str) -> None:
    tensors = {"x": torch.arange(3.0)}
    checkpoint.save_checkpoint(tmp_path, step=1, tensors=tensors, state={"a": 1}, key="k")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    if fail_at == "save_file":
        monkeypatch.setattr(checkpoint, "save_file", full)
    elif fail_at == "fsync":
        monkeypatch.setattr(checkpoint.os, "fsync", full)
    else:
        monkeypatch.setattr(checkpoint.Path, "rename", full)
    with pytest.raises(RunError, match="No space"):
        checkpoint.save_checkpoint(tmp_path, step=2, tensors=tensors, state={"a": 2}, key="k")
    monkeypatch.undo()
    found = checkpoint.latest_checkpoint(tmp_path, key="k")
    assert found is not None and found.step == 1
    assert not list(tmp_path.glob(".tmp-*"))


def test_nothing_non_finite_reaches_the_weights(folder: Path) -> None:
    model = _model(folder)
    optimiser = make_optimiser(model, weight_decay=0.0, compute_dtype=torch.float32)
    before = {n: m.detach().clone() for n, m in optimiser.masters.items()}
    poisoned = next(p for p in model.parameters() if not p.requires_grad)
    poisoned.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError):
        train_step(
            model,
            optimiser,
            [replace(_rows(1)[0], input_ids=(0, *_rows(1)[0].input_ids[1:]))],
            pieces=Pieces(micro_batch=8),
            lr=1e-2,
            max_grad_norm=1.0,
        )
    assert all(torch.equal(before[n], m) for n, m in optimiser.masters.items())


def test_repeated_non_finite_updates_stop_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: object, **kwargs: object) -> None:
        raise FloatingPointError("loss is nan")

    monkeypatch.setattr(loop, "train_step", diverge)
    with pytest.raises(RunError, match="not finite") as caught:
        _fit(folder, None)
    assert "--lr" in caught.value.fix


def test_early_stopping_keeps_the_best_weights(folder: Path) -> None:
    masters, state = _fit(folder, None, lr=0.3, schedule="constant", eval_every=1, patience=2, total_updates=12)
    assert state.stopped_early and state.step < 12
    model = _model(folder)
    for name, p in model.named_parameters():
        if name in masters:
            p.data = masters[name]
    assert evaluate_loss(model, _rows(6, seed=1), pieces=Pieces(micro_batch=3)) == pytest.approx(state.best_dev_loss, rel=1e-5)


def test_order_is_a_pure_function_and_a_permutation() -> None:
    lengths = [3 + (7 * i) % 40 for i in range(101)]
    for epoch in range(2):
        batches = epoch_batches(lengths, batch=8, seed=1, epoch=epoch)
        assert batches == epoch_batches(lengths, batch=8, seed=1, epoch=epoch)
        assert sorted(i for b in batches for i in b) == list(range(101))
        assert len(batches) == 13
    assert epoch_batches(lengths, batch=8, seed=1, epoch=0) != epoch_batches(lengths, batch=8, seed=1, epoch=1)
    assert epoch_batches(lengths, batch=8, seed=1, epoch=0) != epoch_batches(lengths, batch=8, seed=2, epoch=0)


@pytest.mark.parametrize(("rows", "start"), [(101, 0), (101, 5), (101, 13), (101, 40), (16, 2), (3, 1)])
def test_updates_taken_up_anywhere_go_on_as_if_begun_at_the_start(rows: int, start: int) -> None:
    lengths = [3 + (7 * i) % 40 for i in range(rows)]
    per_epoch = -(-rows // 8)
    epochs = [batch for epoch in range(6) for batch in epoch_batches(lengths, batch=8, seed=1, epoch=epoch)]
    whole = list(islice(updates(lengths, batch=8, seed=1), 6 * per_epoch))
    assert whole == epochs
    assert list(islice(updates(lengths, batch=8, seed=1, start=start), 3)) == epochs[start : start + 3]


@pytest.mark.parametrize(("schedule", "last"), [("linear", 0.1), ("cosine", 0.0245), ("constant", 1.0)])
def test_learning_rate_schedules(schedule: str, last: float) -> None:
    rates = [lr_at(u, peak=1.0, total_updates=12, warmup_updates=2, schedule=schedule) for u in range(12)]  # type: ignore[arg-type]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(last, abs=1e-3)


def test_checkpoint_holds_no_pickle(folder: Path, tmp_path: Path) -> None:
    _fit(folder, tmp_path)
    names = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"state.safetensors", "state.json", "manifest.json"}
    manifest = json.loads(next(tmp_path.rglob("manifest.json")).read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {"state.safetensors", "state.json"}
