"""Stage: report. Record and verdict become the page, the model card, the closing lines and the JSON result."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import fmean

from luthier.core.types import ArmResult, Estimate, Verdict
from luthier.metrics.catalogue import metrics_of
from luthier.metrics.cost import cost_per_1000, cost_per_1000_correct
from luthier.metrics.latency import latency_summary
from luthier.models.catalogue import list_models
from luthier.pipeline.record import RunRecord, TrainRecord
from luthier.pipeline.settings import Settings, origins
from luthier.report import numbers
from luthier.report.card import render_card
from luthier.report.html import render_html
from luthier.report.model import ArmRow, CurvePoint, LrTrial, ReportModel, SplitSizes
from luthier.report.terminal import verdict_lines
from luthier.stats.intervals import mean_estimate
from luthier.store.files import atomic_write_json, atomic_write_text
from luthier.store.layout import RunFolder
from luthier.verdict.settings import DecisionRule


def arm_row(arm: ArmResult, record: RunRecord, rule: DecisionRule) -> ArmRow:
    """What the table shows of one arm; costs and scores with their intervals."""
    waits = latency_summary(arm.latencies_s)
    return ArmRow(
        name=arm.name,
        family=arm.family,
        model=arm.model,
        description=arm.description,
        score=_estimate(arm, record.metric, record.seed),
        cost_per_1000=cost_per_1000(arm, rule.prices, seed=record.seed),
        cost_per_1000_correct=cost_per_1000_correct(arm, record.metric, rule.prices, seed=record.seed),
        metrics={name: _estimate(arm, name, record.seed) for name in metrics_of(record.data.profile)} if arm.items else {},
        latency_p50_s=waits.p50,
        latency_p95_s=waits.p95,
        prompt_tokens=_mean([i.num_prompt_tokens for i in arm.items]),
        new_tokens=_mean([i.num_new_tokens for i in arm.items]),
        peak_mem_gib=arm.peak_mem_gib,
        dev_score=arm.dev_score,
        dev_n=arm.dev_n,
        train_seconds=arm.train_seconds,
        failed=arm.failed,
    )


def _estimate(arm: ArmResult, metric: str, seed: int) -> Estimate:
    scored = [(value, item.cluster) for item in arm.items if (value := item.values.get(metric)) is not None]
    return mean_estimate([value for value, _ in scored], [cluster for _, cluster in scored], seed=seed)


def _training_words(train: TrainRecord, seed: int) -> dict[str, str]:
    """How the adapter came about, for the page and the card."""
    searched = "; ".join(f"{p.lr:g}: {'diverged' if p.dev_loss is None else f'{p.dev_loss:.3f}'}" for p in train.probes)
    stopped = f"{train.updates:,} of {train.total_updates:,} updates" + (", stopped early on dev loss" if train.stopped_early else "")
    kept = f"after update {train.best_step:,}: these weights were kept"
    best = "not measured" if train.best_dev_loss is None else f"{train.best_dev_loss:.4f}, {kept}"
    speed = "" if train.tokens_per_s is None else f" at {train.tokens_per_s:,.0f} tokens/s"
    return {
        "method": train.method,
        "learning rate": f"{train.lr:g}" + (f" (dev loss of short trials: {searched})" if searched else " (set by you)"),
        "length": f"{train.num_rows:,} rows, {train.epochs:.3g} epochs, {stopped}",
        "best dev loss": best,
        "seed": str(seed),
        "time": f"{numbers.duration(train.train_seconds)}{speed}; search of the learning rate {numbers.duration(train.search_seconds)}",
        "peak memory": numbers.gib(train.peak_mem_gib),
        **_forecast_words(train),
        "number format": train.precision,
        "weights": f"{train.weights}, SHA-256 {train.weights_sha256}",
    } | {f"note {number}": note for number, note in enumerate(train.notes, start=1)}


def _forecast_words(train: TrainRecord) -> dict[str, str]:
    """What was forecast, to be held against what came."""
    if train.predicted is None:
        return {}
    p = train.predicted
    disk = "" if train.disk_mib is None else f" (came to {train.disk_mib:,.0f} MiB)"
    time = f"{numbers.duration(p.seconds)} for {p.updates:,} updates"
    return {"forecast": f"{time}, peak memory {numbers.gib(p.peak_mem_gib)}, {p.disk_mib:,.0f} MiB on disk{disk}"}


def _shown_config(record: RunRecord, settings: Settings) -> tuple[dict[str, tuple[str, str]], tuple[str, ...]]:
    """The run's settings, those of the decision as they are now; and a limit for each that was changed since the run."""
    config, notes = dict(record.config), list[str]()
    for key, (value, _) in origins(settings).items():
        was = record.config.get(key, (value, ""))[0]
        if key.startswith("decide.") and value != was:
            config[key] = (value, f"changed after the test was opened; the run had {was}")
            notes.append(f"{key} was changed from {was} to {value} after the test was opened: this verdict was not declared beforehand.")
    return config, tuple(notes)


def _token_prices(rule: DecisionRule, settings: Settings) -> str:
    """What answers of a model behind an address are paid by."""
    prices = rule.prices
    if not prices.api_models:
        return ""
    name = ", ".join(sorted(prices.api_models))
    if prices.usd_per_m_input is None or prices.usd_per_m_output is None:
        return f". {name}: not measured, no token prices were given (--usd-per-m-input, --usd-per-m-output)"
    cached = "" if prices.usd_per_m_cached_input is None else f", {prices.usd_per_m_cached_input:g} for cached ones"
    where = settings.origin_of("decide.usd_per_m_input")
    return (
        f". {name}: the tokens its server counted, at {prices.usd_per_m_input:g} US dollars a million prompt tokens{cached} and "
        f"{prices.usd_per_m_output:g} a million answer tokens ({where}, {prices.date}); requests that failed are not in it"
    )


def _hub_id(model: str) -> str:
    """The model's id on the hub where the catalogue knows it, else its name or folder."""
    return next((entry.hub_id for entry in list_models() if entry.name == model and entry.hub_id), model)


def _mean(values: Sequence[int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None


def report_model(record: RunRecord, verdict: Verdict, rule: DecisionRule, settings: Settings) -> ReportModel:
    """Everything the page shows."""
    data, train = record.data, record.train
    config, changes = _shown_config(record, settings)
    return ReportModel(
        title=record.title,
        base_model=_hub_id(record.model),
        created=record.created,
        luthier_version=record.luthier_version,
        run_command=record.command,
        verdict=verdict,
        rows=tuple(arm_row(arm, record, rule) for arm in record.arms),
        arms=record.arms,
        num_read=data.num_read,
        num_kept=data.num_kept,
        num_rejected=data.num_rejected,
        split=SplitSizes(
            num_train=data.num_train,
            num_dev=data.num_dev,
            num_test=data.num_test,
            test_sha256=data.test_sha256,
            seed=record.seed,
            official_test=data.official_test,
            notes=data.notes,
        ),
        findings=data.findings,
        profile=data.profile,
        item_inputs=record.item_inputs,
        ceiling=data.ceiling,
        training=_training_words(train, record.seed) if train else {},
        curve=tuple(
            CurvePoint(step=c.step, train_loss=c.loss, dev_loss=c.dev_loss, tokens_per_s=c.tokens_per_s)
            for c in (train.curve if train else ())
        ),
        lr_trials=tuple(LrTrial(lr=p.lr, dev_loss=p.dev_loss, steps=p.updates, chosen=p.chosen) for p in (train.probes if train else ())),
        prompt_lengths_tokens=data.prompt_lengths_tokens,
        response_lengths_tokens=data.response_lengths_tokens,
        config=config,
        environment=record.environment,
        cost_basis=(
            f"measured wall time of batched answers on this machine at full utilisation, at {rule.prices.usd_per_hour:g} US "
            f"dollars an hour ({rule.prices.source}); a service that is busy a third of the time costs three times as much"
            + _token_prices(rule, settings)
        ),
        items_path="results.json",
        rejects_path="rejects.jsonl",
        limits=(*changes, *record.notes),
    )


def write_report(folder: RunFolder, record: RunRecord, verdict: Verdict, rule: DecisionRule, settings: Settings) -> ReportModel:
    """Write verdict.json, report.html and card.md."""
    here = shlex.quote(str(folder.root))
    steps = tuple(re.sub(r"(luthier \w+) RUN\b", lambda match: f"{match[1]} {here}", step) for step in verdict.next_steps)
    model = report_model(record, replace(verdict, next_steps=steps), rule, settings)
    atomic_write_json(folder.verdict, asdict(verdict))
    atomic_write_text(folder.report, render_html(model))
    atomic_write_text(folder.card, render_card(model))
    return model


def _interval(estimate: Estimate) -> dict[str, float | int | None]:
    return {"score": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def outcome(folder: RunFolder, record: RunRecord, verdict: Verdict, model: ReportModel) -> dict[str, object]:
    """What a command returns: lines for people, one object for programs."""
    arms = [
        {
            "name": row.name,
            "family": row.family,
            "model": row.model,
            **_interval(row.score),
            "cost_per_1000": row.cost_per_1000.value,
            "cost_per_1000_low": row.cost_per_1000.low,
            "cost_per_1000_high": row.cost_per_1000.high,
            "latency_p50_s": row.latency_p50_s.value,
            "latency_p50_low_s": row.latency_p50_s.low,
            "latency_p50_high_s": row.latency_p50_s.high,
            "latency_p95_s": row.latency_p95_s.value,
            "latency_n": row.latency_p50_s.n,
            "cost_per_1000_correct": row.cost_per_1000_correct.value,
            "metrics": {name: _interval(estimate) for name, estimate in row.metrics.items()},
            "dev_score": row.dev_score,
            "failed": row.failed,
        }
        for row in model.rows
    ]
    train = record.train
    primary = verdict.primary
    found: dict[str, object] = {
        "verdict": verdict.code,
        "strength": verdict.strength,
        "headline": verdict.headline,
        "sentence": verdict.sentence,
        "metric": record.metric,
        "difference": None
        if primary is None
        else {"a": primary.a, "b": primary.b, "value": primary.difference, "low": primary.low95, "high": primary.high95, "n": primary.n},
        "margin": verdict.margin,
        "min_detectable_effect": verdict.min_detectable_effect,
        "gates": {gate.name: gate.state for gate in verdict.gates},
        "arms": arms,
        "train_seconds": train.train_seconds if train else None,
        "search_seconds": train.search_seconds if train else None,
        "tokens_per_s": train.tokens_per_s if train else None,
        "lr": train.lr if train else None,
        "next_steps": list(model.verdict.next_steps),
        "report": str(folder.report),
        "run_dir": str(folder.root),
    }
    return {"lines": verdict_lines(model, report_path=str(folder.report)), "json": json.loads(json.dumps(found))}
