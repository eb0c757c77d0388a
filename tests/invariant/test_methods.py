"""Every way of training, through the stage that `luthier train` runs: each option changes something, and what is handed over answers
like what was trained. On a tiny model, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.console import quiet
from luthier.core.errors import ConfigError, ModelError, RunError
from luthier.core.types import TokenRow
from luthier.generate.likelihood import token_losses
from luthier.generate.local import LocalModel
from luthier.models.backbone import use_layout_attention
from luthier.models.load import inspect_folder, open_model
from luthier.pipeline.open import open_tuned
from luthier.pipeline.plan import TrainInputs, make_plan, measure_forecast
from luthier.pipeline.record import TrainRecord
from luthier.pipeline.setting_groups import TrainSettings
from luthier.pipeline.settings import Settings, load_settings
from luthier.pipeline.tune import tune
from luthier.store.layout import RunFolder, open_run
from luthier.tokens.tree import tree_batch
from luthier.train import loop, optim, step
from luthier.train.forecast import planned_updates
from luthier.train.loop import ran_out_of_memory
from luthier.train.objectives.sft import LossSum, neftune_noise, sft_loss
from luthier.train.optim import lr_at, make_optimiser
from luthier.train.parallel import ALONE
from luthier.train.precision import choose_precision

IDS = torch.tensor([[1, 40, 41, 42, 43]])
BASE = {"train.lr": 5e-3, "train.epochs": 2, "train.batch": 8, "model.dtype": "float32", "train.patience": 0, "train.eval_every": 4}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


def _rows(n: int) -> tuple[TokenRow, ...]:
    rows: list[TokenRow] = []
    for i in range(n):
        body = tuple(20 + (37 * i + 11 * j) % 300 for j in range(3 + i % 6))
        ids = (10, 11, 12, *body, 13, *body[:2], 2)
        rows.append(TokenRow(example_id=str(i), input_ids=ids, is_label=(False,) * (len(ids) - 3) + (True,) * 3))
    return tuple(rows)


ROWS = _rows(44)


def _inputs(model_path: Path, precision: str = "float32") -> TrainInputs:
    return TrainInputs(
        model_path=model_path, model_info=inspect_folder(model_path), precision=choose_precision(precision), train=ROWS[:36], dev=ROWS[36:],
        on_progress=quiet, should_stop=lambda: False, world=ALONE,
    )  # fmt: skip


def _settings(**changes: Any) -> Settings:
    return load_settings(None, {**BASE, **{f"train.{key}": value for key, value in changes.items()}})


def _tune(model_path: Path, root: Path, precision: str = "float32", /, **changes: Any) -> tuple[RunFolder, TrainRecord]:
    settings = _settings(**changes)
    with open_run(root, settings) as folder:
        return folder, tune(settings, folder, _inputs(model_path, precision))


@pytest.fixture(scope="module")
def plain(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRecord:
    return _tune(model_path, tmp_path_factory.mktemp("plain") / "run")[1]


OPTIONS: dict[str, dict[str, Any]] = {
    "r": {"lora_r": 4}, "alpha": {"lora_alpha": 8}, "dropout": {"lora_dropout": 0.3}, "rslora": {"lora_rslora": True},
    "pissa": {"lora_init": "pissa"}, "dora": {"method": "dora"}, "dora rslora": {"method": "dora", "lora_rslora": True},
    "freeze": {"method": "freeze", "last_layers": 1}, "freeze more": {"method": "freeze"}, "full": {"method": "full"},
    "neftune": {"neftune_alpha": 5.0}, "adafactor": {"optimiser": "adafactor"}, "muon": {"optimiser": "muon"},
    "full muon": {"method": "full", "optimiser": "muon"}, "cosine": {"schedule": "cosine"}, "constant": {"schedule": "constant"},
    "wsd": {"schedule": "wsd"}, "decay": {"weight_decay": 0.5}, "clip": {"max_grad_norm": 0.01}, "warmup": {"warmup_ratio": 0.5},
    "pissa rslora": {"lora_init": "pissa", "lora_rslora": True}, "lr": {"lr": 2e-3}, "epochs": {"epochs": 1}, "batch": {"batch": 4},
}  # fmt: skip


def _spoken_loss(local: LocalModel, rows: Sequence[TokenRow]) -> float:
    """Mean loss over all label tokens, by the pass that answers are written with."""
    return float(torch.cat([token_losses(local.voices, tree_batch([row])) for row in rows]).mean())


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_every_option_changes_the_result_and_the_result_is_what_was_trained(
    model_path: Path, tmp_path: Path, plain: TrainRecord, changes: dict[str, Any]
) -> None:
    folder, record = _tune(model_path, tmp_path / "run", **changes)
    assert record.weights_sha256 != plain.weights_sha256
    losses = [step.loss for step in record.curve if step.loss is not None]
    assert losses[-1] < losses[0]  # it learns
    tuned = open_tuned(folder, model_path, choose_precision("float32"))
    got = _spoken_loss(tuned, ROWS[36:])
    assert got == pytest.approx(record.best_dev_loss, rel=2e-5)  # read back from disk, it answers as it did in training
    wanted = {"epochs": 5, "batch": 18}.get(next(iter(changes)), 10)
    assert record.predicted is not None and record.predicted.updates == record.total_updates == wanted


def test_the_search_for_a_rate_follows_its_settings(model_path: Path, tmp_path: Path) -> None:
    _, few = _tune(model_path, tmp_path / "few", lr=None, lr_candidates=[1e-5, 1e-2], lr_probe_steps=4)
    assert [(p.lr, p.updates, p.chosen) for p in few.probes] == [(1e-5, 4, False), (1e-2, 4, True)] and few.lr == 1e-2
    _, usual = _tune(model_path, tmp_path / "usual", lr=None)
    assert [p.lr for p in usual.probes] == [5e-4, 1e-3, 2e-3] and usual.lr in (5e-4, 1e-3, 2e-3)
    assert {p.updates for p in usual.probes} == {10}  # 30, but no more than the training has


@pytest.mark.parametrize("changes", [{}, {"method": "full"}, {"optimiser": "muon"}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_search_leaves_the_training_as_if_there_had_been_none(
    model_path: Path, tmp_path: Path, precision: str, changes: dict[str, Any]
) -> None:
    """Rates are tried with the optimiser of the run itself: weights, masters and moments are as before, to the bit."""
    _, searched = _tune(model_path, tmp_path / "searched", precision, lr=None, lr_candidates=[1e-2, 1e-7], lr_probe_steps=4, **changes)
    _, told = _tune(model_path, tmp_path / "told", precision, lr=1e-2, **changes)
    assert searched.lr == 1e-2 and searched.weights_sha256 == told.weights_sha256
    assert [step.loss for step in searched.curve] == [step.loss for step in told.curve]


def test_looks_patience_and_checkpoints_follow_their_settings(model_path: Path, tmp_path: Path, plain: TrainRecord) -> None:
    def looks(record: TrainRecord) -> list[int]:
        return [step.step for step in record.curve if step.dev_loss is not None]

    assert looks(plain) == [4, 8, 10]
    folder, often = _tune(model_path, tmp_path / "often", eval_every=3, save_every=4)
    assert looks(often) == [3, 6, 9, 10]
    assert sorted(p.name for p in (folder.train / "checkpoints").iterdir()) == ["step-000008", "step-000010"]
    folder, last = _tune(model_path, tmp_path / "last", eval_every=0, save_every=0)
    assert looks(last) == [10] and [p.name for p in (folder.train / "checkpoints").iterdir()] == ["step-000010"]
    for patience, stopped in ((2, True), (0, False)):
        _, record = _tune(model_path, tmp_path / f"p{patience}", lr=0.5, epochs=6, eval_every=1, patience=patience)
        assert record.stopped_early == stopped and (record.updates < 30) == stopped
        assert record.updates == record.best_step + patience if stopped else record.updates == 30


ELSEWHERE = {  # setting -> the test that it does something
    "micro_batch": "test_when_memory_runs_out_the_pieces_halve_and_the_update_stays",
    "checkpoint_activations": "test_activation_checkpointing_computes_more_and_the_same",
    "lr_candidates": "test_the_search_for_a_rate_follows_its_settings",
    "lr_probe_steps": "test_the_search_for_a_rate_follows_its_settings",
    "eval_every": "test_looks_patience_and_checkpoints_follow_their_settings",
    "patience": "test_looks_patience_and_checkpoints_follow_their_settings",
    "save_every": "test_looks_patience_and_checkpoints_follow_their_settings",
}


def test_every_setting_of_training_is_in_a_test() -> None:
    tested = {key for changes in OPTIONS.values() for key in changes} | set(ELSEWHERE)
    assert tested == set(TrainSettings.model_fields) - {"shard"}  # one process has nothing to share: tests/e2e/test_sharded.py
    assert all(callable(globals()[name]) for name in ELSEWHERE.values())
    for key in ("method", "optimiser", "schedule", "lora_init"):
        values = set(get_args(TrainSettings.model_fields[key].annotation)) - {TrainSettings.model_fields[key].default}
        assert values <= {changes.get(key) for changes in OPTIONS.values()}, key


def test_adamw_is_fused_and_one_call_for_all_weights(model_path: Path) -> None:
    optimiser = make_plan(_settings(), _inputs(model_path)).make_optimiser()
    (adamw,) = optimiser.torch_optimisers
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["fused"] is True
    assert [p is optimiser.flat_M for group in adamw.param_groups for p in group["params"]] == [True]


def test_the_forecast_computes_the_largest_piece_and_the_largest_update(model_path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """One long row among short ones makes the largest piece; the most tokens are in another update."""
    long = TokenRow(example_id="long", input_ids=tuple(range(20, 320)), is_label=(False,) * 290 + (True,) * 10)
    middle = [
        replace(long, example_id=f"mid {i}", input_ids=tuple(range(20 + i, 170 + i)), is_label=long.is_label[-150:]) for i in range(4)
    ]
    train = (*middle, long, *ROWS[:4])  # three updates: the four short ones, the four of the middle, the long one
    monkeypatch.setattr(step, "MICRO_TOKENS", 200)
    computed: list[list[str]] = []
    plain_step = loop.train_step

    def seen(model: Any, optimiser: Any, rows: Any, **options: Any) -> Any:
        computed.append(sorted(row.example_id for row in rows))
        assert options["lr"] == 0.0
        return plain_step(model, optimiser, rows, **options)

    monkeypatch.setattr(loop, "train_step", seen)
    inputs = replace(_inputs(model_path), train=train)
    plan = make_plan(_settings(batch=4), inputs)
    measure_forecast(plan, plan.make_optimiser(), inputs, tmp_path)
    assert computed[0] == ["long"] and computed[-1] == ["mid 0", "mid 1", "mid 2", "mid 3"] and len(computed) == 4


def test_a_dora_adapter_is_peft_s_and_a_pissa_adapter_is_plain_lora(model_path: Path, tmp_path: Path) -> None:
    for changes in ({"method": "dora"}, {"lora_init": "pissa"}):
        folder, _ = _tune(model_path, tmp_path / str(changes), **changes)
        ours = open_tuned(folder, model_path, choose_precision("float32"))
        theirs = PeftModel.from_pretrained(open_model(model_path, dtype=torch.float32), str(folder.adapter)).eval()
        rows = ROWS[:1]
        ids = torch.tensor([rows[0].input_ids])
        labels = torch.tensor([[t if wanted else -100 for t, wanted in zip(rows[0].input_ids, rows[0].is_label, strict=True)]])
        with torch.no_grad():
            want = float(theirs(input_ids=ids, labels=labels).loss)
        assert _spoken_loss(ours, rows) == pytest.approx(want, rel=1e-5)


def test_a_trained_model_is_a_model_folder_of_its_own(model_path: Path, tmp_path: Path) -> None:
    folder, record = _tune(model_path, tmp_path / "run", method="full")
    assert record.weights == str(folder.model) and not folder.adapter.exists()
    info = inspect_folder(folder.model)
    assert info.has_chat_template and info.sha256 != inspect_folder(model_path).sha256
    assert "luthier" not in (folder.model / "config.json").read_text(encoding="utf-8")  # opens without us


def test_activation_checkpointing_computes_more_and_the_same(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    from luthier.models import surgery

    attend = surgery.tree_attention

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return attend(*args, **options)

    monkeypatch.setattr(surgery, "tree_attention", counted)
    _, usual = _tune(model_path, tmp_path / "a")
    num_usual = len(calls)
    _, spared = _tune(model_path, tmp_path / "b", checkpoint_activations=True)
    assert len(calls) - num_usual > 1.5 * num_usual
    assert usual.weights_sha256 == spared.weights_sha256


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"method": "qlora"}, "NVIDIA"), ({"method": "full", "lora_r": 4}, "train.lora_r"),
        ({"method": "freeze", "lora_dropout": 0.1}, "lora_dropout"), ({"method": "full", "lora_init": "pissa"}, "train.lora_init"),
        ({"method": "dora", "lora_init": "pissa"}, "PiSSA"), ({"last_layers": 1}, "train.last_layers"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        _settings(**changes)
    assert "--set train." in str(caught.value)


def test_more_layers_than_there_are_is_refused(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="2 layers"):
        _tune(model_path, tmp_path / "run", method="freeze", last_layers=3)


def test_forecast_moves_no_weight_and_counts_right(model_path: Path, tmp_path: Path) -> None:
    settings, inputs = _settings(lora_dropout=0.1), _inputs(model_path)
    plan = make_plan(settings, inputs)
    before = {name: p.detach().clone() for name, p in plan.trained.model.named_parameters()}
    optimiser = plan.make_optimiser()
    predicted = measure_forecast(plan, optimiser, inputs, tmp_path)
    assert all(torch.equal(before[name], p) for name, p in plan.trained.model.named_parameters())
    assert not any(o.state for o in optimiser.torch_optimisers) and not optimiser.grad_M.any()
    updates = planned_updates(inputs.train, plan.fit)
    assert len(updates) == predicted.updates == 10
    assert (
        predicted.row_tokens == sum(len(row.input_ids) for rows in updates for row in rows) == 2 * sum(len(r.input_ids) for r in ROWS[:36])
    )
    assert predicted.seconds > 0 and predicted.peak_mem_gib is not None and predicted.disk_mib > 0


STORED: dict[str, dict[str, Any]] = {
    "lora": {"lora_r": 64}, "few": {"lora_r": 64, "save_every": 3}, "pissa": {"lora_init": "pissa"}, "dora": {"method": "dora"},
    "full": {"method": "full"}, "full, few": {"method": "full", "save_every": 3, "eval_every": 0}, "freeze": {"method": "freeze"},
    "full muon": {"method": "full", "optimiser": "muon"}, "full adafactor": {"method": "full", "optimiser": "adafactor"},
}  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", STORED.values(), ids=STORED)
def test_forecast_of_disk_is_right(model_path: Path, tmp_path: Path, precision: str, changes: dict[str, Any]) -> None:
    _, record = _tune(model_path, tmp_path / "run", precision, **changes)
    assert record.predicted is not None and record.disk_mib == pytest.approx(record.predicted.disk_mib, rel=0.1)


def test_gradients_of_pieces_add_up_in_fp32(model_path: Path) -> None:
    model = open_model(model_path, dtype=torch.bfloat16)
    model.requires_grad_(requires_grad=True)
    optimiser = make_optimiser(model, weight_decay=0.0, compute_dtype=torch.bfloat16)
    name, param = next(iter(optimiser.params.items()))
    for value in (256.0, 1.0, 1.0, 1.0, 1.0):  # in bf16, 256 + 1 is 256
        param.grad = torch.full_like(param, value)
        optimiser.accumulate()
    assert float(optimiser.grad_M[0]) == 260.0 and param.grad is None, name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_taken_during_the_backward_pass_are_the_same_to_the_bit(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, precision: torch.dtype
) -> None:
    """Three pieces, a matrix that is both embedding and output, and never more than a few gradients at a time."""
    summed: list[torch.Tensor] = []
    for early in (2**60, 0):
        monkeypatch.setattr(optim, "EARLY_WEIGHTS", early)
        model = open_model(model_path, dtype=precision)
        model.requires_grad_(requires_grad=True)
        use_layout_attention(model)
        optimiser = make_optimiser(model, weight_decay=0.0, compute_dtype=precision)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        held: list[int] = []
        for rows in (ROWS[:5], ROWS[5:6], ROWS[6:12]):
            with optimiser.collecting():
                sft_loss(model, tree_batch(rows)).sum.backward()
            held.append(sum(p.grad is not None for p in optimiser.params.values()))
            optimiser.accumulate()
        assert held == [0 if early == 0 else len(optimiser.params)] * 3
        assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in optimiser.params.values())  # nothing is left behind
        summed.append(optimiser.grad_M.clone())
    assert torch.equal(summed[0], summed[1]) and summed[0].abs().max() > 0


@pytest.mark.parametrize("changes", [{"eval_every": 0}, {"eval_every": 4}, {"eval_every": 2}])
def test_whole_weights_are_copied_only_while_an_update_may_spoil_them(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    """The best ones so far, as they compute; the last ones of all are in the model anyway. Forecast and checkpoint follow."""
    copies: list[torch.dtype] = []
    plain_copy = optim.Optimiser.copy_result

    def counted(self: optim.Optimiser) -> dict[str, torch.Tensor]:
        copied = plain_copy(self)
        copies.append(next(iter(copied.values())).dtype)
        return copied

    monkeypatch.setattr(optim.Optimiser, "copy_result", counted)
    folder, record = _tune(model_path, tmp_path / "run", "bfloat16", method="full", lr=1e-3, epochs=2, **changes)
    losses = {step.step: step.dev_loss for step in record.curve if step.dev_loss is not None}
    assert list(losses.values()) == sorted(losses.values(), reverse=True)  # every look was the best so far
    in_forecast = int(changes["eval_every"] > 0)
    assert copies == [torch.bfloat16] * (in_forecast + len(losses) - 1)
    assert record.predicted is not None and record.disk_mib == pytest.approx(record.predicted.disk_mib, rel=0.1)
    tuned = open_tuned(folder, model_path, choose_precision("bfloat16"))
    assert _spoken_loss(tuned, ROWS[36:]) == pytest.approx(record.best_dev_loss, rel=2e-3)


def _short_of_memory(monkeypatch: pytest.MonkeyPatch, max_rows: int, *, where: str) -> None:
    """As if memory held no more than so many rows at once, in the forward pass or in the backward pass."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    def loss(model: Any, batch: Any, **options: Any) -> LossSum:
        found = sft_loss(model, batch, **options)
        if batch.tree.leaf_grid_RL.shape[0] > max_rows:
            if where == "forward" or not torch.is_grad_enabled():
                raise MemoryError
            return LossSum(Fails.apply(found.sum), found.weight, found.logs)
        return found

    monkeypatch.setattr(step, "sft_loss", loss)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_when_memory_runs_out_the_pieces_halve_and_the_update_stays(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, dropout: float
) -> None:
    _, small = _tune(model_path, tmp_path / "small", micro_batch=2, lora_dropout=dropout)
    _short_of_memory(monkeypatch, 2, where=where)
    _, halved = _tune(model_path, tmp_path / "halved", micro_batch=8, lora_dropout=dropout)
    assert [s.loss for s in halved.curve] == pytest.approx([s.loss for s in small.curve], rel=1e-6)
    assert "memory ran out" in halved.curve[0].note and not any(s.note for s in halved.curve[1:])
    assert halved.updates == small.updates == 10
    assert halved.weights_sha256 == small.weights_sha256


def test_when_memory_runs_out_in_the_optimiser_nothing_is_lost_or_doubled(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its moments are what an update needs last: without them no weight has moved, and the same rows are computed again."""
    _, small = _tune(model_path, tmp_path / "small", micro_batch=4)
    plain_step, calls = optim._step, [0]

    def short(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] in (1, 8):  # of the forecast, and of the training
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return plain_step(*args, **options)

    monkeypatch.setattr(optim, "_step", short)
    _, halved = _tune(model_path, tmp_path / "halved", micro_batch=8)
    assert calls[0] == 4 + 10 + 2  # the forecast's updates, the training's, and the two attempts that failed
    assert "memory ran out" in halved.curve[2].note
    assert [s.loss for s in halved.curve] == pytest.approx([s.loss for s in small.curve], rel=1e-6)
    assert halved.updates == small.updates == 10


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_an_optimiser_that_fails_between_two_matrices_ends_the_run_and_the_checkpoint_goes_on(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Some matrices have moved, some not: made again, the update would move the first ones twice."""
    _, whole = _tune(model_path, tmp_path / "whole", optimiser=name, save_every=2)
    plain, calls = optim.apply_update, [0]

    def fails_late(optimiser: Any, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4 + 5:  # behind the forecast's
            last = optimiser.torch_optimisers[-1]
            step_of = last.step

            def half() -> None:
                last.step = step_of
                step_of()
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

            last.step = half
        return plain(optimiser, *args, **options)

    monkeypatch.setattr(step, "apply_update", fails_late)
    with pytest.raises(RunError, match="cannot be made again"):
        _tune(model_path, tmp_path / "run", optimiser=name, save_every=2)
    monkeypatch.undo()
    _, again = _tune(model_path, tmp_path / "run", optimiser=name, save_every=2)
    assert again.weights_sha256 == whole.weights_sha256 and [s.loss for s in again.curve] == [s.loss for s in whole.curve]


def test_when_not_even_one_row_fits_three_remedies_are_named(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _short_of_memory(monkeypatch, 0, where="forward")
    with pytest.raises(RunError, match="single row") as caught:
        _tune(model_path, tmp_path / "run")
    assert caught.value.fix.count("; or") == 2


def test_memory_errors_are_told_from_others() -> None:
    assert ran_out_of_memory(MemoryError()) and ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    for said in ("std::bad_alloc", "could not create a primitive", "[enforce fail] DefaultCPUAllocator: not enough memory"):
        assert ran_out_of_memory(RuntimeError(said))
    for said in ("shape mismatch", "could not create a primitive descriptor for a matmul primitive"):
        assert not ran_out_of_memory(RuntimeError(said))


def test_neftune_noise_has_the_size_of_the_paper() -> None:
    batch = tree_batch(ROWS[:5], share_prefix=False)
    torch.manual_seed(0)
    noise = neftune_noise(batch, 64, alpha=5.0)
    at = 0
    for row in ROWS[:5]:
        n = len(row.input_ids)
        bound = 5.0 / (n * 64) ** 0.5
        part = noise[at : at + n].abs()
        assert part.max() <= bound and part.max() > 0.95 * bound
        at += n
    with pytest.raises(ValueError, match="prefix"):
        neftune_noise(tree_batch(ROWS[:5]), 64, alpha=5.0)


def test_wsd_holds_the_rate_until_the_last_fifth() -> None:
    rates = [lr_at(u, peak=1.0, total_updates=20, warmup_updates=2, schedule="wsd") for u in range(20)]
    assert rates[:2] == [0.5, 1.0] and rates[2:17] == [1.0] * 15 and rates[17:] == pytest.approx([0.75, 0.5, 0.25])
