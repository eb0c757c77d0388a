"""The prompting arms with a model behind an address the user named."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from luthier.core.errors import EndpointError
from luthier.core.types import HELD, ArmResult
from luthier.evaluate.run import Bench, hold_endpoint
from luthier.generate.endpoint import Endpoint
from luthier.generate.http_post import check_url
from luthier.pipeline.measure import MeasureInputs, larger_arms, measure_arms, planned_arms, proposer_of
from luthier.pipeline.record import RunRecord
from luthier.pipeline.server_settings import ChatServerSettings, ServerSettings
from luthier.pipeline.settings import Settings


def endpoint_of(settings: Settings) -> Endpoint | None:
    """The server of the settings, or None. Raises ConfigError for an address that must not be used."""
    found = server_of(settings.endpoint, "endpoint")
    return None if found is None else replace(found, context=settings.endpoint.context)


def server_of(given: ServerSettings, role: Literal["endpoint", "judge", "embeddings"]) -> Endpoint | None:
    """As `endpoint_of`, for one group of settings."""
    if not given.url or not given.model:
        return None
    check_url(given.url, role=role)
    found = Endpoint(
        url=given.url,
        model=given.model,
        name=given.shown_name,
        key_env=given.key_env or "",
        concurrency=given.concurrency,
        timeout_s=given.timeout_s,
        retries=given.retries,
        role=role,
    )
    if isinstance(given, ChatServerSettings):
        return replace(found, length_field=given.length_field, temperature=given.temperature)
    return found


def measure_endpoint(settings: Settings, bench: Bench, inputs: MeasureInputs, endpoint: Endpoint) -> tuple[ArmResult, ...]:
    """Each prompting arm on dev and test. What fails is returned as failed; the other arms of the run stand."""
    arms = larger_arms(planned_arms(settings, inputs, endpoint.context), endpoint.model)
    said = f" Asked at {endpoint.url}, up to {endpoint.concurrency} requests at once; waiting times include the network."
    arms = tuple(replace(arm, description=arm.description + said) for arm in arms)
    try:
        endpoint = hold_endpoint(endpoint, bench)
    except EndpointError as error:
        arms = tuple(replace(arm, failed=str(error)) for arm in arms)
    proposer = proposer_of(settings, inputs, endpoint.context, endpoint)
    results = measure_arms(settings, bench, arms, inputs.split, {"base": endpoint}, {"base": endpoint.name}, proposer)
    return tuple(result for result, _ in results)


def has_failed_endpoint(settings: Settings, record: RunRecord) -> bool:
    """Whether a repeat should ask the server again: an arm of it failed, which may have been the day's fault."""
    names = [name for name in (settings.endpoint.shown_name, settings.embeddings.shown_name) if name]
    return any(arm.failed is not None and (arm.model == name or name in arm.failed) for name in names for arm in record.arms)


def endpoint_notes(settings: Settings, arms: tuple[ArmResult, ...]) -> tuple[str, ...]:
    """What a reader must know of answers that came over the network."""
    name = settings.endpoint.shown_name
    asked = [arm for arm in arms if name and arm.model == name]
    if not asked:
        return ()
    retries = sum(arm.effort.get("num_retries", 0.0) + arm.effort.get("num_test_retries", 0.0) for arm in asked)
    num_answers = sum(arm.effort.get("num_dev_evaluations", 0.0) + len(arm.items) for arm in asked)
    held = sorted({arm.params["answers"] for arm in asked if "answers" in arm.params})
    served_by = sorted({arm.params["answered by"] for arm in asked if "answered by" in arm.params})
    return (
        f"{name}: {num_answers:,.0f} answers over the network, {retries:,.0f} requests repeated; the server names as the model "
        f"{', '.join(served_by) or 'nothing'}. Such a model can change from one day to the next, and temperature 0 does not make it "
        "repeat itself; the answers kept in this run are the ones that were measured.",
        *(f"{name}: {_form_words(words)}." for words in held),
    )


def _form_words(answers: str) -> str:
    """What `ArmResult.params["answers"]` says, in a sentence of a report."""
    return (
        f"answers were {answers}" if answers.startswith(HELD) else f"answers were not held to their form: {answers.removeprefix('free: ')}"
    )
