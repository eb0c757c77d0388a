"""The plots: well-formed, to scale, honest about gaps, and absent where there is nothing to draw."""

from __future__ import annotations

import dataclasses
import math
import re
from xml.etree import ElementTree

import pytest
from tests.fixtures import reports
from tests.fixtures.hostile import HOSTILE

from luthier.core.types import Estimate
from luthier.core.untrusted import reveal
from luthier.report import plots
from luthier.report.model import CurvePoint, LearningBand, LearningPoint
from luthier.report.svg import label, linear_axis, log_axis

NOTHING = Estimate(value=None, low=None, high=None, n=0, method="")


def _parse(svg: str | None) -> ElementTree.Element:
    assert svg is not None
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    title, description = root[0], root[1]
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}" and title.text and description.text
    width, height = float(root.get("width") or 0), float(root.get("height") or 0)
    for element in root.iter():
        assert element.get("style") is None
        for key, limit in (
            ("x", width),
            ("x1", width),
            ("x2", width),
            ("cx", width),
            ("y", height),
            ("y1", height),
            ("y2", height),
            ("cy", height),
        ):
            if element.get(key) is not None:
                assert -1 <= float(element.get(key) or 0) <= limit + 1, (element.tag, element.attrib)
    return root


def test_forest_is_to_scale() -> None:
    rows = reports.clear_win().rows
    root = _parse(plots.forest(rows))
    ticks = {
        text.text: float(text.get("x") or 0)
        for text in root.iter("text")
        if text.get("text-anchor") == "middle" and (text.text or "").isdigit()
    }
    per_point = (ticks["100"] - ticks["0"]) / 100
    tuned = next(mark for mark in root.iter("rect"))
    centre = float(tuned.get("x") or 0) + float(tuned.get("width") or 0) / 2
    assert (centre - ticks["0"]) / per_point == pytest.approx(100 * (rows[5].score.value or 0), abs=0.2)
    assert "best floor 70.7" in "".join(root.itertext())
    assert len(list(root.iter("circle"))) == 3


def test_forest_shows_failed_and_unmeasured_arms_without_a_mark() -> None:
    rows = reports.nothing_compared().rows
    root = _parse(plots.forest(rows))
    assert "".join(root.itertext()).count("failed") >= 4
    assert not list(root.iter("circle")) and not list(root.iter("rect"))
    assert plots.forest([dataclasses.replace(row, score=NOTHING) for row in rows]) is None


def test_effect_strip_covers_zero_margin_and_interval() -> None:
    primary = reports.clear_win().verdict.primary
    assert primary
    _parse(plots.effect_strip(primary, 0.02))
    for difference, low, high in ((-0.5, -0.9, -0.1), (0.0, 0.0, 0.0), (0.001, -0.002, 0.004), (1.0, 1.0, 1.0)):
        moved = dataclasses.replace(primary, difference=difference, low95=low, high95=high, low90=low, high90=high)
        _parse(plots.effect_strip(moved, 0.02))
    assert plots.effect_strip(dataclasses.replace(primary, low95=-math.inf), 0.02) is None


def test_loss_curve_leaves_a_gap_at_nan() -> None:
    points = [CurvePoint(step=i, train_loss=math.nan if i == 5 else 2.0 / i) for i in range(1, 11)]
    root = _parse(plots.loss_curve(points))
    assert [len(re.findall("[ML]", path.get("d") or "")) for path in root.iter("path")] == [4, 5]
    assert plots.loss_curve([CurvePoint(step=1, train_loss=math.nan)] * 5) is None
    assert plots.loss_curve([]) is None


def test_long_curve_is_thinned_and_a_nan_survives_it() -> None:
    points = [CurvePoint(step=i, train_loss=math.inf if i == 5000 else 1.0 + 1.0 / i) for i in range(1, 100_001)]
    root = _parse(plots.loss_curve(points))
    drawn = [len(re.findall("[ML]", path.get("d") or "")) for path in root.iter("path")]
    assert len(drawn) == 2 and 390 <= sum(drawn) <= plots.MAX_CURVE_POINTS


def test_scatter_needs_two_priced_arms() -> None:
    rows = reports.clear_win().rows
    root = _parse(plots.score_against_cost(rows))
    said = "".join(root.itertext())
    assert "most frequent label" not in said, "a cost of zero has no place on a logarithmic axis"
    assert "4-shot, larger model" in said
    assert plots.score_against_cost(rows[:2]) is None


def test_histogram_counts_everything() -> None:
    root = _parse(plots.length_histogram([3] * 50 + [10] * 25, "x", "title"))
    heights = sorted(float(bar.get("height") or 0) for bar in root.iter("rect"))
    assert heights[-1] == pytest.approx(2 * heights[0], abs=0.2)
    assert plots.length_histogram([7], "x", "t") is None
    _parse(plots.length_histogram([0, 0, 0], "x", "t"))
    _parse(plots.length_histogram([1, 10**9], "x", "t"))


def test_learning_curve() -> None:
    model = reports.clear_win()
    _parse(plots.learning_curve(model.learning_curve, 0.713))
    band = [LearningBand(num_examples=n, score=0.7, low=0.6, high=0.9) for n in (50.0, 1000.0, 5000.0)]
    root = _parse(plots.learning_curve(model.learning_curve, 0.713, band))
    drawn = {path.get("class"): len(re.findall("[ML]", path.get("d") or "")) for path in root.iter("path")}
    assert drawn == {"band": 6, "curve dev": 3}, "the fitted law instead of a line from point to point"
    assert not [t.text for t in root.iter("text") if t.text and t.text.startswith(("−", "-"))], "no ticks below a score of 0"
    assert plots.learning_curve([LearningPoint(num_examples=5, score=NOTHING)] * 3, None) is None


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0, 1e-9], [1e6, 2e6], [math.nan, 1.0], []])
def test_axis_holds_its_values_and_has_few_round_ticks(values: list[float]) -> None:
    axis = linear_axis(values, 10, 110)
    assert all(axis.low <= value <= axis.high for value in values if math.isfinite(value))
    assert 2 <= len(axis.ticks()) <= 12
    assert axis.at(axis.low) == 10 and axis.at(axis.high) == 110


def test_log_axis() -> None:
    axis = log_axis([0.001, 10.0], 0, 100)
    assert axis.ticks() == pytest.approx([0.001, 0.01, 0.1, 1.0, 10.0])
    assert axis.at(0.1) == pytest.approx(50)


ROWS = reports.clear_win(24).rows


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_only_text(text: str) -> None:
    root = _parse(plots.forest([dataclasses.replace(row, name=text) for row in ROWS]))
    assert reveal(label(text)) in [element.text for element in root.iter("text")]
    assert {element.tag for element in root.iter()} <= {"svg", "title", "desc", "line", "text", "path", "rect", "circle"}
