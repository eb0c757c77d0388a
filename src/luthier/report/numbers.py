"""Numbers as people read them: points, dollars, times. None is always shown as not measured, never as zero."""

from __future__ import annotations

import math
from datetime import datetime

from luthier.core.types import Estimate

NOT_MEASURED = "—"
MINUS = "−"
MIN_USD = 1e-4  # below this an amount is shown as "less than"


def points(score: float | None) -> str:
    """A score in [0, 1] as points: 0.823 -> "82.3"."""
    return _fixed(None if score is None else 100 * score, 1)


def signed_points(difference: float | None) -> str:
    """A difference of scores as points with its sign: 0.11 -> "+11.0". Nothing is shown as "-0.0"."""
    text = points(difference)
    return text if difference is None or text.startswith(MINUS) or text == "0.0" or not math.isfinite(difference) else f"+{text}"


def interval(estimate: Estimate) -> str:
    """The interval of a score: "[77.6, 86.3]"; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{points(estimate.low)}, {points(estimate.high)}]"


def usd_interval(estimate: Estimate) -> str:
    """The interval of an amount in US dollars; empty where there is none, or where all of it is next to nothing."""
    if estimate.low is None or estimate.high is None or 0 < estimate.high < MIN_USD:
        return ""
    return f"[{usd(estimate.low)}, {usd(estimate.high)}]"


def duration_interval(estimate: Estimate) -> str:
    """The interval of a time and the number of requests it stands on; an end those cannot tell is "…"."""
    if estimate.value is None:
        return ""
    if estimate.low is None and estimate.high is None:
        return f"n = {estimate.n:,}"
    low, high = ("…" if end is None else duration(end) for end in (estimate.low, estimate.high))
    return f"[{low}, {high}], n = {estimate.n:,}"


def usd(amount: float | None) -> str:
    """US dollars, two significant digits below one dollar: 0.0214 -> "$0.021"; digits below a hundredth of a cent are noise."""
    if amount is None or not math.isfinite(amount):
        return _fixed(amount, 0)
    if 0 < amount < MIN_USD:
        return f"< ${MIN_USD:.4f}"
    if amount == 0 or abs(amount) >= 1:
        text = f"{abs(amount):,.2f}" if abs(amount) < 100 else f"{abs(amount):,.0f}"
    else:
        digits = min(9, 1 - math.floor(math.log10(abs(amount))))
        text = f"{abs(amount):.{max(2, digits)}f}"
    return f"{MINUS if amount < 0 else ''}${text}"


def duration(seconds: float | None) -> str:
    """A time: "420 ms", "1.23 s", "7 min 30 s", "2 h 05 min"."""
    if seconds is None or not math.isfinite(seconds):
        return _fixed(seconds, 0)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.00995 else f"{seconds * 1000:.1f} ms"
    if seconds < 59.995:
        return f"{seconds:#.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def count(number: float | None) -> str:
    """A whole number with thousands separated."""
    return _fixed(number, 0)


def gib(size: float | None) -> str:
    """Memory in GiB."""
    return NOT_MEASURED if size is None else f"{_fixed(size, 2)} GiB"


def p_value(value: float | None) -> str:
    """A p value to three digits: "0.012", "< 0.001"."""
    if value is None:
        return NOT_MEASURED
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def share(value: float | None) -> str:
    """A share as a percentage: 0.237 -> "23.7 %"."""
    return NOT_MEASURED if value is None else f"{_fixed(100 * value, 1)} %"


def significant(value: float | None) -> str:
    """Three significant digits, for losses and learning rates: 0.0002 -> "0.0002", 1.23456 -> "1.23"."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.3g}".replace("-", MINUS) if math.isfinite(value) else _fixed(value, 0)


def moment(created: str) -> str:
    """An ISO 8601 time to the minute: "2026-11-14 16:42 UTC"; anything else is shown as it is."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = "" if when.tzinfo is None else " UTC" if not when.utcoffset() else when.strftime(" %z")
    return f"{when:%Y-%m-%d %H:%M}{zone}"


def plain(value: float) -> str:
    """A number of any size in six digits: 1234567.0 -> "1,234,567", 0.1234567 -> "0.123457"."""
    return f"{value:,.0f}" if math.isfinite(value) and value == round(value) and abs(value) < 1e15 else f"{value:.6g}"


def _fixed(value: float | None, digits: int) -> str:
    if value is None:
        return NOT_MEASURED
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else f"{MINUS}infinite"
    text = f"{abs(value):,.{digits}f}"
    is_zero = not any(char in "123456789" for char in text)
    return text if value >= 0 or is_zero else f"{MINUS}{text}"
