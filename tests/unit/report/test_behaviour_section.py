"""The section "Behaviour before and after": what a manager reads first, the reliability plot, the line at the end of a run."""

from __future__ import annotations

import random
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from tests.fixtures import reports
from tests.fixtures.hostile import HOSTILE

from luthier.core.types import Estimate
from luthier.report.behaviour import behaviour_json, reliability, summary, terminal_words
from luthier.report.html import render_html
from luthier.report.terminal import verdict_lines
from luthier.stats.calibration import calibrate
from luthier.verdict.behaviour import Behaviour, BehaviourGroup
from luthier.verdict.behaviour_numbers import NOT_MEASURED, BehaviourLine, Difference


def _share(value: float) -> Estimate:
    return Estimate(value=value, low=max(0.0, value - 0.1), high=min(1.0, value + 0.1), n=40, method="Wilson 95 %")


def _line(key: str, before: float, after: float, low: float, high: float, *, lower: bool = False) -> BehaviourLine:
    return BehaviourLine(key=key, what=f"what {key} is", values=(_share(before), _share(after), NOT_MEASURED),
                         difference=Difference(value=after - before, low=low, high=high), lower_is_better=lower)  # fmt: skip


def _behaviour(name: str = "few-shot") -> Behaviour:
    rng = random.Random("reliability")
    sure = [rng.random() for _ in range(300)]
    right = [float(rng.random() < p) for p in sure]
    lines = (
        _line("keeps_form", 0.4, 0.98, 0.49, 0.66),
        _line("consistency", 0.9, 0.8, -0.15, -0.05),
        _line("stops", 0.9, 0.92, -0.03, 0.07),
        _line("brier", 0.3, 0.1, -0.25, -0.15, lower=True),
    )
    return Behaviour(
        columns=(("prompt", name), ("tuned", "tuned"), ("wanted", "the wanted answers")),
        groups=(BehaviourGroup(title="Says the same again", explanation="Why.", lines=lines, notes=("A note.",)),),
        calibration={"tuned": calibrate(sure, right, [str(i) for i in range(300)], seed=0)},
        examples=(("input 1", "Where is it?", "where is it?"),),
        note="560 further answers.",
    )


def test_summary_sorts_by_what_is_shown() -> None:
    better, worse, same = summary(_behaviour())
    assert better.startswith("Better after tuning: keeps the wanted form, 40.0 to 98.0 (+58.0 points, 95 % interval +49.0 to +66.0)")
    assert "Brier" in better  # lower is better
    assert worse.startswith("Worse after tuning: gives the same answer again, 90.0 to 80.0")
    assert same == "No change shown: ends by itself, 90.0 to 92.0 (+2.0 points, 95 % interval −3.0 to +7.0)."
    assert "consistency" not in terminal_words(_behaviour()) and "(worse)" in terminal_words(_behaviour())


@pytest.mark.parametrize("name", ["few-shot", HOSTILE[0]])
def test_page_and_closing_lines_hold_it(name: str) -> None:
    model = replace(reports.clear_win(), behaviour=_behaviour(name))
    page = render_html(model)
    section = page[page.index('id="behaviour"') : page.index('id="training"')]
    assert "Better after tuning" in section and "what consistency is" in section and "A note." in section and "where is it?" in section
    assert "reliability-title" in section and len(page) < 1_000_000
    lines = verdict_lines(model)
    assert any("Change:" in line for line in lines) and all(len(line) <= 80 for line in lines)


def test_without_it_the_page_says_so() -> None:
    page = render_html(reports.clear_win())
    assert "Not measured in this run: it needs a prompt and a tuned arm." in page


def test_reliability_plot_is_to_scale_and_absent_without_bins() -> None:
    behaviour = _behaviour()
    drawing = reliability(behaviour)
    assert drawing is not None
    root = ElementTree.fromstring(drawing)
    marks = [e for e in root.iter("rect") if "mark" in (e.get("class") or "")]
    bins = behaviour.calibration["tuned"].bins
    assert len(marks) == len(bins) == 10
    for mark, one in zip(marks, bins, strict=True):
        x, y = float(mark.get("x") or 0) + 4, float(mark.get("y") or 0) + 4
        assert x == pytest.approx(46 + 250 * one.sure, abs=0.2) and y == pytest.approx(290 - 260 * (one.right.value or 0), abs=0.2)
    few = replace(behaviour, calibration={"tuned": replace(behaviour.calibration["tuned"], bins=())})
    assert reliability(few) is None


def test_json_has_null_for_what_was_not_measured() -> None:
    found = behaviour_json(_behaviour())
    lines = found["lines"]
    assert isinstance(lines, list)
    assert lines[0]["values"]["wanted"] is None and lines[0]["values"]["tuned"]["n"] == 40
    assert lines[0]["tuned_minus_prompt"] == {"value": pytest.approx(0.58), "low": 0.49, "high": 0.66}
