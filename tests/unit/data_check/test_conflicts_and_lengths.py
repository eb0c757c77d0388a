from __future__ import annotations

import pytest
from tests.unit.data_check.make_rows import pairs, row, rows, sentences

from luthier.data.conflicts import find_conflicts
from luthier.data.lengths import length_summary


def test_conflicts_and_the_ceiling() -> None:
    data = pairs(("a?", "x"), ("A", "x."), ("a", "y"), ("b", "x"), ("b", "X"), ("c", "y"))
    found = find_conflicts(data)
    assert found.groups == ((data[0].id, data[1].id, data[2].id),)
    assert found.num_rows == 3
    assert found.ceiling is not None
    assert found.ceiling.value == pytest.approx(5 / 6)
    assert found.ceiling.n == 6


def test_json_answers_are_compared_without_key_order() -> None:
    data = pairs(("a", '{"x": 1, "y": "Two"}'), ("a", '{"y": "two", "x": 1}'), ("b", '{"x": 1, "y": "two"}'), ("b", '{"x": 2, "y": "two"}'))
    assert find_conflicts(data).groups == ((data[2].id, data[3].id),)


def test_another_system_prompt_is_another_question() -> None:
    assert find_conflicts(rows([row("a", "x"), row("a", "y", system="s")])).groups == ()


def test_no_ceiling_for_free_text_and_none_without_answers() -> None:
    texts = sentences(20, name="free")
    found = find_conflicts(pairs(*(("describe it", text) for text in texts)))
    assert len(found.groups) == 1
    assert found.ceiling is None
    assert find_conflicts(()).ceiling is None
    assert find_conflicts(rows([row("", "raw", kind="text")])).ceiling is None


def test_preference_rows_do_not_conflict() -> None:
    assert (
        find_conflicts(rows([row("a", "x", kind="preference", rejected="y"), row("a", "z", kind="preference", rejected="y")])).groups == ()
    )


def test_length_quantiles_are_nearest_rank() -> None:
    found = length_summary(range(1, 101))
    assert (found.n, found.min, found.p50, found.p90, found.p99, found.max) == (100, 1, 50, 90, 99, 100)
    assert sum(count for _, _, count in found.bins) == 100
    assert len(found.bins) == 20
    assert found.bins[0] == (1, 6, 5)


@pytest.mark.parametrize("lengths", [[7], [7, 7, 7], [1, 1000], list(range(23))])
def test_bins_cover_every_length_once(lengths: list[int]) -> None:
    found = length_summary(lengths)
    assert all(sum(low <= length < high for low, high, _ in found.bins) == 1 for length in lengths)
    assert [count for *_, count in found.bins] == [sum(low <= length < high for length in lengths) for low, high, _ in found.bins]


def test_no_rows_have_no_quantiles() -> None:
    found = length_summary([])
    assert (found.n, found.p50, found.max, found.bins) == (0, None, None, ())
