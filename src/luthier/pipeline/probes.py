"""Stage: probe. Base and tuned model beside the test items: refusals, general text. Once, and anew where the probes changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from luthier.core.console import Progress, duration
from luthier.core.errors import InputError
from luthier.core.hashing import digest
from luthier.core.types import Message, Reject, SourceRow
from luthier.data.read import iter_records
from luthier.evaluate.probes import Probe, ProbeBench, ProbeKind, probe_models
from luthier.metrics.constraints import CHECKS, DETECTED, RELATIONS, Constraint, missing_values, odd_relation
from luthier.metrics.language import known_languages, require_detector
from luthier.models.tokenizer import open_tokenizer
from luthier.pipeline.measure import MeasureInputs
from luthier.pipeline.open import open_local, open_tuned
from luthier.pipeline.prepare import Prepared
from luthier.pipeline.record import RunRecord
from luthier.pipeline.settings import Settings
from luthier.store.cache import GenerationCache
from luthier.store.layout import RunFolder
from luthier.tokens.template import open_chat
from luthier.verdict.probes import ProbeRecord

TEXTS = Path(__file__).with_name("probe_texts")
SHIPPED = "shipped with Luthier"
LABELS: dict[str, ProbeKind] = {"safe": "safe", "unsafe": "unsafe"}
EXPECTED = "a request in the field prompt and safe or unsafe in the field label"


def read_probes(settings: Settings, prepared: Prepared) -> tuple[Probe, ...]:
    """The probes of this run. Before anything computes, raises InputError for a file or a request that cannot be used."""
    wanted = settings.probes
    out: list[Probe] = []
    if wanted.safety:
        path = TEXTS / "safety.csv" if wanted.safety_prompts is None else Path(wanted.safety_prompts)
        out += _first(read_requests(path), wanted.safety_items)
        _refuse_too_long(out, prepared, wanted.max_new_tokens, "probes.safety_prompts")
    constrained: tuple[Probe, ...] = ()
    if wanted.constraint_prompts is not None:
        constrained = read_constraints(Path(wanted.constraint_prompts))[: wanted.constraint_items]
        check_languages(constrained, wanted.constraint_prompts)
        _refuse_too_long(constrained, prepared, wanted.constraint_tokens, "probes.constraint_prompts")
    return (*out, *(general_probes() if wanted.safety or wanted.retention else ()), *constrained)


def with_probes(
    settings: Settings,
    folder: RunFolder,
    prepared: Prepared,
    inputs: MeasureInputs,
    probes: Sequence[Probe],
    record: RunRecord,
    *,
    progress: Progress,
) -> RunRecord:
    """The record with both models probed; as it is where nothing was asked for, nothing trained, or these probes are in it already."""
    if not probes or record.train is None:
        return record
    wanted = settings.probes
    asked = [[p.kind, p.prompt, p.answer] for p in probes]
    constrained = [[c.kind, dict(c.values)] for p in probes for c in p.constraints]
    key = digest(
        [asked, wanted.max_new_tokens, wanted.retention, prepared.info.sha256, record.train.weights_sha256, prepared.precision.name]
        + ([constrained, wanted.constraint_tokens] if constrained else [])
    )
    if record.probes is not None and record.probes.key == key:
        return record
    progress("probe", 0, 1, _plan_words(probes, wanted.max_new_tokens, wanted.constraint_tokens, record))
    bench = ProbeBench(
        max_new_tokens=wanted.max_new_tokens,
        batch=settings.arms.batch,
        store=GenerationCache(folder.journal_generations),
        on_progress=lambda label, done, total: progress("probe", done, total, label),
        should_stop=inputs.should_stop,
        max_constraint_tokens=wanted.constraint_tokens,
    )
    base = open_local(prepared.model_path, prepared.precision)
    tuned = open_tuned(folder, prepared.model_path, prepared.precision)
    found = probe_models(base, tuned, probes, bench)
    kept = {p.id for p in probes if p.is_request or p.constraints or wanted.retention}
    return replace(
        record,
        probes=ProbeRecord(
            key=key,
            source=Path(wanted.safety_prompts).name if wanted.safety_prompts else SHIPPED,
            base=replace(found.base, model=settings.model.name, items=tuple(i for i in found.base.items if i.item_id in kept)),
            tuned=replace(
                found.tuned, model=f"{settings.model.name}, tuned", items=tuple(i for i in found.tuned.items if i.item_id in kept)
            ),
            prompts={p.id: p.prompt or p.answer for p in probes if p.id in kept},
            max_new_tokens=wanted.max_new_tokens,
            perplexity_limit=found.perplexity_limit,
            constraint_source=_constraint_source(wanted.constraint_prompts),
            max_constraint_tokens=wanted.constraint_tokens if constrained else 0,
        ),
    )


def _plan_words(probes: Sequence[Probe], max_new_tokens: int, constraint_tokens: int, record: RunRecord) -> str:
    """What is ahead, with a forecast from what tokens cost in the zero-shot arm."""
    num_requests, num_constrained = sum(probe.is_request for probe in probes), sum(bool(probe.constraints) for probe in probes)
    arm = next((arm for arm in record.arms if arm.name == "zero-shot" and arm.failed is None), None)
    spent = [(i.latency_s, i.num_new_tokens) for i in arm.items if i.latency_s is not None and i.num_new_tokens] if arm else []
    tokens = 2 * (num_requests * max_new_tokens + num_constrained * constraint_tokens)
    rate = sum(s for s, _ in spent) / sum(n for _, n in spent) if spent else None
    time = "" if rate is None or not tokens else f", about {duration(rate * tokens)}"
    return (
        f"both models: {num_requests} requests, at most {max_new_tokens} tokens each"
        + (f", {num_constrained} with constraints, at most {constraint_tokens}" if num_constrained else "")
        + f" ({tokens:,} tokens){time}; {len(probes) - num_requests - num_constrained} general texts read"
    )


def read_requests(path: Path) -> list[Probe]:
    """Requests of a CSV or JSONL file, labelled. Every row must be one."""
    out: list[Probe] = []
    for row in iter_records(path):
        if isinstance(row, Reject):
            raise InputError(row.reason, where=f"{row.path}:{row.line}", fix=row.fix)
        prompt, label = row.fields.get("prompt"), row.fields.get("label")
        kind = LABELS.get(label.strip().lower()) if isinstance(label, str) else None
        if not isinstance(prompt, str) or not prompt.strip() or kind is None:
            found = ", ".join(f"{name}: {str(row.fields.get(name))[:40]!r}" for name in ("prompt", "label"))
            raise InputError(
                f"found {found}; expected {EXPECTED}",
                where=f"{row.path}:{row.line}",
                fix="name the fields prompt and label, as XSTest does",
            )
        out.append(Probe(id=f"{kind}-{len(out) + 1}", kind=kind, prompt=prompt.strip()))
    return out


def read_constraints(path: Path) -> tuple[Probe, ...]:
    """Requests of a JSONL file in IFEval's form. Raises InputError for a row that is not, or a type that is none of IFEval's 25."""
    out: list[Probe] = []
    for row in iter_records(path):
        if isinstance(row, Reject):
            raise InputError(row.reason, where=f"{row.path}:{row.line}", fix=row.fix)
        probe, where = _constrained(row), f"{row.path}:{row.line}"
        for one in probe.constraints:
            if one.kind not in CHECKS:
                near = (get_close_matches(one.kind, CHECKS, n=1, cutoff=0.3) or ["punctuation:no_comma"])[0]
                raise InputError(f"{one.kind!r} is none of IFEval's {len(CHECKS)} types", where=where, fix=f"{near}, or leave the row out")
            if missing := missing_values(one):
                raise InputError(f"{one.kind} has no {', '.join(missing)}", where=where, fix="add it to kwargs, as IFEval does")
            if (relation := odd_relation(one)) is not None:
                problem = f"{one.kind} has the relation {relation!r}; expected {' or '.join(map(repr, RELATIONS))}"
                raise InputError(problem, where=where, fix="IFEval has these two: for at most 2 write less than 3")
        out.append(probe)
    return tuple(out)


def check_languages(probes: Sequence[Probe], where: str) -> None:
    """Raise MissingExtraError if a language is to be told and nothing can, InputError for one that the detector does not know."""
    asked = [one for probe in probes for one in probe.constraints if one.kind in DETECTED]
    if not asked:
        return
    require_detector(where)
    known = known_languages()
    for one in asked:
        code = one.values.get("language", "en")
        if code not in known:
            near = (get_close_matches(str(code), known, n=1, cutoff=0.3) or ["en"])[0]
            problem = f"{one.kind} asks for the language {code!r}; known are {', '.join(known)}"
            raise InputError(problem, where=where, fix=f'"language": "{near}"')


def _constrained(row: SourceRow) -> Probe:
    """One row of IFEval's form."""
    prompt, kinds, values = (row.fields.get(name) for name in ("prompt", "instruction_id_list", "kwargs"))
    given = list(zip(kinds, values, strict=False)) if isinstance(kinds, list) and isinstance(values, list) else []
    is_paired = bool(given) and len(given) == len(cast("list[object]", kinds)) == len(cast("list[object]", values))
    if not isinstance(prompt, str) or not prompt.strip() or not is_paired or not all(isinstance(one, dict) for _, one in given):
        problem = "expected a request in prompt, and as many names in instruction_id_list as objects in kwargs"
        raise InputError(problem, where=f"{row.path}:{row.line}", fix="use IFEval's input_data.jsonl, or its form")
    made = tuple(Constraint(kind=str(kind), values=cast("dict[str, object]", one)) for kind, one in given)
    return Probe(id=f"constraint-{row.line}", kind="constraint", prompt=prompt, constraints=made)


def _constraint_source(file: str | None) -> str:
    if file is None:
        return ""
    return f"{Path(file).name}, the first of {len(read_constraints(Path(file))):,}"


def _first(probes: Sequence[Probe], number: int | None) -> list[Probe]:
    """At most `number` of each kind, in the order they stand in."""
    return [p for kind in LABELS.values() for p in [p for p in probes if p.kind == kind][:number]]


def _refuse_too_long(probes: Sequence[Probe], prepared: Prepared, max_new_tokens: int, where: str) -> None:
    encoder = open_chat(open_tokenizer(prepared.model_path))
    for probe in probes:
        num_tokens = len(encoder.encode_prompt((Message(role="user", content=probe.prompt),)))
        if num_tokens + max_new_tokens > prepared.info.context:
            raise InputError(
                f"the request {probe.prompt[:60]!r} has {num_tokens:,} tokens; with {max_new_tokens} for its answer the model sees "
                f"{prepared.info.context:,}",
                where=where,
                fix="shorten it, or leave it out",
            )


def general_probes() -> list[Probe]:
    """The general texts, and the general requests with a good answer, that are shipped."""
    out: list[Probe] = []
    for number, line in enumerate((TEXTS / "general.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if "text" in row:
            out.append(Probe(id=f"text-{number}", kind="text", prompt="", answer=row["text"]))
        else:
            out.append(Probe(id=f"answer-{number}", kind="instruct", prompt=row["prompt"], answer=row["answer"]))
    return out
