"""Small inline-SVG building blocks: elements, axes, figures.

No colour is written here: shapes carry CSS classes, text is in the page's font, so that dark mode, print and contrast
are decided in one style sheet. Text goes through `render_untrusted`; attributes are numbers or names from this package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from luthier.core.untrusted import render_untrusted, reveal

MAX_LABEL_CHARS = 30
_WHITESPACE = re.compile("[ \\t\\n]+")


def element(name: str, attributes: dict[str, str | float] | None = None, *children: str) -> Markup:
    """One element. Plain-string children are escaped, Markup children are taken as they are; numbers keep one decimal."""
    shown = "".join(f' {key}="{render_untrusted(_value(value), "html")}"' for key, value in (attributes or {}).items())
    body = "".join(child if isinstance(child, Markup) else render_untrusted(child, "html") for child in children)
    return Markup(f"<{name}{shown}>{body}</{name}>")  # noqa: S704 names are ours, values and children were escaped above


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    """A straight line."""
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": css})


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> Markup:
    """Text with its baseline at y; `anchor` is start, middle or end."""
    attributes: dict[str, str | float] = {"x": x, "y": y}
    if css:
        attributes["class"] = css
    if anchor != "start":
        attributes["text-anchor"] = anchor
    return element("text", attributes, content)


def path(points: Sequence[tuple[float, float]], css: str) -> Markup:
    """A polyline through `points`."""
    steps = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    return element("path", {"d": steps, "class": css})


def marker(x: float, y: float, family: str, size: float = 5.5) -> Markup:
    """The mark of an arm: diamond for a floor, circle for a prompt, square for a tuned arm (shape, not only colour)."""
    if family == "prompt":
        return element("circle", {"cx": x, "cy": y, "r": size, "class": f"mark {family}"})
    if family == "tuned":
        return element("rect", {"x": x - size, "y": y - size, "width": 2 * size, "height": 2 * size, "class": f"mark {family}"})
    reach = size * 1.3
    corners = f"M{x:.1f} {y - reach:.1f}L{x + reach:.1f} {y:.1f}L{x:.1f} {y + reach:.1f}L{x - reach:.1f} {y:.1f}Z"
    return element("path", {"d": corners, "class": f"mark {family}"})


def figure(key: str, title: str, description: str, width: float, height: float, *children: str) -> Markup:
    """A whole drawing with its name and description for those who cannot see it. `key` is unique on the page."""
    return element(
        "svg",
        {
            "viewBox": f"0 0 {width:.0f} {height:.0f}",
            "width": f"{width:.0f}",
            "height": f"{height:.0f}",
            "role": "img",
            "aria-labelledby": f"{key}-title {key}-desc",
        },
        element("title", {"id": f"{key}-title"}, title),
        element("desc", {"id": f"{key}-desc"}, description),
        *children,
    )


def label(name: str, limit: int = MAX_LABEL_CHARS) -> str:
    """A name short enough for a plot, on one line, still to be escaped; the whole name is in the table beside it."""
    flat = _WHITESPACE.sub(" ", name[: 4 * limit]).strip(" ")
    if len(name) <= 4 * limit and shown_length(flat) <= limit:
        return flat
    while shown_length(flat) > limit - 1:
        flat = flat[:-1]
    return f"{flat.rstrip(' ')}…"


def shown_length(words: str) -> int:
    """Characters of `words` as drawn, hidden characters shown as marks."""
    return len(reveal(words))


@dataclass(frozen=True, slots=True)
class Axis:
    """A map from values low..high to pixels start..end, linear or logarithmic. Values outside are held at the ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a finite value."""
        low, high, value = (
            (math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))) if self.log else (self.low, self.high, value)
        )
        place = (value - low) / (high - low)
        return self.start + min(1.0, max(0.0, place)) * (self.end - self.start)

    def ticks(self, target: int = 5) -> list[float]:
        """Round values within the axis, about `target` of them."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 2, 5) if len(exponents) <= 3 else (1,)
            decades = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            return [tick for tick in decades if self.low <= tick <= self.high]
        step = nice_step((self.high - self.low) / target)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def nice_step(rough: float) -> float:
    """The step of 1, 2 or 5 times a power of ten next above `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def linear_axis(values: Sequence[float], start: float, end: float, *, floor: float | None = None, ceiling: float | None = None) -> Axis:
    """An axis with round ends around `values` (finite ones; at least 1 wide in the last digit shown)."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    spread = high - low or max(abs(high), 1.0) * 0.1
    step = nice_step(spread / 4)
    low, high = math.floor((low - 0.02 * spread) / step) * step, math.ceil((high + 0.02 * spread) / step) * step
    low = low if floor is None else max(low, floor)
    high = high if ceiling is None else min(high, ceiling)
    return Axis(low, high if high > low else low + step, start, end)


def log_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """A logarithmic axis a little wider than the positive `values`."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0, 10.0]
    return Axis(min(positive) / 1.6, max(positive) * 1.6, start, end, log=True)


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
