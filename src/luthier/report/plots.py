"""The plots of the report, each one inline SVG made from numbers that are also in a table or sentence beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from markupsafe import Markup

from luthier.core.types import Comparison
from luthier.report import numbers
from luthier.report.model import ArmRow, CurvePoint, LearningBand, LearningPoint
from luthier.report.svg import Axis, element, figure, label, line, linear_axis, log_axis, marker, path, shown_length, text

WIDTH = 720.0
STRIP_WIDTH = 560.0
MAX_CURVE_POINTS = 400
MAX_FOREST_ROWS = 24


def effect_strip(primary: Comparison, margin: float, family: str = "tuned") -> Markup | None:
    """The paired difference with its 95 % interval (thin) and 90 % interval (thick), zero, and the margin as a band."""
    ends = [primary.difference, primary.low95, primary.high95]
    if not all(math.isfinite(value) for value in (*ends, primary.low90, primary.high90, margin)):
        return None
    axis = linear_axis([0.0, 100 * margin, -100 * margin, *(100 * value for value in ends)], 16, STRIP_WIDTH - 16)
    zero, y = axis.at(0), 44.0
    left, right = axis.at(-100 * margin), axis.at(100 * margin)
    parts = [
        element("rect", {"x": left, "y": 22, "width": right - left, "height": 44, "class": "band"}),
        line(zero, 16, zero, 70, "zero"),
        line(axis.start, 70, axis.end, 70, "axis"),
        *_x_ticks(axis, 70, numbers.count if axis.high - axis.low > 8 else _plain),
        line(axis.at(100 * primary.low95), y, axis.at(100 * primary.high95), y, f"interval {family}"),
        line(axis.at(100 * primary.low90), y, axis.at(100 * primary.high90), y, f"interval thick {family}"),
        marker(axis.at(100 * primary.difference), y, family, 6.5),
    ]
    # The name of the winner on each side of zero, where there is room for it.
    if 7 * shown_length(better := f"← {label(primary.b)} better") <= zero:
        parts.append(text(zero - 8, 12, better, "small muted", "end"))
    if 7 * shown_length(better := f"{label(primary.a)} better →") <= STRIP_WIDTH - zero:
        parts.append(text(zero + 8, 12, better, "small muted"))
    described = f"{numbers.signed_points(primary.difference)} points, 95 % interval {numbers.signed_points(primary.low95)} to "
    described += f"{numbers.signed_points(primary.high95)}, margin {numbers.points(margin)} points."
    return figure("effect", f"{label(primary.a)} minus {label(primary.b)}", described, STRIP_WIDTH, 96, *parts)


def forest(rows: Sequence[ArmRow], best: frozenset[str] = frozenset()) -> Markup | None:
    """Score and interval of each arm, one line each, with the best floor as a dashed line. None without a single score."""
    rows = rows[:MAX_FOREST_ROWS]
    scored = [row for row in rows if row.score.value is not None and math.isfinite(row.score.value)]
    if not scored:
        return None
    ends = [100 * end for row in scored for end in (row.score.value, row.score.low, row.score.high) if end is not None]
    margin = max(90.0, 8.6 * max(shown_length(label(row.name)) for row in rows))
    axis = linear_axis(ends, margin + 18, 552, floor=min(0.0, *ends), ceiling=max(100.0, *ends))
    top, step = 30.0, 30.0
    bottom = top + step * len(rows)
    parts = [line(axis.at(tick), top - 6, axis.at(tick), bottom, "grid") for tick in axis.ticks()]
    parts += _x_ticks(axis, bottom, _plain)
    floors = [row.score.value for row in scored if row.family == "floor" and row.score.value is not None]
    if floors:
        x = axis.at(100 * max(floors))
        anchor = "start" if x < 300 else "end" if x > 480 else "middle"
        parts += [
            line(x, top - 10, x, bottom, "floor-line"),
            text(x, top - 15, f"best floor {numbers.points(max(floors))}", "small muted", anchor),
        ]
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5)
        weight = "strong" if row.name in best else ""
        parts.append(text(margin, y + 4.5, label(row.name), weight, "end"))
        parts += _forest_row(row, axis, y, weight)
    parts.append(text((axis.start + axis.end) / 2, bottom + 38, "points, with 95 % interval", "small muted", "middle"))
    said = "; ".join(f"{label(row.name)}: {_score_words(row)}" for row in rows)
    return figure("forest", "Score of each arm on the locked test items", said, WIDTH, bottom + 46, *parts)


def loss_curve(points: Sequence[CurvePoint]) -> Markup | None:
    """Train and dev loss against step. None with fewer than two finite points of both together."""
    train = _thin([(point.step, point.train_loss) for point in points if point.train_loss is not None])
    dev = _thin([(point.step, point.dev_loss) for point in points if point.dev_loss is not None])
    finite = [(step, loss) for step, loss in (*train, *dev) if math.isfinite(loss)]
    if len(finite) < 2:
        return None
    x_axis = linear_axis([step for step, _ in finite], 56, WIDTH - 76, floor=0.0)
    y_axis = linear_axis([loss for _, loss in finite], 250, 16)
    parts = _grid(y_axis, x_axis, numbers.significant)
    parts += _x_ticks(x_axis, 250, numbers.count)
    parts.append(text((x_axis.start + x_axis.end) / 2, 288, "optimiser step", "small muted", "middle"))
    for name, series, css in (("train", train, "curve train"), ("dev", dev, "curve dev")):
        runs = _finite_runs(series)
        parts += [path([(x_axis.at(step), y_axis.at(loss)) for step, loss in run], css) for run in runs if len(run) > 1]
        if name == "dev" and len(series) <= 60:
            parts += [
                element("circle", {"cx": x_axis.at(s), "cy": y_axis.at(v), "r": 3.5, "class": "mark tuned"}) for run in runs for s, v in run
            ]
    parts += _end_labels(x_axis, y_axis, {"train": train, "dev": dev})
    said = "; ".join(
        f"{name} loss from {series[0][1]:.3g} to {series[-1][1]:.3g}" for name, series in (("train", train), ("dev", dev)) if series
    )
    return figure("loss", "Loss during training", said, WIDTH, 294, *parts)


def score_against_cost(rows: Sequence[ArmRow]) -> Markup | None:
    """Score against the cost of 1,000 requests (logarithmic). None with fewer than two arms that have both."""
    known = [(row, row.score.value, row.cost_per_1000.value) for row in rows[:MAX_FOREST_ROWS]]
    placed = [(row, 100 * score, cost) for row, score, cost in known if score is not None and cost is not None and 0 < cost < math.inf]
    placed = [(row, score, cost) for row, score, cost in placed if math.isfinite(score)]
    if len(placed) < 2:
        return None
    placed = [(row, score, max(cost, numbers.MIN_USD)) for row, score, cost in placed]
    x_axis = log_axis([cost for _, _, cost in placed], 56, WIDTH - 150)
    ends = [100 * end for row, _, _ in placed for end in (row.score.low, row.score.high) if end is not None]
    y_axis = linear_axis([score for _, score, _ in placed] + ends, 290, 20, floor=min(0.0, *ends), ceiling=max(100.0, *ends))
    parts = _grid(y_axis, x_axis, _plain)
    parts += _x_ticks(x_axis, 290, lambda tick: f"${tick:.10f}".rstrip("0").rstrip("."))
    parts.append(
        text(
            (x_axis.start + x_axis.end) / 2,
            328,
            "US dollars for 1,000 requests (logarithmic): cheaper is left, better is up",
            "small muted",
            "middle",
        )
    )
    taken: list[tuple[float, float, float, float]] = []
    for row, score, cost in placed:
        x, y = x_axis.at(cost), y_axis.at(score)
        low, high = y + 8, y - 8
        if row.score.low is not None and row.score.high is not None:
            low, high = y_axis.at(100 * row.score.low), y_axis.at(100 * row.score.high)
            parts.append(line(x, low, x, high, f"interval {row.family}"))
        parts.append(marker(x, y, row.family))
        taken += [(x - 8, y - 8, x + 8, y + 8), (x - 1, high, x + 1, low)]
    parts += [_free_label(x_axis.at(cost), y_axis.at(score), label(row.name, 24), taken) for row, score, cost in placed]
    said = "; ".join(f"{label(row.name)}: {score:.1f} points at {numbers.usd(cost)}" for row, score, cost in placed)
    return figure("cost", "Score against cost", said, WIDTH, 334, *parts)


def length_histogram(lengths: Sequence[int], key: str, title: str) -> Markup | None:
    """How many examples have how many tokens, in about 24 bins, with the median and the longest named."""
    if len(lengths) < 2:
        return None
    ordered = sorted(lengths)
    x_axis = linear_axis([0.0, *(float(end) for end in (ordered[0], ordered[-1]))], 12, 338, floor=0.0)
    width = max(1, math.ceil((x_axis.high - x_axis.low) / 24))
    bins = Counter(length // width for length in ordered)
    y_axis = Axis(0.0, float(max(bins.values())), 138, 26)
    bars: list[Markup] = []
    for index in sorted(bins):
        left, right, y = x_axis.at(index * width), x_axis.at((index + 1) * width), y_axis.at(bins[index])
        bars.append(element("rect", {"x": left + 0.5, "y": y, "width": max(right - left - 1, 0.8), "height": 138 - y, "class": "bar"}))
    median = ordered[len(ordered) // 2]
    x = x_axis.at(median)
    parts = [*bars, line(12, 138, 338, 138, "axis"), *_x_ticks(x_axis, 138, numbers.count), line(x, 20, x, 138, "floor-line")]
    parts.append(
        text(x, 14, f"median {median:,}, longest {ordered[-1]:,}", "small muted", "start" if x < 120 else "end" if x > 230 else "middle")
    )
    said = f"{len(ordered):,} examples; median {median:,} tokens, longest {ordered[-1]:,}."
    return figure(f"lengths-{key}", title, said, 350, 166, *parts)


def learning_curve(points: Sequence[LearningPoint], prompt_score: float | None, band: Sequence[LearningBand] = ()) -> Markup | None:
    """Score of the tuned arm against the number of training examples, the best prompt as a dashed line, the fitted law as a band."""
    known = [(point, 100 * point.score.value) for point in points if point.score.value is not None and point.num_examples > 0]
    if len(known) < 2:
        return None
    ends = [100 * end for point, _ in known for end in (point.score.low, point.score.high) if end is not None]
    prompt = [] if prompt_score is None else [100 * prompt_score]
    ends += [100 * end for at in band for end in (at.low, at.high)]
    x_axis = log_axis([*(point.num_examples for point, _ in known), *(at.num_examples for at in band)], 56, WIDTH - 24)
    y_axis = linear_axis([*(score for _, score in known), *ends, *prompt], 220, 20, floor=0.0, ceiling=100.0)
    parts = _grid(y_axis, x_axis, _plain)
    parts += [text(x_axis.at(point.num_examples), 240, numbers.count(point.num_examples), "small", "middle") for point, _ in known]
    parts.append(text((x_axis.start + x_axis.end) / 2, 260, "training examples (logarithmic)", "small muted", "middle"))
    for value in prompt:
        parts += [line(x_axis.start, y_axis.at(value), x_axis.end, y_axis.at(value), "floor-line prompt")]
        parts += [text(x_axis.end, y_axis.at(value) - 6, f"best prompt {value:.1f}", "small muted", "end")]
    if band:
        edge = [(x_axis.at(at.num_examples), y_axis.at(100 * at.high)) for at in band]
        edge += [(x_axis.at(at.num_examples), y_axis.at(100 * at.low)) for at in reversed(band)]
        parts.append(path(edge, "band"))
        parts.append(path([(x_axis.at(at.num_examples), y_axis.at(100 * at.score)) for at in band], "curve dev"))
    else:
        parts.append(path([(x_axis.at(point.num_examples), y_axis.at(score)) for point, score in known], "curve dev"))
    for point, score in known:
        x = x_axis.at(point.num_examples)
        if point.score.low is not None and point.score.high is not None:
            parts.append(line(x, y_axis.at(100 * point.score.low), x, y_axis.at(100 * point.score.high), "interval tuned"))
        parts.append(marker(x, y_axis.at(score), "tuned"))
    said = "; ".join(f"{point.num_examples:,} examples: {score:.1f}" for point, score in known)
    return figure("learning", "Score against number of training examples", said, WIDTH, 266, *parts)


# ---------------------------------------------------------------- pieces


def _plain(value: float) -> str:
    return f"{value:g}".replace("-", numbers.MINUS)


def _x_ticks(axis: Axis, y: float, show: Callable[[float], str]) -> list[Markup]:
    return [text(axis.at(tick), y + 18, show(tick), "small", "middle") for tick in axis.ticks()]


def _grid(y_axis: Axis, x_axis: Axis, show: Callable[[float], str]) -> list[Markup]:
    parts: list[Markup] = []
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        parts += [line(x_axis.start, y, x_axis.end, y, "grid"), text(x_axis.start - 8, y + 4.5, show(tick), "small", "end")]
    return parts


def _score_words(row: ArmRow) -> str:
    if row.failed is not None:
        return "failed"
    if row.score.value is None:
        return "not measured"
    return f"{numbers.points(row.score.value)} {numbers.interval(row.score)}".strip()


def _forest_row(row: ArmRow, axis: Axis, y: float, weight: str) -> list[Markup]:
    words = _score_words(row)
    if row.failed is not None or row.score.value is None or not math.isfinite(row.score.value):
        return [text(566, y + 4.5, words, "muted")]
    parts: list[Markup] = []
    if row.score.low is not None and row.score.high is not None:
        low, high = axis.at(100 * row.score.low), axis.at(100 * row.score.high)
        parts = [line(low, y, high, y, f"interval {row.family}")]
        parts += [line(x, y - 4, x, y + 4, f"interval {row.family}") for x in (low, high)]
    return [*parts, marker(axis.at(100 * row.score.value), y, row.family), text(566, y + 4.5, words, weight)]


def _thin(series: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most MAX_CURVE_POINTS points: means over equal runs of steps. A run with a non-finite loss stays non-finite."""
    if len(series) <= MAX_CURVE_POINTS:
        return [(float(step), loss) for step, loss in series]
    size = math.ceil(len(series) / MAX_CURVE_POINTS)
    runs = [series[index : index + size] for index in range(0, len(series), size)]
    return [(sum(step for step, _ in run) / len(run), sum(loss for _, loss in run) / len(run)) for run in runs]


def _finite_runs(series: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Split at non-finite losses, so that a NaN is a gap in the line and never bridged."""
    runs: list[list[tuple[float, float]]] = [[]]
    for step, loss in series:
        if math.isfinite(loss):
            runs[-1].append((step, loss))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _end_labels(x_axis: Axis, y_axis: Axis, series: dict[str, list[tuple[float, float]]]) -> list[Markup]:
    """Name and last value of each curve at its right end, kept 16 px apart."""
    ends: list[tuple[float, float, str]] = []
    for name, run in series.items():
        finite = [point for point in run if math.isfinite(point[1])]
        if finite:
            step, loss = finite[-1]
            ends.append((y_axis.at(loss), x_axis.at(step), f"{name} {loss:.3g}"))
    ends.sort()
    placed: list[Markup] = []
    lowest = -math.inf
    for y, x, words in ends:
        lowest = max(y, lowest + 16)
        placed.append(text(x + 9, lowest + 4, words, "small"))
    return placed


def _free_label(x: float, y: float, words: str, taken: list[tuple[float, float, float, float]]) -> Markup:
    """Put a label right, left, above or below its mark, at the first place that is free; `taken` learns the box."""
    width = 7.2 * shown_length(words)
    beside = [(x + 12, y + 4.5, "start"), (x - 12, y + 4.5, "end"), (x, y - 14, "middle"), (x, y + 24, "middle")]
    corners = [(x + 8, y - 12, "start"), (x - 8, y - 12, "end"), (x + 8, y + 22, "start"), (x - 8, y + 22, "end")]
    crowded = beside[1] if x > WIDTH / 2 else beside[0]
    for place in (*beside, *corners, crowded):
        left = place[0] - {"start": 0.0, "middle": width / 2, "end": width}[place[2]]
        box = (left, place[1] - 12, left + width, place[1] + 4)
        if 56 <= left <= WIDTH - width and all(box[2] < b[0] or box[0] > b[2] or box[3] < b[1] or box[1] > b[3] for b in taken):
            break
    else:
        place, box = crowded, (0.0, 0.0, 0.0, 0.0)
    taken.append(box)
    return text(place[0], place[1], words, "small", place[2])
