from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.arms.floor import majority, nearest_neighbour
from luthier.arms.index import build_index
from luthier.core.errors import InputError
from luthier.core.types import Example


def row(id: str, input: str, response: str = "r", **more: object) -> Example:
    return Example(id=id, path="t.jsonl", line=1, kind="instruct", input=input, response=response, **more)  # type: ignore[arg-type]


ROWS = (
    row("a", "where is my card", "card_arrival"),
    row("b", "my card was stolen", "stolen"),
    row("c", "how do I top up", "top_up"),
    row("d", "WHERE is my card?!", "card_arrival"),
    row("e", "exchange rate today", "rate"),
)


def ids(found: tuple[Example, ...]) -> list[str]:
    return [example.id for example in found]


def test_nearest_first_and_ties_by_id() -> None:
    index = build_index(ROWS)
    assert ids(index.search("Where is my card", 3)) == ["a", "d", "b"]  # a and d hold the same words
    assert ids(index.search("exchange", 1)) == ["e"]


def test_scores_equal_the_formula_of_bm25() -> None:
    import math

    index = build_index((row("a", "x x y"), row("b", "x z"), row("c", "z")))
    # Lucene BM25 with k1 1.5, b 0.75: idf = ln(1 + (3 - 2 + .5) / (2 + .5)), mean length 2.
    expected = math.log(1 + 1.5 / 2.5) * 2 / (2 + 1.5 * (1 - 0.75 + 0.75 * 3 / 2))
    (first, score), *_ = index.search_scored("x", 3)
    assert first.id == "a"
    assert score == pytest.approx(expected, rel=1e-5)


def test_never_the_row_itself_but_its_twin_is_allowed() -> None:
    index = build_index(ROWS)
    assert ids(index.search("where is my card", 2, exclude_id="a")) == ["d", "b"]
    assert "a" not in ids(index.search("where is my card", 99, exclude_id="a"))


def test_unknown_words_and_few_rows() -> None:
    index = build_index(ROWS)
    assert ids(index.search("zzz qqq", 2)) == ["a", "b"]
    assert ids(index.search("", 99)) == ["a", "b", "c", "d", "e"]
    assert index.search("card", 0) == ()
    assert all(score == 0.0 for _, score in index.search_scored("zzz", 5))
    assert ids(build_index((row("z", "!!!"), row("y", ""))).search("card", 5)) == ["y", "z"]


def test_no_rows_is_an_error() -> None:
    with pytest.raises(InputError):
        build_index(())
    with pytest.raises(InputError):
        build_index((row("a", "x", desirable=False),))


def test_the_varying_part_is_searched() -> None:
    same = build_index((row("a", "apple", instruction="Translate"), row("b", "pear", instruction="Translate")))
    assert same.query_text(row("q", "pear", instruction="Translate")) == "pear"
    assert same.query_text(row("q", "", instruction="Name a fruit")) == "Name a fruit"
    varied = build_index((row("a", "apple", instruction="Translate"), row("b", "apple", instruction="Summarise")))
    assert ids(varied.search(varied.query_text(row("q", "apple", instruction="Summarise")), 1)) == ["b"]


def test_words_of_other_scripts_match() -> None:
    index = build_index((row("a", "東京の天気"), row("b", "大阪の地図"), row("c", "क्या यह है"), row("d", "Ｆｕｌｌ width")))
    assert ids(index.search("東京", 1)) == ["a"]
    assert ids(index.search("क्या", 1)) == ["c"]
    assert ids(index.search("FULL", 1)) == ["d"]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab c", max_size=8), min_size=1, max_size=8), st.text(alphabet="ab c", max_size=8), st.integers(0, 9))
def test_order_of_rows_is_no_matter(inputs: list[str], query: str, k: int) -> None:
    rows = [row(f"{i:02d}", text) for i, text in enumerate(inputs)]
    shuffled = list(rows)
    random.Random("1/rows").shuffle(shuffled)
    found = build_index(rows).search_scored(query, k)
    assert found == build_index(shuffled).search_scored(query, k)
    assert len(found) == min(k, len(rows))
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_same_result_under_any_hash_seed_and_no_output() -> None:
    code = (
        "from luthier.core.types import Example\n"
        "from luthier.arms.index import build_index\n"
        "import sys\n"
        "words = [f'w{i % 7} w{i % 5} w{i % 3}' for i in range(99)]\n"
        "rows = [Example(id=f'{i:03d}', path='t', line=i, kind='instruct', input=w, response='r') for i, w in enumerate(words)]\n"
        "found = build_index(rows).search_scored('w1 w2 w4', 20)\n"
        "assert 'torch' not in sys.modules\n"
        "print([(e.id, s) for e, s in found])\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True, env={"PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stderr == ""


def test_nearest_neighbour_answers_and_falls_back_to_the_majority() -> None:
    answer = nearest_neighbour(build_index(ROWS))
    assert answer(row("q", "my card is stolen")) == "stolen"
    assert answer(row("q", "zzz")) == "card_arrival"
    assert answer(ROWS[0]) == "card_arrival"  # from its twin, not from itself
    alone = nearest_neighbour(build_index((row("a", "only", "first"), row("b", "other", "second"))))
    assert alone(row("a", "only", "first")) == "first"  # no word shared with b: the majority, ties by text


def test_majority() -> None:
    assert majority(ROWS)(row("q", "x")) == "card_arrival"
    assert majority((row("a", "x", "z"), row("b", "y", "y")))(row("q", "")) == "y"
    assert majority((row("a", "x", "bad", desirable=False), row("b", "y", "good")))(row("q", "")) == "good"
    with pytest.raises(InputError):
        majority(())
