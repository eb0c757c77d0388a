"""`luthier check`: what is in the files, what is wrong with it, and what a model would be trained on, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from luthier.core.errors import InputError, ModelError
from luthier.core.types import Example, Finding, Split, TaskProfile, TokenRow
from luthier.data.lengths import length_summary
from luthier.data.profile import profile_task
from luthier.pipeline.data import CheckedData, all_rejects, read_data, refuse_other_objectives, split_data
from luthier.pipeline.settings import Settings

NO_LIMIT_TOKENS = 2**31
SHOWN_ROWS = 5
SHOWN_REJECTS = 10
SHOWN_PLACES = 3
BARS = " ▁▂▃▄▅▆▇█"
MARK = {"error": "ERROR", "warning": "warn ", "info": "note "}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """The first rows as tokens with what is trained, and the lengths of all rows. `pieces`: (text, is trained).

    `findings`: what `luthier run` would say of the rows that are too long.
    """

    pieces: tuple[tuple[tuple[str, bool], ...], ...]
    lengths: tuple[int, ...]
    findings: tuple[Finding, ...]


def token_view(settings: Settings, examples: tuple[Example, ...]) -> TokenView:
    """Encode with the model's tokenizer. Raises ModelError if the model is not there."""
    from luthier.models.catalogue import resolve
    from luthier.models.folder import stated_context
    from luthier.models.tokenizer import open_tokenizer
    from luthier.tokens.encode import encode_examples
    from luthier.tokens.preview import preview_tokens
    from luthier.tokens.template import open_chat

    path = resolve(settings.model.name)
    tokenizer = open_tokenizer(path)
    max_length = min(settings.model.max_length, stated_context(path) or tokenizer.model_max_length)
    encoder = open_chat(tokenizer)
    encoded = encode_examples(encoder, examples, max_length=NO_LIMIT_TOKENS, allow_truncation=False)
    rows: tuple[TokenRow, ...] = encoded.rows
    findings = encoded.findings
    if any(len(row.input_ids) > max_length for row in rows):
        try:
            findings = encode_examples(encoder, examples, max_length=max_length, allow_truncation=settings.model.allow_truncation).findings
        except InputError as error:
            findings = (*findings, _as_finding("tokens", error))
    return TokenView(
        pieces=tuple(preview_tokens(row, tokenizer) for row in rows[:SHOWN_ROWS]),
        lengths=tuple(len(row.input_ids) for row in rows),
        findings=findings,
    )


def check(settings: Settings, progress: Callable[[str, float, float, str], None]) -> dict[str, object]:
    """Read, check, and show. `lines` are for people; `pieces` for the coloured view; `json` for programs."""
    progress("check", 0, 1, "reading and comparing rows")
    data = read_data(settings)
    progress("check", 1, 1, f"{len(data.read.examples)} rows")
    train = tuple(e for e in data.read.examples if e.given_split != "test")
    profile = profile_task(train)
    view, why_not = None, ""
    refused: list[Finding] = []
    try:
        view = token_view(settings, data.read.examples)
    except ModelError as error:
        why_not = str(error)
    except InputError as error:
        why_not = "see the findings"
        refused.append(_as_finding("tokens", error))
    split = None
    try:
        split = split_data(settings, data).split
        refuse_other_objectives((*split.train, *split.dev, *split.test))
    except InputError as error:
        refused.append(_as_finding("split", error) if split is None else replace(_as_finding("objective", error), severity="warning"))
    findings = (*data.findings, *(view.findings if view else ()), *refused)
    worst = (
        "error" if any(f.severity == "error" for f in findings) else "warning" if any(f.severity == "warning" for f in findings) else "info"
    )
    lines = [
        *_read_lines(data),
        *_task_lines(data, profile),
        *_split_lines(split),
        "",
        *_finding_lines(findings),
        "",
        *_length_lines(view, why_not),
    ]
    lines += ["", _verdict_line(worst, findings)]
    rejects = all_rejects(data)
    found: dict[str, object] = {
        "read": sum(read.num_read for read in data.reads),
        "kept": sum(len(read.examples) for read in data.reads),
        "rejected": len(rejects),
        "format": data.read.format,
        "evidence": data.read.evidence,
        "task": profile.kind,
        "ceiling": None if data.conflicts.ceiling is None else data.conflicts.ceiling.value,
        "findings": [asdict(f) for f in findings],
        "rejects": [asdict(r) for r in rejects],
        "lengths": None if view is None else asdict(length_summary(view.lengths)),
        "split": None
        if split is None
        else {"train": len(split.train), "dev": len(split.dev), "test": len(split.test), "notes": list(split.notes)},
        "worst": worst,
    }
    return {"lines": lines, "json": found, "pieces": view.pieces if view else (), "is_refused": worst == "error"}


def _read_lines(data: CheckedData) -> list[str]:
    lines: list[str] = []
    for name, read in (("", data.read), ("test: ", data.test), ("dev: ", data.dev)):
        if read is None:
            continue
        lines.append(f"{name}{read.num_read} rows read = {len(read.examples)} kept + {len(read.rejects)} rejected")
        lines.append(f"  format: {read.format} ({read.evidence})")
    rejects = all_rejects(data)
    for reject in rejects[:SHOWN_REJECTS]:
        lines += [f"  {Path(reject.path).name}:{reject.line}: {reject.reason}", f"    fix: {reject.fix}"]
    if len(rejects) > SHOWN_REJECTS:
        lines.append(f"  … and {len(rejects) - SHOWN_REJECTS} more; `--json` lists them")
    return lines


def _task_lines(data: CheckedData, profile: TaskProfile) -> list[str]:
    lines = [f"task: {profile.kind} ({profile.evidence})"]
    ceiling = data.conflicts.ceiling
    if ceiling is not None and ceiling.value is not None and ceiling.value < 1:
        lines.append(
            f"ceiling: your own answers contradict each other; no model can exceed {100 * ceiling.value:.1f} % exact on these rows"
        )
    return lines


def _split_lines(split: Split | None) -> list[str]:
    if split is None:
        return []
    origin = "your own" if split.official_test else "locked"
    return [
        f"split with seed {split.seed}: {len(split.train)} train, {len(split.dev)} dev, {len(split.test)} {origin} test",
        *(f"  {note}" for note in split.notes),
    ]


def _as_finding(what: str, error: InputError) -> Finding:
    """What `luthier run` would refuse, among the other findings."""
    where = f" ({error.where})" if error.where else ""
    return Finding(code=f"refused-{what}", severity="error", message=f"{error.message}{where}", fix=error.fix, count=1)


def _finding_lines(findings: tuple[Finding, ...]) -> list[str]:
    if not findings:
        return ["nothing found"]
    order = {"error": 0, "warning": 1, "info": 2}
    lines: list[str] = []
    for finding in sorted(findings, key=lambda f: (order[f.severity], f.code)):
        lines.append(f"{MARK[finding.severity]} {finding.code}: {finding.message}")
        places = ", ".join(f"{Path(path).name}:{line}" for path, line in finding.where[:SHOWN_PLACES])
        more = f" and {finding.count - SHOWN_PLACES} more" if finding.count > SHOWN_PLACES and places else ""
        if places:
            lines.append(f"      at {places}{more}")
        lines.append(f"      fix: {finding.fix}")
    return lines


def _length_lines(view: TokenView | None, why_not: str) -> list[str]:
    if view is None:
        return [f"token lengths: not measured ({why_not})"]
    summary = length_summary(view.lengths)
    lines = [f"token lengths: n {summary.n}, median {summary.p50}, p90 {summary.p90}, p99 {summary.p99}, longest {summary.max}"]
    if len(summary.bins) > 1:
        most = max(count for _, _, count in summary.bins)
        bars = "".join(BARS[-(-count * (len(BARS) - 1) // most)] for _, _, count in summary.bins)
        lines.append(f"  {summary.min} {bars} {summary.max} tokens, up to {most} rows a bar")
    return lines


def _verdict_line(worst: str, findings: tuple[Finding, ...]) -> str:
    counts = {s: sum(f.severity == s for f in findings) for s in MARK}
    told = f"{counts['error']} errors, {counts['warning']} warnings, {counts['info']} notes"
    return {
        "error": f"Not ready: {told}. A verdict on these rows could not be trusted; mend the errors first.",
        "warning": f"Usable: {told}. Look at the warnings before you spend time on training.",
        "info": f"Ready: {told}.",
    }[worst]
