"""The judge on the page and in the closing lines: result, warning, and nothing of it that is markup."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fixtures import reports
from tests.fixtures.hostile import HOSTILE

from luthier.metrics.judge import Choice, Judged
from luthier.report.html import render_html
from luthier.report.terminal import COLUMNS, verdict_lines
from luthier.verdict.judge import JudgeReading, JudgeRecord, read_judge


def _reading(name: str = "wise at example.com", *, num_labels: int = 0, failed: str | None = None) -> JudgeReading:
    sides: list[Choice] = ["tuned", "prompt", "tie", "tuned"]
    judged = [
        Judged(pair_id=f"p{n}", item_id=f"i{n}", cluster=f"i{n}", prompt_first=sides[n % 4], tuned_first=sides[n % 4]) for n in range(80)
    ]
    attacks = [Judged(pair_id=f"a{n}", item_id=f"a{n}", cluster=f"a{n}", prompt_first="prompt", tuned_first="prompt") for n in range(20)]
    record = JudgeRecord(
        key="k", judge=name, prompt="few-shot", tuned="tuned", judged=() if failed else tuple(judged),
        attacks=() if failed else tuple(attacks), num_items=80,
        num_prompt_tokens=100_000, num_new_tokens=4_000, served_by=name, failed=failed,
    )  # fmt: skip
    return read_judge(record, {one.pair_id: one.winner for one in judged[:num_labels]}, {}, seed=0)


def _page(reading: JudgeReading) -> str:
    return render_html(replace(reports.clear_win(60), judge=reading))


def test_uncalibrated_says_so_first_and_how_to_mend_it() -> None:
    page = _page(_reading())
    assert "Compared by a judge" in page and 'href="#judge"' in page and "This judge is uncalibrated" in page
    assert "luthier judge RUN --sample" in page and "0 of the 50 pairs" in page
    assert "wins 62.5 of 100 pairs" in page and "n = 80" in page and "seed 7" in page and "McNemar" in page
    lines = verdict_lines(replace(reports.clear_win(60), judge=_reading()))
    assert any(line.startswith("  Judge:  tuned is ") for line in lines) and all(len(line) <= COLUMNS for line in lines)
    assert "uncalibrated" in "\n".join(lines)


def test_calibrated_has_its_kappa_and_no_warning() -> None:
    page = _page(_reading(num_labels=60))
    assert "uncalibrated" not in page and "--sample" not in page and "kappa 1.00" in page and "calibrated" in page


def test_a_failed_judge_is_shown_as_failed_and_a_run_without_one_says_nothing() -> None:
    page = _page(_reading(failed="no key"))
    assert "failed: no key" in page and "wins" not in page.split("Compared by a judge")[2].split("</section>")[0]
    assert "Compared by a judge" not in render_html(reports.clear_win(60))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_text(name: str) -> None:
    page = _page(_reading(name))
    section = page.split('<section aria-labelledby="judge">')[1].split("</section>")[0]
    assert "<script" not in section and "<img" not in section
