"""Stage: report. Record and verdict become the page, the model card, the closing lines and the JSON result."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import fmean

from luthier.core.types import ArmResult, Estimate, Verdict
from luthier.metrics.aggregate import aggregates
from luthier.metrics.catalogue import metrics_of
from luthier.metrics.cost import cost_per_1000, cost_per_1000_correct
from luthier.metrics.form import BEHAVIOUR_MEANINGS
from luthier.metrics.latency import latency_summary
from luthier.metrics.own import is_own
from luthier.models.catalogue import list_models
from luthier.pipeline.judged import judge_json, reading_of
from luthier.pipeline.prices import token_prices
from luthier.pipeline.record import RunRecord, TrainRecord, read_exports
from luthier.pipeline.settings import Settings, origins
from luthier.report import numbers
from luthier.report.behaviour import behaviour_json
from luthier.report.card import render_card
from luthier.report.html import render_html
from luthier.report.model import ArmRow, CurvePoint, LearningBand, LearningPoint, LrTrial, ReportModel, SplitSizes
from luthier.report.terminal import verdict_lines
from luthier.stats.intervals import mean_estimate
from luthier.stats.learning import MAX_FACTOR, LearningFit
from luthier.store.files import atomic_write_json, atomic_write_text
from luthier.store.layout import RunFolder
from luthier.verdict import learning
from luthier.verdict.behaviour import Behaviour, read_behaviour
from luthier.verdict.probes import probe_lines, probe_notes
from luthier.verdict.seeds import same_recipe
from luthier.verdict.settings import DecisionRule
from luthier.verdict.slices import Slice, error_slices

BAND_STEPS = 24


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
        metrics={name: _estimate(arm, name, record.seed) for name in _metric_names(arm, record)}
        | aggregates(arm.items, record.data.profile, seed=record.seed),
        latency_p50_s=waits.p50,
        first_token_p50_s=latency_summary(arm.first_tokens_s).p50,
        tokens_per_s_p50=latency_summary(arm.token_rates).p50,
        latency_p95_s=waits.p95,
        prompt_tokens=_mean([i.num_prompt_tokens for i in arm.items]),
        new_tokens=_mean([i.num_new_tokens for i in arm.items]),
        peak_mem_gib=arm.peak_mem_gib,
        dev_score=arm.dev_score,
        dev_n=arm.dev_n,
        train_seconds=arm.train_seconds,
        failed=arm.failed,
    )


def _metric_names(arm: ArmResult, record: RunRecord) -> tuple[str, ...]:
    """The task's metrics, and what was found of the answers whatever the task, where it was looked at."""
    written = [name for name in BEHAVIOUR_MEANINGS if any(item.values.get(name) is not None for item in arm.items)]
    own = (record.metric,) if is_own(record.metric) else ()
    return (*own, *metrics_of(record.data.profile), *written) if arm.items else ()


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
    search = f"; search of the learning rate {numbers.duration(train.search_seconds)}" if train.probes else ""
    return {
        "method": train.method,
        "learning rate": f"{train.lr:g}" + (f" (dev loss of short trials: {searched})" if searched else " (set by you)"),
        "length": f"{train.num_rows:,} rows, {train.epochs:.3g} {'epoch' if train.epochs == 1 else 'epochs'}, {stopped}",
        "best dev loss": best,
        "seed": str(seed),
        "time": f"{numbers.duration(train.train_seconds)}{speed}{search}",
        "peak memory": numbers.gib(train.peak_mem_gib) + _on_gpu(train.peak_device_gib),
        **_forecast_words(train),
        "computed on": train.device,
        "number format": train.precision,
        "weights": f"{train.weights}, SHA-256 {train.weights_sha256}",
    } | {f"note {number}": note for number, note in enumerate(train.notes, start=1)}


def _on_gpu(peak_device_gib: float | None) -> str:
    return "" if peak_device_gib is None else f", on the GPU {numbers.gib(peak_device_gib)}"


def _forecast_words(train: TrainRecord) -> dict[str, str]:
    """What was forecast, to be held against what came."""
    if train.predicted is None:
        return {}
    p = train.predicted
    disk = "" if train.disk_mib is None else f" (came to {train.disk_mib:,.0f} MiB)"
    time = f"{numbers.duration(p.seconds)} for {p.updates:,} updates"
    return {
        "forecast": f"{time}, peak memory {numbers.gib(p.peak_mem_gib)}{_on_gpu(p.peak_device_gib)}, {p.disk_mib:,.0f} MiB on disk{disk}"
    }


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
        return f". {name}: not measured, no token prices were given (--usd-per-m-input, --usd-per-m-output, or --prices)"
    cached = "" if prices.usd_per_m_cached_input is None else f", {prices.usd_per_m_cached_input:g} for cached ones"
    where = token_prices(settings).origin
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


def _arm(record: RunRecord, name: str | None) -> ArmResult | None:
    return next((arm for arm in record.arms if arm.name == name), None)


def _learning_points(record: RunRecord) -> tuple[learning.LearningPoint, ...]:
    """The points of the learning curve, all rows included; none where no curve was asked for."""
    full = None if record.learning is None else _arm(record, record.learning.full)
    if record.learning is None or full is None:
        return ()
    full_rows = record.learning.full_rows or record.data.num_train
    return (*record.learning.points, learning.LearningPoint(num_rows=full_rows, arm=full))


def learning_of(record: RunRecord, verdict: Verdict) -> learning.Learning | None:
    """What the learning curve says against the best prompt; None where no curve was asked for."""
    points = _learning_points(record)
    if not points:
        return None
    replicates = same_recipe(points[-1].arm, record.arms)
    handed_over = record.data.num_train if record.num_folds > 1 else None
    prompt = _arm(record, verdict.best_prompt)
    return learning.read_curve(points, prompt, replicates, record.metric, seed=record.seed, handed_over=handed_over)


def slices_of(record: RunRecord, verdict: Verdict) -> tuple[Slice, ...]:
    """Where the tuned arm errs; empty without one."""
    arm = _arm(record, verdict.best_tuned)
    if arm is None:
        return ()
    data = record.data
    return error_slices(arm, record.item_inputs, record.metric, profile=data.profile, rows_of_answer=data.rows_of_answer, seed=record.seed)


def behaviour_of(record: RunRecord, verdict: Verdict) -> Behaviour | None:
    """Behaviour of the base model as it is, the best prompt and the tuned arm; None where it was not looked at, or no two arms compared."""
    names = {"as it is": "zero-shot", "prompt": verdict.best_prompt, "tuned": verdict.best_tuned}
    if verdict.best_prompt == "zero-shot":
        del names["as it is"]
    shown = [(role, arm) for role, name in names.items() if (arm := _arm(record, name)) is not None and arm.items]
    if record.behaviour is None or [role for role, _ in shown][-2:] != ["prompt", "tuned"]:
        return None
    return read_behaviour(
        shown,
        record.behaviour,
        record.data.profile,
        record.metric,
        inputs=record.item_inputs,
        max_new_tokens=record.max_new_tokens,
        seed=record.seed,
    )


def _band(fit: LearningFit | None) -> tuple[LearningBand, ...]:
    """The fitted curve from the smallest size to four times the rows, where the last step showed a gain; else up to the rows there are."""
    if fit is None or not fit.follows_law:
        return ()
    first, last = fit.sizes[0], fit.sizes[-1] * (MAX_FACTOR if fit.is_rising else 1)
    at = [first * (last / first) ** (step / BAND_STEPS) for step in range(BAND_STEPS + 1)]
    return tuple(LearningBand(num_examples=rows, score=score, low=low, high=high) for rows in at for score, low, high in [fit.score(rows)])


def _learning_note(record: RunRecord) -> str:
    """Under which conditions the curve was taken."""
    found = record.learning
    if found is None:
        return ""
    asked = "before" if found.is_declared else "after"
    folds = "" if record.num_folds == 1 else f"Each point is {record.num_folds} trainings, one a fold, on so many of its rows. "
    rate = "same learning rate" if record.num_folds == 1 else "the learning rate of its fold"
    return (
        f"{folds}Each part of the rows lies within every larger one; {rate}, same number of epochs, so fewer updates; "
        f"seed {record.seed}. Asked for {asked} the test items were opened; nothing was chosen by it. It took "
        f"{numbers.duration(found.seconds)}, forecast {numbers.duration(found.predicted_seconds)}."
    )


def report_model(record: RunRecord, verdict: Verdict, rule: DecisionRule, settings: Settings) -> ReportModel:
    """Everything the page shows."""
    data, train, curve = record.data, record.train, learning_of(record, verdict)
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
        learning_curve=tuple(
            LearningPoint(num_examples=point.num_rows, score=_estimate(point.arm, record.metric, record.seed))
            for point in sorted(_learning_points(record), key=lambda point: point.num_rows)
        ),
        learning_band=_band(curve.fit if curve else None),
        learning_words=curve.sentences if curve else (),
        learning_note=f"{_learning_note(record)} {curve.noise if curve else ''}".strip(),
        slices=slices_of(record, verdict),
        behaviour=behaviour_of(record, verdict),
        lr_trials=tuple(LrTrial(lr=p.lr, dev_loss=p.dev_loss, steps=p.updates, chosen=p.chosen) for p in (train.probes if train else ())),
        probe_lines=probe_lines(record.probes, seed=record.seed),
        probe_notes=probe_notes(record.probes),
        prompt_lengths_tokens=data.prompt_lengths_tokens,
        response_lengths_tokens=data.response_lengths_tokens,
        config=config,
        environment=record.environment,
        cost_basis=(
            f"measured wall time of batched answers on this machine at full utilisation, at {rule.prices.usd_per_hour:g} US "
            f"dollars an hour ({rule.prices.source}); a service that is busy a third of the time costs three times as much"
            + _token_prices(rule, settings)
            + "."
        ),
        items_path="results.json",
        rejects_path="rejects.jsonl",
        limits=(*changes, *record.notes),
    )


def write_report(folder: RunFolder, record: RunRecord, verdict: Verdict, rule: DecisionRule, settings: Settings) -> ReportModel:
    """Write verdict.json, report.html and card.md."""
    here = shlex.quote(str(folder.root))
    steps = tuple(re.sub(r"(luthier \w+) RUN\b", lambda match: f"{match[1]} {here}", step) for step in verdict.next_steps)
    model = replace(
        report_model(record, replace(verdict, next_steps=steps), rule, settings),
        exports=read_exports(folder.exports),
        judge=reading_of(folder, record),
    )
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
            "first_token_p50_s": row.first_token_p50_s.value,
            "tokens_per_s_p50": row.tokens_per_s_p50.value,
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
        "remarks": list(verdict.remarks),
        "learning_curve": [{"num_examples": point.num_examples, **_interval(point.score)} for point in model.learning_curve],
        "slices": [
            {"name": one.name, **_interval(one.score), "elsewhere": one.rest, "p_holm": one.p_holm, "num_train": one.num_train}
            for one in model.slices
        ],
        "probes": [asdict(line) for line in model.probe_lines],
        "gates": {gate.name: gate.state for gate in verdict.gates},
        "behaviour": None if model.behaviour is None else behaviour_json(model.behaviour),
        "judge": None if model.judge is None else judge_json(model.judge),
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
