"""Rows as places in a finding."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.types import Example, Finding, Severity

MAX_DETAIL = 20


def finding(
    code: str,
    severity: Severity,
    message: str,
    fix: str,
    rows: Sequence[Example],
    *,
    count: int | None = None,
    detail: tuple[str, ...] = (),
) -> Finding:
    """A finding about `rows`, the first 20 of which are named; `count` is their number unless given."""
    return Finding(
        code=code,
        severity=severity,
        message=message,
        fix=fix,
        count=len(rows) if count is None else count,
        where=tuple((row.path, row.line) for row in rows[:MAX_DETAIL]),
        detail=detail[:MAX_DETAIL],
    )
