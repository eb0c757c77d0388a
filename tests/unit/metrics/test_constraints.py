"""Each verifiable instruction by an answer that keeps it and answers that do not, from IFEval's published definitions."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.metrics.constraints import CHECKS, DETECTED, NEEDS, Constraint, is_kept, missing_values

AT_LEAST, LESS = "at least", "less than"
ENGLISH = "The weather is nice today, so we are going to walk through the park."
GERMAN = "Das Wetter ist heute schön, deshalb gehen wir durch den Park spazieren."
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("punctuation:no_comma", {}, ["No commas here."], ["One, two."]),
    ("length_constraints:number_words", {"relation": AT_LEAST, "num_words": 3}, ["one two three", "a-b c"], ["one two"]),
    ("length_constraints:number_words", {"relation": LESS, "num_words": 3}, ["one two"], ["one two three"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***a***b***"], ["a", "a *** b *** c", "a ***  *** b"]),
    (
        "length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ["a\n\nweekend, then", 'a\n\n"Weekend" b'], ["a\n\nweekends", "weekend\n\na", "a\n\nweekend\n\nb", "weekend"],
    ),
    ("keywords:existence", {"keywords": ["red", "Blue"]}, ["RED and blue"], ["red only"]),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, ["rocket"], ["a Rock!"]),
    ("keywords:frequency", {"relation": AT_LEAST, "keyword": "to", "frequency": 2}, ["to the top"], ["to"]),
    ("keywords:letter_frequency", {"let_relation": LESS, "letter": "A", "let_frequency": 2}, ["abc"], ["aA"]),
    ("keywords:letter_frequency", {"let_relation": AT_LEAST, "letter": "#", "let_frequency": 2}, ["# x #"], ["#"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name] [address]"], ["[name]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\nP.S. y", "p. s. y"], ["x PS y"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["x\nP.P.S y"], ["x\nP.S. y"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* and *b*", "**a** *b*"], ["*a*", "* *\n*\n*"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "- a\n * b"], ["* a", "* a\n* b\n* c", "**a**\n*b"]),
    ("detectable_format:title", {}, ["<<A title>> text"], ["< <x> >", "<<>>", "<< >>"]),
    ("detectable_format:json_format", {}, ['{"a": 1}', '```json\n{"a": 1}\n```', "[1]"], ["{a: 1}", 'Here: {"a": 1}']),
    ("detectable_format:multiple_sections", {"section_spliter": "PART", "num_sections": 2}, ["PART 1 a\nPART 2 b"], ["PART 1 a"]),
    ("detectable_format:constrained_response", {}, ["My answer is no."], ["No."]),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a", "a******a", "a******b******c", "a************b"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, ["say it. Well"], ["Well, say it."]),
    ("startend:quotation", {}, ['"all of it"'], ['"', '"a" b']),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, ["x any Questions? ", '"x Any questions?"'], ["Any questions? No"]),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, GERMAN.upper(), "55"]),
    ("change_case:english_lowercase", {}, [ENGLISH.lower()], [ENGLISH, GERMAN.lower(), "55"]),
    ("change_case:capital_word_frequency", {"capital_relation": AT_LEAST, "capital_frequency": 2}, ["NO, I won't"], ["NO, no", "Yes No"]),
    ("change_case:capital_word_frequency", {"capital_relation": LESS, "capital_frequency": 2}, ["NO, no"], ["NO, I won't"]),
    ("language:response_language", {"language": "de"}, [GERMAN, "55 + 5"], [ENGLISH]),
    ("length_constraints:number_sentences", {"relation": AT_LEAST, "num_sentences": 2}, ["One. Two!"], ["One, Dr. Two."]),
    ("length_constraints:number_sentences", {"relation": LESS, "num_sentences": 2}, ["One, Dr. Two."], ["One. Two!"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "keeps", "breaks"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_each_type(kind: str, values: dict[str, Any], keeps: list[str], breaks: list[str]) -> None:
    one = Constraint(kind=kind, values=values)
    assert not missing_values(one)
    assert [is_kept(one, answer) for answer in keeps] == [True] * len(keeps)
    assert [is_kept(one, answer) for answer in (*breaks, "", " \n")] == [False] * (len(breaks) + 2)


def test_every_type_is_tried_and_says_what_it_needs() -> None:
    assert {case[0] for case in CASES} == set(CHECKS) and set(NEEDS) <= set(CHECKS) >= DETECTED and len(CHECKS) == 25
    assert missing_values(Constraint(kind="keywords:existence", values={"keywords": None})) == ("keywords",)
    for kind, values, *_ in CASES:
        assert set(values) == set(NEEDS.get(kind, ()))


def test_words_with_signs_of_expressions_are_words() -> None:
    assert is_kept(Constraint(kind="keywords:existence", values={"keywords": ["c++ (new)"]}), "I like C++ (new)")
    assert not is_kept(Constraint(kind="keywords:existence", values={"keywords": ["a.c"]}), "abc")


def test_the_language_is_asked_for_only_where_the_case_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.metrics.constraints.language_of", pytest.fail)
    for kind, *_ in CASES:
        if kind in DETECTED - {"language:response_language"}:
            assert not is_kept(Constraint(kind=kind, values={}), ENGLISH)
