"""`check` finds each deliberate flaw that the demo's README lists, and raises no error over the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier.core.types import Example, Finding
from luthier.data.duplicates import find_duplicates
from luthier.data.findings import check_examples
from luthier.data.load import load_examples
from luthier.data.profile import profile_task
from luthier.data.split import split_examples

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "support_desk"
CODES = {
    "duplicate": {"exact-duplicates"},
    "leak": {"exact-duplicates", "near-duplicates"},
    "conflict": {"conflicting-answers"},
    "email": {"private-email"},
}


@pytest.fixture(scope="module")
def examples() -> tuple[Example, ...]:
    return load_examples([FOLDER / "examples.jsonl"]).examples


@pytest.fixture(scope="module")
def flaws() -> list[tuple[str, set[int]]]:
    block = (FOLDER / "README.md").read_text(encoding="utf-8").split("<!-- flaws:begin -->")[1].split("<!-- flaws:end -->")[0]
    found = re.findall(r"^\| (\w+) \| (\d+) \| (\d+|none) \|", block, flags=re.MULTILINE)
    return [(flaw, {int(line), *([int(twin)] if twin != "none" else [])}) for flaw, line, twin in found]


def lines_of(finding: Finding) -> list[set[int]]:
    """The rows named together: each line of the detail, and each place."""
    return [{int(n) for n in re.findall(r"jsonl:(\d+)", text)} for text in finding.detail] + [{line} for _, line in finding.where]


def test_each_flaw_is_found_with_its_twin(examples: tuple[Example, ...], flaws: list[tuple[str, set[int]]]) -> None:
    found = check_examples(examples)
    assert len(flaws) == 7
    for flaw, lines in flaws:
        assert any(lines in lines_of(finding) for finding in found if finding.code in CODES[flaw]), (flaw, lines)


def test_nothing_else_is_found(examples: tuple[Example, ...], flaws: list[tuple[str, set[int]]]) -> None:
    found = {finding.code: finding for finding in check_examples(examples)}
    assert set(found) == {"exact-duplicates", "near-duplicates", "conflicting-answers", "private-email"}
    assert {finding.severity for finding in found.values()} <= {"info", "warning"}
    twins = [lines for flaw, lines in flaws if flaw != "email"]
    line = {e.id: e.line for e in examples}
    assert sorted(sorted(line[e_id] for e_id in group) for group in find_duplicates(examples).near) == sorted(map(sorted, twins))


def test_twins_stay_together(examples: tuple[Example, ...], flaws: list[tuple[str, set[int]]]) -> None:
    for seed in range(5):
        split = split_examples(examples, seed=seed)
        parts = [{e.line for e in part} for part in (split.train, split.dev, split.test)]
        assert [len(part) for part in parts] == [658, 94, 188]
        assert all(any(lines <= part for part in parts) for _, lines in flaws)


def test_the_answers_are_json_with_two_closed_sets(examples: tuple[Example, ...]) -> None:
    profile = profile_task(examples)
    assert profile.kind == "json"
    assert profile.json_keys == ("intent", "reply", "handover")
    assert len(profile.json_enums["intent"]) == 24
    assert profile.json_enums["handover"] == ("false", "true")
    assert set(profile.json_enums) == {"intent", "handover"}
