"""All arms of a run, on dev and test: base and tuned model, each larger model, the endpoint's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from luthier.core.types import ArmResult
from luthier.evaluate.run import Bench
from luthier.generate.endpoint import Endpoint
from luthier.models.catalogue import resolve
from luthier.pipeline.answering import open_both, open_untrained
from luthier.pipeline.embeddings import embed_before
from luthier.pipeline.endpoint import endpoint_of, measure_endpoint
from luthier.pipeline.measure import MeasureInputs, larger_arms, make_bench, measure_arms, planned_arms, proposer_of, with_latencies
from luthier.pipeline.prepare import Prepared
from luthier.pipeline.record import TrainRecord
from luthier.pipeline.settings import Settings
from luthier.store.layout import RunFolder


def measure_all(
    settings: Settings, folder: RunFolder, prepared: Prepared, inputs: MeasureInputs, trained: TrainRecord
) -> tuple[ArmResult, ...]:
    """All arms on dev and test: base and tuned model, then each larger model the user named, one in memory at a time."""
    bench = make_bench(settings, folder, inputs)
    embed_before(inputs.embeddings, inputs.split, inputs.documents)
    endpoint = endpoint_of(settings)
    measured = _measure_own(settings, folder, prepared, inputs, bench, endpoint)
    spent_s = trained.train_seconds + trained.search_seconds  # what came out of the search is part of the price
    out = [replace(arm, train_seconds=spent_s) if arm.family == "tuned" else arm for arm in measured]
    for name in settings.model.larger:
        out += _measure_larger(settings, folder, prepared, inputs, name)
    if endpoint is not None:
        out += measure_endpoint(settings, bench, inputs, endpoint)
    return tuple(replace(arm, seed=settings.seed) for arm in out)


def _measure_own(
    settings: Settings, folder: RunFolder, prepared: Prepared, inputs: MeasureInputs, bench: Bench, endpoint: Endpoint | None
) -> tuple[ArmResult, ...]:
    """The arms without a model, with the base model and with the tuned one."""
    names = {"none": "", "base": settings.model.name, "tuned": f"{settings.model.name}, tuned"}
    with open_both(settings, folder, prepared) as (base, tuned):
        arms = planned_arms(settings, inputs, base.context)
        proposer = proposer_of(settings, inputs, base.context, endpoint)
        models = {"none": None, "base": base, "tuned": tuned}
        results = measure_arms(settings, bench, arms, inputs.split, models, names, proposer)
        models_by_arm = {result.name: tuned if result.family == "tuned" else base for result, _ in results}
        return with_latencies(settings, folder, inputs, results, models_by_arm)


def _measure_larger(settings: Settings, folder: RunFolder, prepared: Prepared, inputs: MeasureInputs, name: str) -> tuple[ArmResult, ...]:
    """The prompting arms with a larger local model."""
    bench = make_bench(settings, folder, inputs)
    with open_untrained(settings, resolve(name), prepared.precision) as model:
        arms = larger_arms(planned_arms(settings, inputs, model.context), Path(name).name)
        proposer = proposer_of(settings, inputs, model.context, endpoint_of(settings))
        results = measure_arms(settings, bench, arms, inputs.split, {"base": model}, {"base": name}, proposer)
        latency_folder = RunFolder(folder.root / "larger" / Path(name).name)
        return with_latencies(settings, latency_folder, inputs, results, {result.name: model for result, _ in results})
