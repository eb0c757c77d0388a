"""The section "Behaviour before and after" in words and pictures; its numbers come from `verdict.behaviour`."""

from __future__ import annotations

from markupsafe import Markup

from luthier.core.types import Estimate
from luthier.report import numbers
from luthier.report.svg import Axis, figure, label, line, marker, path, text
from luthier.verdict.behaviour import Behaviour
from luthier.verdict.behaviour_numbers import BehaviourLine

# The lines a manager is told of, in words that stand in a sentence.
TOLD = {
    "answers": "answers instead of going on",
    "stops": "ends by itself",
    "keeps_form": "keeps the wanted form",
    "consistency": "gives the same answer again",
    "style_match": "sounds like the training answers",
    "brier": "knows when it is right (Brier score, lower is better)",
}
PANEL, GAP, LEFT, TOP, BOTTOM = 250.0, 60.0, 46.0, 30.0, 290.0
FAMILY = {"tuned": "tuned", "prompt": "prompt"}


def summary(behaviour: Behaviour) -> tuple[str, ...]:
    """What became better, worse, or is not shown to have changed, from the best prompt to the tuned arm: up to three sentences."""
    groups: dict[str, list[str]] = {"Better after tuning": [], "Worse after tuning": [], "No change shown": []}
    for told in _told(behaviour):
        groups[_direction(told)].append(f"{TOLD[told.key]}, {_from_to(told)}")
    return tuple(f"{title}: {'; '.join(parts)}." for title, parts in groups.items() if parts)


def terminal_words(behaviour: Behaviour) -> str:
    """One line for the end of a run: from the best prompt to the tuned arm."""
    parts = []
    for told in _told(behaviour):
        before, after = told.values[-3].value, told.values[-2].value
        mark = {"Better after tuning": "better", "Worse after tuning": "worse", "No change shown": "not shown to differ"}[_direction(told)]
        parts.append(f"{TOLD[told.key]} {numbers.points(before)} -> {numbers.points(after)} ({mark})")
    return "prompt -> tuned, points: " + "; ".join(parts) if parts else "behaviour was not measured on both arms"


def _told(behaviour: Behaviour) -> list[BehaviourLine]:
    lines = {line.key: line for group in behaviour.groups for line in group.lines}
    return [lines[key] for key in TOLD if key in lines and lines[key].difference is not None]


def _direction(told: BehaviourLine) -> str:
    difference = told.difference
    assert difference is not None
    if difference.low <= 0 <= difference.high:
        return "No change shown"
    return "Better after tuning" if (difference.low > 0) != told.lower_is_better else "Worse after tuning"


def _from_to(told: BehaviourLine) -> str:
    difference = told.difference
    assert difference is not None
    low, high = numbers.signed_points(difference.low), numbers.signed_points(difference.high)
    before, after = numbers.points(told.values[-3].value), numbers.points(told.values[-2].value)
    return f"{before} to {after} ({numbers.signed_points(difference.value)} points, 95 % interval {low} to {high})"


def reliability(behaviour: Behaviour) -> Markup | None:
    """Share right against confidence in ten groups of equal size, a panel an arm. None where no arm has enough answers."""
    roles = {name: role for role, name in behaviour.columns}
    shown = [(name, one.bins) for name, one in behaviour.calibration.items() if one.bins]
    if not shown:
        return None
    parts: list[Markup] = []
    said: list[str] = []
    for index, (name, bins) in enumerate(shown):
        left = LEFT + index * (PANEL + GAP)
        x, y = Axis(0.0, 100.0, left, left + PANEL), Axis(0.0, 100.0, BOTTOM, TOP)
        family = FAMILY.get(roles.get(name, ""), "prompt")
        for tick in (0.0, 25.0, 50.0, 75.0, 100.0):
            parts += [
                line(left, y.at(tick), left + PANEL, y.at(tick), "grid"),
                text(x.at(tick), BOTTOM + 18, f"{tick:g}", "small", "middle"),
            ]
            if index == 0:
                parts.append(text(left - 8, y.at(tick) + 4.5, f"{tick:g}", "small", "end"))
        parts.append(line(x.at(0), y.at(0), x.at(100), y.at(100), "floor-line"))
        parts.append(text(left + PANEL / 2, TOP - 12, label(name), "strong", "middle"))
        parts.append(text(left + PANEL / 2, BOTTOM + 38, "confidence", "small muted", "middle"))
        parts.append(path([(x.at(100 * one.sure), y.at(100 * (one.right.value or 0.0))) for one in bins], "curve dev"))
        for one in bins:
            at = x.at(100 * one.sure)
            if one.right.low is not None and one.right.high is not None:
                parts.append(line(at, y.at(100 * one.right.low), at, y.at(100 * one.right.high), f"interval {family}"))
            parts.append(marker(at, y.at(100 * (one.right.value or 0.0)), family, 4.0))
        pairs = ", ".join(f"{100 * one.sure:.0f} sure {100 * (one.right.value or 0.0):.0f} right" for one in bins)
        said.append(f"{label(name)}: {pairs}")
    width = LEFT + len(shown) * (PANEL + GAP) - GAP + 12
    return figure("reliability", "Share right against confidence", "; ".join(said), width, BOTTOM + 48, *parts)


def behaviour_json(behaviour: Behaviour) -> dict[str, object]:
    """The section for programs: scores in [0, 1], null where not measured."""
    columns = [{"role": role, "arm": name} for role, name in behaviour.columns]
    lines = [
        {
            "key": one.key,
            "group": group.title,
            "what": one.what,
            "lower_is_better": one.lower_is_better,
            "values": {role: _interval(value) for (role, _), value in zip(behaviour.columns, one.values, strict=True)},
            "tuned_minus_prompt": None
            if one.difference is None
            else {"value": one.difference.value, "low": one.difference.low, "high": one.difference.high},
        }
        for group in behaviour.groups
        for one in group.lines
    ]
    return {"columns": columns, "lines": lines, "notes": [note for group in behaviour.groups for note in group.notes]}


def _interval(value: Estimate) -> dict[str, object] | None:
    if value.value is None:
        return None
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n, "method": value.method}
