"""What an export says to people when it is done, or refused."""

from __future__ import annotations

from pathlib import Path

from luthier.core.exports import DifferentAnswer, ExportRecord, SecondReading
from luthier.core.types import Estimate
from luthier.report import numbers

MAX_ANSWER_CHARS = 300
MAX_DIFFERENT = 5


def lines_of(record: ExportRecord, out: Path) -> list[str]:
    """The closing lines. Answers are untrusted; the console renders all lines for a terminal."""
    parity = record.parity
    total = sum(record.files.values())
    head = (
        f"not exported: {record.kind} ({record.storage}) does not answer like the tested model; nothing was written to {out}"
        if parity.failures
        else f"exported {record.kind} ({record.storage}) to {out}: {len(record.files)} files, {total / 2**20:,.1f} MiB"
    )
    num_different = parity.n - parity.num_exact - parity.num_ties
    holds = [name for name, is_held in parity.checks.items() if is_held]
    lines = [
        head,
        *(f"  because {failure}" for failure in parity.failures),
        f"  answers: {parity.n:,} of {parity.num_locked:,} locked items; {parity.num_exact:,} the same, {parity.num_ties:,} ties, "
        f"{num_different:,} different",
        f"  {parity.metric}: tested {_score(parity.tested)}, exported {_score(parity.artefact)}, difference "
        f"{numbers.signed_points(parity.difference.value)} {_signed_interval(parity.difference)}",
        *_as_recorded(record),
        f"  distance: mean KL {parity.mean_kl:.2g} nats a token over {parity.num_tokens:,} tokens of reference answers, largest "
        f"{parity.max_kl:.2g}; largest difference of a logit {parity.max_logit_difference:.2g}",
        f"  allowed: {parity.tolerance_words}",
        *([f"  the same in both: {', '.join(holds)}"] if holds else []),
        f"  read back by: {record.loader}",
        *(_second(parity.llama_cpp, parity.n) if parity.llama_cpp else []),
        *(f"  note: {note}" for note in record.notes),
    ]
    second = parity.llama_cpp.different if parity.llama_cpp and parity.llama_cpp.failures else ()
    shown = [one for one in (*parity.different, *second) if not one.is_tie or not parity.failures][:MAX_DIFFERENT]
    for one in shown:
        lines += _different(one)
    left = len(parity.different) + len(second) - len(shown)
    return [*lines, *([f"  {left} more in exports.json of the run folder"] if left > 0 else [])]


def _second(found: SecondReading, n: int) -> list[str]:
    holds = [name for name, is_held in found.checks.items() if is_held]
    return [
        f"  read by {found.program} too: {found.num_exact:,} of {n:,} answers the same, {found.num_ties:,} ties, "
        f"{n - found.num_exact - found.num_ties:,} different; scores {_score(found.artefact)}, difference "
        f"{numbers.signed_points(found.difference.value)} {_signed_interval(found.difference)}",
        f"    mean KL {found.mean_kl:.2g}, largest {found.max_kl:.2g}; largest difference of a logit {found.max_logit_difference:.2g}; "
        f"the same in both: {', '.join(holds) or 'nothing'}; allowed: {found.tolerance_words}",
    ]


def _as_recorded(record: ExportRecord) -> list[str]:
    """How the tested model, computed in fp32 as here, compares with the answers the report shows."""
    parity = record.parity
    if parity.num_as_recorded is None or parity.num_as_recorded == parity.n:
        return []
    return [
        f"  in the run's own number format the tested model scored {_score(parity.recorded)} on these items; {parity.num_as_recorded:,} of "
        f"{parity.n:,} answers are the same in fp32, in which both were computed here"
    ]


def _different(one: DifferentAnswer) -> list[str]:
    return [
        f"  item {one.item_id} ({'tie' if one.is_tie else 'different'}: up to {one.gap:.3f} logits below the tested model's best)",
        f"    tested:   {_clip(one.tested)}",
        f"    exported: {_clip(one.artefact)}",
    ]


def _clip(text: str) -> str:
    flat = text.replace("\n", "⏎")
    return flat if len(flat) <= MAX_ANSWER_CHARS else f"{flat[:MAX_ANSWER_CHARS]}… [{len(flat) - MAX_ANSWER_CHARS} more characters]"


def _score(estimate: Estimate) -> str:
    return f"{numbers.points(estimate.value)} {numbers.interval(estimate)}".strip()


def _signed_interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{numbers.signed_points(estimate.low)}, {numbers.signed_points(estimate.high)}]"
