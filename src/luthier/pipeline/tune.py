"""Stage: fine-tune. Learning rate from probes on dev, then the run itself, then the adapter in the standard PEFT format."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from luthier.core.errors import RunError
from luthier.core.hashing import digest, sha256_file
from luthier.core.types import TokenRow
from luthier.generate.local import peak_memory_gib, reset_peak_memory
from luthier.models.backbone import use_layout_attention
from luthier.models.load import ModelInfo, open_model
from luthier.models.lora import LoraSettings, add_lora, save_adapter
from luthier.pipeline.prepare import Prepared
from luthier.pipeline.record import CurveStep, Probe, TrainRecord
from luthier.pipeline.settings import Settings
from luthier.store.files import atomic_write_json
from luthier.store.journal import append, read
from luthier.store.layout import RunFolder
from luthier.store.stages import finish_stage, stage_is_done
from luthier.train.loop import FitSettings, FitState, StepRecord, fit
from luthier.train.optim import make_optimiser
from luthier.train.precision import Precision
from luthier.train.search import LrProbe, best_learning_rate, probe_learning_rate

MAX_DEV_ROWS = 128  # rows of dev that the training loss is checked on; the arms are chosen on `arms.dev_items`
AUTO_EPOCH_ROWS = 3000  # rows seen, when the user names no number of epochs
MAX_AUTO_EPOCHS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainInputs:
    """What the training depends on, and whom to tell."""

    model_path: Path
    model_info: ModelInfo
    precision: Precision
    train: Sequence[TokenRow]
    dev: Sequence[TokenRow]
    on_progress: Callable[[str, float, float, str], None]
    should_stop: Callable[[], bool]

    @classmethod
    def of(cls, prepared: Prepared, on_progress: Callable[[str, float, float, str], None], should_stop: Callable[[], bool]) -> TrainInputs:
        """From what `prepare` returned."""
        return cls(
            model_path=prepared.model_path,
            model_info=prepared.info,
            precision=prepared.precision,
            train=prepared.train_rows,
            dev=prepared.dev_rows,
            on_progress=on_progress,
            should_stop=should_stop,
        )


def choose_epochs(named: float | None, num_rows: int) -> tuple[float, str]:
    """The number of epochs and why."""
    if named is not None:
        return named, f"{named:g} epochs: set by you"
    epochs = min(MAX_AUTO_EPOCHS, max(1, round(AUTO_EPOCH_ROWS / num_rows)))
    return float(
        epochs
    ), f"{epochs} epochs: about {AUTO_EPOCH_ROWS:,} rows seen, at most {MAX_AUTO_EPOCHS} times each; early stopping on dev loss"


def fit_settings(settings: Settings, num_rows: int, epochs: float, lr: float) -> FitSettings:
    """The loop's settings, with what follows from the number of rows worked out."""
    per_epoch = -(-num_rows // settings.train.batch)
    total = max(1, round(per_epoch * epochs))
    return FitSettings(
        lr=lr,
        batch=settings.train.batch,
        micro_batch=settings.train.micro_batch,
        total_updates=total,
        warmup_updates=round(total * settings.train.warmup_ratio),
        schedule=settings.train.schedule,
        max_grad_norm=settings.train.max_grad_norm,
        eval_every=max(5, total // 5) if settings.train.eval_every is None else settings.train.eval_every,
        patience=settings.train.patience,
        save_every=settings.train.save_every,
        seed=settings.seed,
    )


def tune(settings: Settings, folder: RunFolder, inputs: TrainInputs) -> TrainRecord:
    """Train, or take up where an earlier call was cut off; a finished training of the same inputs is returned at once.

    Raises RunError when every learning rate diverged.
    """
    epochs, why_epochs = choose_epochs(settings.train.epochs, len(inputs.train))
    key = _key(settings, inputs, epochs)
    record_path = folder.train / "train.json"
    if stage_is_done(folder, "train", key):
        return _read_record(record_path)
    folder.train.mkdir(parents=True, exist_ok=True)
    reset_peak_memory()
    lora = LoraSettings(r=settings.train.lora_r, alpha=settings.train.lora_alpha, dropout=settings.train.lora_dropout)
    model = add_lora(open_model(inputs.model_path, dtype=inputs.precision.dtype), lora, seed=settings.seed)
    use_layout_attention(model.get_base_model())
    dev = inputs.dev[:MAX_DEV_ROWS]
    probes = _search(settings, folder, inputs, model, dev, key, epochs)
    lr = settings.train.lr if settings.train.lr is not None else next(p.lr for p in probes if p.chosen)
    wanted = fit_settings(settings, len(inputs.train), epochs, lr)
    optimiser = make_optimiser(model, weight_decay=settings.train.weight_decay, compute_dtype=inputs.precision.dtype)
    torch.manual_seed(settings.seed)  # dropout is torch's own stream: from here on its state is saved with each checkpoint
    state = fit(
        model,
        optimiser,
        inputs.train,
        dev,
        wanted,
        checkpoints=folder.train / "checkpoints",
        key=key,
        on_step=_reporter(inputs, wanted, folder),
        should_stop=inputs.should_stop,
    )
    with torch.no_grad():
        for name, param in optimiser.params.items():
            param.data = optimiser.masters[name].data  # the adapter is stored in fp32
    save_adapter(model, folder.adapter, base_info=inputs.model_info)
    method = f"LoRA r={lora.r}, alpha={lora.alpha:g}, all linear layers, {sum(m.numel() for m in optimiser.masters.values()):,} weights"
    record = _record(folder, inputs, wanted, state, probes, method=method, notes=(why_epochs, *_skipped(state)))
    atomic_write_json(record_path, asdict(record))
    finish_stage(folder, "train", key, [record_path, *sorted(p for p in folder.adapter.iterdir() if p.is_file())])
    return record


def _record(
    folder: RunFolder,
    inputs: TrainInputs,
    wanted: FitSettings,
    state: FitState,
    probes: tuple[Probe, ...],
    *,
    method: str,
    notes: tuple[str, ...],
) -> TrainRecord:
    """What came of the training, for the run's record."""
    return TrainRecord(
        method=method,
        lr=wanted.lr,
        probes=probes,
        epochs=state.step / -(-len(inputs.train) // wanted.batch),
        updates=state.step,
        total_updates=wanted.total_updates,
        best_step=state.best_step,
        best_dev_loss=state.best_dev_loss,
        stopped_early=state.stopped_early,
        num_rows=len(inputs.train),
        tokens_per_s=steady_tokens_per_s(state.history),
        train_seconds=state.train_seconds,
        search_seconds=sum(p.seconds for p in probes),
        peak_mem_gib=peak_memory_gib(),
        precision=inputs.precision.reason,
        adapter=str(folder.adapter / "adapter_model.safetensors"),
        adapter_sha256=sha256_file(folder.adapter / "adapter_model.safetensors"),
        curve=tuple(_curve_step(step) for step in state.history),
        notes=notes,
    )


def _key(settings: Settings, inputs: TrainInputs, epochs: float) -> str:
    """Digest of all that the trained weights depend on; how often to save, and in what pieces a batch is computed, are not part of it."""
    train = settings.train.model_dump(mode="json", exclude={"save_every", "micro_batch"})
    rows = [[row.input_ids, row.is_label] for row in (*inputs.train, *inputs.dev[:MAX_DEV_ROWS])]
    return digest([train, settings.seed, epochs, inputs.model_info.sha256, str(inputs.precision.dtype), digest(rows)])


def _read_record(path: Path) -> TrainRecord:
    record = dict(json.loads(path.read_text(encoding="utf-8")))
    record["probes"] = tuple(Probe(**p) for p in record["probes"])
    record["curve"] = tuple(CurveStep(**c) for c in record["curve"])
    record["notes"] = tuple(record["notes"])
    return TrainRecord(**record)


def _search(
    settings: Settings, folder: RunFolder, inputs: TrainInputs, model: nn.Module, dev: Sequence[TokenRow], key: str, epochs: float
) -> tuple[Probe, ...]:
    """Probe the candidate learning rates; finished probes are read from their journal."""
    if settings.train.lr is not None:
        return ()
    journal = folder.train / "probes.jsonl"
    known = {r["lr"]: r for r in read(journal) if r["key"] == key} if journal.exists() else {}
    base = fit_settings(settings, len(inputs.train), epochs, lr=0.0)
    updates = min(settings.train.lr_probe_steps, base.total_updates)
    for number, lr in enumerate(settings.train.lr_candidates):
        if lr in known:
            continue

        def tell(step: StepRecord, state: FitState, number: int = number, lr: float = lr) -> None:
            del state
            total = len(settings.train.lr_candidates) * updates
            inputs.on_progress("learning rate", number * updates + step.step, total, f"lr {lr:g}: loss {_show(step.loss)}")

        torch.manual_seed(settings.seed)
        probe = probe_learning_rate(
            model,
            inputs.train,
            dev,
            base,
            lr,
            probe_updates=updates,
            weight_decay=settings.train.weight_decay,
            on_step=tell,
            should_stop=inputs.should_stop,
        )
        known[lr] = {"key": key, **asdict(probe)}
        append(journal, known[lr])
    tried = [
        LrProbe(lr=r["lr"], dev_loss=r["dev_loss"], updates=r["updates"], seconds=r["seconds"])
        for lr in settings.train.lr_candidates
        if (r := known[lr])
    ]
    best = best_learning_rate(tried)
    if best is None:
        raise RunError(
            "training diverged at every learning rate tried",
            where="train.lr_candidates",
            fix=f"--lr {min(settings.train.lr_candidates) / 10:g} --fresh",
        )
    return tuple(Probe(**asdict(p), chosen=p.lr == best) for p in tried)


def _show(loss: float | None) -> str:
    return "not finite, skipped" if loss is None else f"{loss:.3f}"


def _reporter(inputs: TrainInputs, wanted: FitSettings, folder: RunFolder) -> Callable[[StepRecord, FitState], None]:
    """Journal every update and show loss, tokens/s and dev loss."""
    recent: list[tuple[int, float]] = []

    def tell(step: StepRecord, state: FitState) -> None:
        append(folder.journal_steps, asdict(step))
        recent.append((step.num_row_tokens, step.seconds))
        del recent[:-20]
        tokens_per_s = sum(t for t, _ in recent) / max(1e-9, sum(s for _, s in recent))
        best = "" if state.best_dev_loss is None else f", best dev loss {state.best_dev_loss:.3f}"
        inputs.on_progress("fine-tune", step.step, wanted.total_updates, f"loss {_show(step.loss)}{best}, {tokens_per_s:,.0f} tokens/s")

    return tell


def steady_tokens_per_s(history: Sequence[StepRecord]) -> float | None:
    """Row tokens over time, the first two updates (warm-up of allocators and kernels) excluded; None below three updates."""
    steady = history[2:]
    return sum(s.num_row_tokens for s in steady) / sum(s.seconds for s in steady) if steady else None


def _curve_step(step: StepRecord) -> CurveStep:
    return CurveStep(
        step=step.step, loss=step.loss, dev_loss=step.dev_loss, lr=step.lr, tokens_per_s=step.num_row_tokens / step.seconds, note=step.note
    )


def _skipped(state: FitState) -> tuple[str, ...]:
    return (f"{state.skipped} updates were not finite and were skipped",) if state.skipped else ()
