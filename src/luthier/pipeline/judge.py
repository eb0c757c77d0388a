"""Stage: judge. A model the user names compares the answers of the two arms that the verdict compares, pair by pair.

It adds to a record and changes nothing of it, so it can be asked for, or changed, on a finished run; replies are cached like all answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.core.console import Progress
from luthier.core.errors import EndpointError, InputError
from luthier.core.hashing import digest
from luthier.core.types import ArmResult
from luthier.evaluate.judge import judge_pairs
from luthier.evaluate.run import Model
from luthier.generate.endpoint import Endpoint
from luthier.metrics.judge import ATTACKS, RUBRIC, question_of
from luthier.models.catalogue import resolve
from luthier.models.load import inspect_folder
from luthier.pipeline.behaviour import contestants
from luthier.pipeline.endpoint import server_of
from luthier.pipeline.measure import MeasureInputs, make_bench
from luthier.pipeline.open import open_local
from luthier.pipeline.prepare import Prepared
from luthier.pipeline.record import RunRecord
from luthier.pipeline.settings import Settings
from luthier.store.layout import RunFolder
from luthier.verdict.judge import JudgeRecord, chosen_pairs, pairs_of


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedJudge:
    """Who is to judge, before anything is opened."""

    name: str
    fingerprint: str
    server: Endpoint | None  # None: the local model at `path`
    path: Path | None


def find_judge(settings: Settings) -> NamedJudge | None:
    """The judge of the settings, or None. Raises ConfigError or ModelError, before anything computes, for one that cannot be used."""
    given = settings.judge
    if not given.model:
        return None
    server = server_of(given, "judge")
    if server is not None:
        return NamedJudge(name=server.name, fingerprint=server.fingerprint, server=server, path=None)
    path = resolve(given.model)
    return NamedJudge(name=path.name, fingerprint=inspect_folder(path).sha256, server=None, path=path)


def with_judge(
    settings: Settings,
    folder: RunFolder,
    prepared: Prepared,
    inputs: MeasureInputs,
    judge: NamedJudge | None,
    record: RunRecord,
    *,
    progress: Progress,
) -> RunRecord:
    """The record with the two arms judged; as it is without a judge or without two arms, and where all of it was judged already."""
    arms = {arm.family: arm for arm in contestants(settings, record)}
    if judge is None or len(arms) != 2:
        return record
    prompt, tuned = arms["prompt"], arms["tuned"]
    questions = {item.id: (question_of(item), (item.response, *item.references)) for item in inputs.split.test}
    everything = pairs_of(prompt, tuned, questions)
    pairs = chosen_pairs(everything, settings.judge.items, seed=settings.seed)
    limit = settings.judge.max_new_tokens
    key = digest([judge.fingerprint, RUBRIC, ATTACKS, limit, prompt.name, tuned.name, [[pair.item_id, pair.id] for pair in pairs]])
    if record.judge is not None and record.judge.key == key and record.judge.failed is None:
        return record
    blank = JudgeRecord(
        key=key,
        judge=judge.name,
        prompt=prompt.name,
        tuned=tuned.name,
        num_items=len(everything),
        is_contestant=_is_contestant(settings, prepared, judge, (prompt, tuned)),
    )
    num = 2 * (sum(not pair.is_same for pair in pairs) + len(ATTACKS))
    progress("judge", 0, num, f"{num:,} replies of {judge.name} on {len(pairs):,} pairs; --set judge.items=50: fewer")
    try:
        work = judge_pairs(
            pairs,
            _open(judge, prepared),
            make_bench(settings, folder, inputs),
            max_new_tokens=limit,
            on_progress=lambda done, total: progress("judge", done, total, judge.name),
        )
    except (InputError, EndpointError) as error:  # a pair does not fit, or the server fails: no property of the answers
        return replace(record, judge=replace(blank, failed=str(error)))
    done = replace(
        blank,
        judged=work.judged,
        attacks=work.attacks,
        num_retries=sum(one.num_retries for one in work.replies),
        seconds=sum(one.latency_s for one in work.replies),
        served_by=", ".join(sorted({one.served_by for one in work.replies if one.served_by})),
        num_prompt_tokens=_sum([one.num_prompt_tokens for one in work.replies]),
        num_new_tokens=_sum([one.num_new_tokens for one in work.replies]),
    )
    return replace(record, judge=done)


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _open(judge: NamedJudge, prepared: Prepared) -> Model:
    if judge.server is not None:
        return judge.server
    assert judge.path is not None
    return open_local(judge.path, prepared.precision)


def _is_contestant(settings: Settings, prepared: Prepared, judge: NamedJudge, arms: tuple[ArmResult, ArmResult]) -> bool:
    """Whether the judge is the model of one of the arms, or the one that was tuned."""
    if judge.server is not None:
        server = server_of(settings.endpoint, "endpoint")
        return server is not None and judge.name == server.name and any(arm.model == server.name for arm in arms)
    larger = {name: inspect_folder(resolve(name)).sha256 for name in settings.model.larger}
    models = {prepared.info.sha256, *(larger[arm.model] for arm in arms if arm.model in larger)}
    return judge.fingerprint in models
