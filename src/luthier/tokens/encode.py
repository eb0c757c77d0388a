"""All examples as token rows. Nothing is left out or cut without being counted and listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.core.errors import InputError
from luthier.core.types import Example, Finding, Severity, TokenRow
from luthier.tokens.template import ChatEncoder

WARN_OVER_LONG = 0.01
REFUSE_OVER_LONG = 0.10
SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Rows in the order of their examples. `over_long`: ids of all examples longer than `max_length`, cut or left out."""

    rows: tuple[TokenRow, ...]
    over_long: tuple[str, ...]
    findings: tuple[Finding, ...]


def encode_examples(
    encoder: ChatEncoder,
    examples: Sequence[Example],
    *,
    max_length: int,
    allow_truncation: bool,
    longer: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Encoded:
    """Encode every example; `progress(done, total)` is called after each.

    Rows of more than `max_length` tokens are left out and listed: a warning above 1 %, InputError above 10 %. With
    `allow_truncation` they are cut instead, at the end of the response, which then has no end of turn; the prompt is never cut,
    because half a prompt is another task, so a row whose prompt alone fills `max_length` is still left out and listed.
    Longer raw text becomes several rows (`windows`), and is counted. Raw text of a single token, and KTO rows with an unwanted
    response, are left out and counted: these are not to be imitated. `longer` is the remedy named for rows that are too long, where a
    greater `max_length` is none.
    Raises InputError with file and line for a row with nothing to learn but the end of the turn, and if no row is left.
    """
    longer = longer or f"allow longer rows: --set model.max_length={2 * max_length}"
    rows: list[TokenRow] = []
    cut: list[Example] = []
    left_out: list[Example] = []
    over_long: list[Example] = []
    unwanted: list[Example] = []
    too_short: list[Example] = []
    in_windows: list[Example] = []
    for done, example in enumerate(examples, 1):
        if example.desirable is False:
            unwanted.append(example)
        else:
            row = encoder.encode_example(example)
            if example.kind == "text" and row.num_labels <= 1:  # one token, and nothing before it to predict it from
                too_short.append(example)
                continue
            _refuse_without_labels(row, example)
            if len(row.input_ids) <= max_length:
                rows.append(row)
            elif example.kind == "text" and max_length > 1:
                rows += windows(row, max_length)
                in_windows.append(example)
            elif allow_truncation and any(row.is_label[:max_length]):
                rows.append(TokenRow(example_id=row.example_id, input_ids=row.input_ids[:max_length], is_label=row.is_label[:max_length]))
                cut.append(example)
                over_long.append(example)
            else:
                left_out.append(example)
                over_long.append(example)
        if progress is not None:
            progress(done, len(examples))
    _refuse_too_many(over_long, len(examples) - len(unwanted), max_length, allow_truncation, longer)
    if examples and not rows:
        raise InputError("no row is left to train on", where=examples[0].path, fix=longer)
    return Encoded(
        rows=tuple(rows),
        over_long=tuple(example.id for example in over_long),
        findings=_findings(cut, left_out, unwanted, too_short, in_windows, len(examples), max_length, longer),
    )


def windows(row: TokenRow, length: int) -> list[TokenRow]:
    """Raw text as rows of at most `length` (2 or more) tokens: each begins with the last token of the one before, as context.

    So every token that is a label in `row` is one in exactly one window.
    """
    out: list[TokenRow] = []
    for start in range(0, len(row.input_ids) - 1, length - 1):
        end = start + length
        is_label = row.is_label[start:end] if start == 0 else (False, *row.is_label[start + 1 : end])
        out.append(TokenRow(example_id=f"{row.example_id}/{len(out)}", input_ids=row.input_ids[start:end], is_label=is_label))
    return out


def _refuse_without_labels(row: TokenRow, example: Example) -> None:
    if row.num_labels <= 1:  # only the end of the turn
        raise InputError(
            "the response has no token a model could learn: it is empty, or white space that the chat template strips",
            where=f"{example.path}:{example.line}",
            fix="write a response, or remove the row",
        )


def _refuse_too_many(over_long: Sequence[Example], total: int, max_length: int, allow_truncation: bool, longer: str) -> None:
    if allow_truncation or not over_long or len(over_long) <= REFUSE_OVER_LONG * total:
        return
    shown = ", ".join(f"{example.path}:{example.line}" for example in over_long[:5])
    raise InputError(
        f"{len(over_long):,} of {total:,} rows ({len(over_long) / total:.0%}) are longer than {max_length:,} tokens; first: {shown}",
        where=f"{over_long[0].path}:{over_long[0].line}",
        fix=longer + ", or cut them knowingly: --set model.allow_truncation=true",
    )


def _findings(
    cut: Sequence[Example],
    left_out: Sequence[Example],
    unwanted: Sequence[Example],
    too_short: Sequence[Example],
    in_windows: Sequence[Example],
    total: int,
    max_length: int,
    longer: str,
) -> tuple[Finding, ...]:
    out: list[Finding] = []
    severity: Severity = "warning" if len(cut) + len(left_out) > WARN_OVER_LONG * total else "info"
    kinds: tuple[tuple[str, Sequence[Example], Severity, str, str], ...] = (
        ("over_long_cut", cut, severity, f"longer than {max_length:,} tokens: the end of the response is cut off", longer),
        ("over_long_left_out", left_out, severity, f"longer than {max_length:,} tokens and left out", longer),
        ("too_short_left_out", too_short, "info", "of one token, with nothing to learn, and left out", "nothing to do, or remove them"),
        ("text_in_windows", in_windows, "info", f"raw text longer than {max_length:,} tokens, trained on in pieces", "nothing to do"),
        ("unwanted_left_out", unwanted, "info", "marked as unwanted and not trained on", "nothing to do; only wanted answers are imitated"),
    )
    for code, found, level, message, fix in kinds:
        if found:
            out.append(
                Finding(
                    code=code,
                    severity=level,
                    message=f"{len(found):,} of {total:,} rows: {message}",
                    fix=fix,
                    count=len(found),
                    where=tuple((example.path, example.line) for example in found[:SHOWN]),
                )
            )
    return tuple(out)
