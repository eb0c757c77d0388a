"""Stage: decide. A function of the record and the rule; no model, no torch."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from luthier.core.types import Verdict
from luthier.metrics.cost import Prices
from luthier.pipeline.prices import token_prices
from luthier.pipeline.record import RunRecord, read_record
from luthier.pipeline.report import learning_of, outcome, slices_of, write_report
from luthier.pipeline.settings import Settings, load_settings
from luthier.store.layout import RunFolder
from luthier.verdict.larger import larger_sentences
from luthier.verdict.rules import decide
from luthier.verdict.settings import DecisionRule
from luthier.verdict.slices import slice_sentence


def decision_rule(settings: Settings, record: RunRecord) -> DecisionRule:
    """The user's margin, volume and prices, with the metric that was declared before the test was opened."""
    wanted = settings.decide
    tokens = token_prices(settings)
    prices = Prices(
        usd_per_hour=wanted.usd_per_hour,
        usd_per_m_input=tokens.input,
        usd_per_m_cached_input=tokens.cached_input,
        usd_per_m_output=tokens.output,
        api_models=frozenset({settings.endpoint.shown_name} - {""}),
        source=f"decide.usd_per_hour, {settings.origin_of('decide.usd_per_hour')}",
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    )
    return DecisionRule(
        metric=record.metric,
        margin=wanted.margin / 100,
        declared_margin=float(record.config["decide.margin"][0]) / 100 if "decide.margin" in record.config else None,
        min_quality=None if wanted.min_quality is None else wanted.min_quality / 100,
        volume_per_month=wanted.volume,
        prices=prices,
        hosting_usd_per_month=wanted.hosting,
        labelling_usd=wanted.labelling,
        months_between_retrains=wanted.months,
        seed=record.seed,
        num_folds=record.num_folds,
        serves_other_work=wanted.serves_other_work,
    )


def verdict_of(settings: Settings, record: RunRecord) -> Verdict:
    """The verdict on a record, with what its learning curve and its error slices say."""
    verdict = decide(record.arms, decision_rule(settings, record), record.probes)
    curve, slices = learning_of(record, verdict), slices_of(record, verdict)
    where = slice_sentence(slices, verdict.best_tuned or "")
    tuned = next((arm for arm in record.arms if arm.name == verdict.best_tuned), None)
    larger = larger_sentences(tuned, record.arms, record.model_sizes, decision_rule(settings, record))
    return replace(verdict, remarks=(*(curve.sentences if curve else ()), *larger, *verdict.remarks, *((where,) if where else ())))


def redecide(run_dir: Path, overrides: Mapping[str, object]) -> dict[str, object]:
    """`luthier decide RUN`: the same record under another margin, volume or price; the report is written anew."""
    folder = RunFolder(run_dir)
    record = read_record(folder.results)
    settings = load_settings(folder.config, overrides)
    rule = decision_rule(settings, record)
    verdict = verdict_of(settings, record)
    model = write_report(folder, record, verdict, rule, settings)
    return outcome(folder, record, verdict, model)
