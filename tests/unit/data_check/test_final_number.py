from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.data_check.make_rows import pairs

from luthier.data.final_number import final_number, number_form
from luthier.data.profile import profile_task


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16 - 3 = 13, and 13 * 2 = $26\n#### 26", "26"),
        ("#### 18\nIn words: eighteen, of 20", "18"),
        ("The answer is $1,200.50.", "1200.50"),
        ("16-3", "3"),
        ("It fell to -4 degrees", "-4"),
        ("so \\boxed{-3} of 7", "-3"),
        ("\u2212.5", "-0.5"),
        ("#### none", None),
        ("no number", None),
        ("", None),
        ("9" * 80, None),
    ],
)
def test_the_number_an_answer_comes_to(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


@given(st.text(alphabet="0123456789.,-#$ \\boxed{}٣\n", max_size=60))
def test_any_text_has_a_finite_number_or_none(text: str) -> None:
    found = final_number(text)
    assert found is None or found.is_finite()


@given(st.integers(-(10**9), 10**9))
def test_thousands_commas_do_not_count(number: int) -> None:
    assert final_number(f"#### {number:,}") == final_number(f"first 7, then {number}") == number


def test_rows_that_end_in_a_marked_number_are_found() -> None:
    worked = [f"{i} + {i} = {2 * i}, which is what was asked for in this long row\n#### {2 * i}" for i in range(40)]
    found = profile_task(pairs(*((f"double {i}", text) for i, text in enumerate(worked))))
    assert (found.kind, found.number_form) == ("text", "#### 42")
    assert "come to a number" in found.evidence
    assert number_form([*worked[:36], *["no number"] * 4], 0.95) == ""
    assert number_form([str(7 * i) for i in range(40)], 0.95) == "42"
    assert number_form(["in 1999 it was"] * 40, 0.95) == number_form([], 0.95) == ""


def test_unspaced_scripts_are_not_short_because_they_have_few_spaces() -> None:
    said = [f"您好，我是一个由开发者训练的人工智能助手，可以回答各种问题，第{'一二三四五六七八九十'[i]}个。" for i in range(10)]
    assert profile_task(pairs(*((f"q {i}", text) for i, text in enumerate(said)))).kind == "text"
