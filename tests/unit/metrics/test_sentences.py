"""Sentences and words in capitals, by cases that Punkt and the Penn Treebank rules decide, and by what must hold of any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.metrics.sentences import ABBREVIATIONS, count_capital_words, count_sentences

SENTENCES = [
    ("", 0),
    (" \n", 0),
    ("no mark", 1),
    ("One. Two! Three? Four", 4),
    ("A line\n\nand another\n", 1),
    ("Mr. Smith met Dr. Jones in St. Louis.", 1),
    ("It was 5 p.m. and dark. It was 5 p.m. The end.", 3),
    ("J.K. Rowling and E. Nesbit wrote.", 1),
    ("He weighs 3.5 kg.", 1),
    ("1. First\n2. Second\n3. third", 3),
    ("Some fruit, e.g. apples.", 2),
    ("What?! No!!! Yes.", 3),
    ("Wait... what. Wait... The end.", 3),
    ('He said "Stop." and left.', 2),
    ('{"a": "One. Two.", "b": "Three."}', 3),
    ('"All of it."\n', 1),
    ('All of it.\n"', 1),
    ("See www.example.com. It is there.", 2),
    ("so am I. So are you.", 2),
    ("(One.) Two.", 2),
]
CAPITALS = [
    ("", 0),
    ("No, no", 0),
    ("NO, no", 1),
    ("I am", 1),
    ("I'm", 1),
    ("NASA's", 1),
    ("DON'T", 2),
    ("CANNOT", 2),
    ("WELL-KNOWN", 1),
    ("U.S.A.", 1),
    ("A/B", 1),
    ("A:B", 2),
    ("A1 and 12 and -", 1),
    ("*BOLD* (ONE) [TWO] <<THREE>>", 4),
    ("ONE...TWO--THREE", 3),
    ("DON\u2019T", 2),
]
words = st.from_regex(r"[b-z]{3,8}", fullmatch=True).filter(lambda word: word not in ABBREVIATIONS)
sentences = st.lists(words, min_size=1, max_size=6).map(" ".join)


@pytest.mark.parametrize(("text", "number"), SENTENCES)
def test_sentences_of_a_text(text: str, number: int) -> None:
    assert count_sentences(text) == number


@pytest.mark.parametrize(("text", "number"), CAPITALS)
def test_words_in_capitals(text: str, number: int) -> None:
    assert count_capital_words(text) == number


@given(st.lists(st.tuples(sentences, st.sampled_from([". ", "! ", "?\n", "?! ", '." '])), min_size=1, max_size=8))
def test_as_many_sentences_as_were_put_together(parts: list[tuple[str, str]]) -> None:
    assert count_sentences("".join(text.capitalize() + mark for text, mark in parts)) == len(parts)


@given(sentences, st.sampled_from(sorted(ABBREVIATIONS)), sentences)
def test_an_abbreviation_ends_no_sentence_before_a_small_letter(before: str, abbreviation: str, behind: str) -> None:
    assert count_sentences(f"{before} {abbreviation}. {behind}.") == 1


@given(st.lists(st.tuples(words, st.booleans()), max_size=12))
def test_as_many_words_in_capitals_as_were_put_in(parts: list[tuple[str, bool]]) -> None:
    text = " ".join(word.upper() if is_upper else word for word, is_upper in parts)
    split = {"CANNOT": 2, "GONNA": 2, "WANNA": 2, "GOTTA": 2, "LEMME": 2, "GIMME": 2}
    assert count_capital_words(text) == sum(split.get(word.upper(), 1) for word, is_upper in parts if is_upper)


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_is_counted(text: str) -> None:
    assert (count_sentences(text) == 0) == (not text.strip())
    assert count_capital_words(text.lower()) <= count_capital_words(text.upper())


@pytest.mark.parametrize("unit", ["a", ".", "a.", '."', ".)", " .", "!?", "'", "A'", "\n"])
@pytest.mark.timeout(20)
def test_a_long_odd_text_takes_no_square_of_its_length(unit: str) -> None:
    assert count_sentences(unit * 100_000 + "a") >= 1
    assert count_capital_words(unit * 100_000) >= 0
