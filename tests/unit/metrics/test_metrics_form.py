"""Constraints learnt from training answers, and answers held to them."""

from __future__ import annotations

import json

import pytest

from luthier.core.types import Example, TaskProfile
from luthier.metrics.form import answers_instead, broken, keeps_form, learn_form

TEXT = TaskProfile(kind="text", evidence="")
JSON = TaskProfile(kind="json", evidence="", json_keys=("intent", "reply"))


def _rows(answers: list[str], question: str = "Where is it?") -> list[Example]:
    return [
        Example(id=f"r{n}", path="", line=n, kind="instruct", input=f"{question} {n}", response=answer) for n, answer in enumerate(answers)
    ]


def test_what_almost_all_answers_keep_is_a_constraint() -> None:
    form = learn_form(_rows([f"We send part {n} on the next day." for n in range(50)]), TEXT)
    assert (form.min_words, form.max_words) == (8, 8)
    assert form.ends == (".",) and form.starts == () and form.scripts == ("LATIN",)
    assert "code fence" in form.forbidden and "more than one line" in form.forbidden and "preamble" in form.forbidden
    assert broken("We send part 7 on the next day.", form) == ()
    assert broken("We send it.", form) == ("length",)
    assert broken("Мы отправим это на следующий день же.", form) == ("length", "writing system")
    assert keeps_form("We send part 7 on the next day.", form) == 1.0 and keeps_form("", form) == 0.0


def test_each_constraint_alone() -> None:
    form = learn_form(_rows([f"We send part {n} on the next day." for n in range(50)]), TEXT)
    assert broken("We send part 7 on the next day!", form) == ("end",)
    assert broken("Sure we send seven on the day.", form) == ("length", "nothing added")
    assert broken("We send part 7\non the next day.", form) == ("nothing added",)


def test_json_keys_and_brackets() -> None:
    form = learn_form(_rows([json.dumps({"intent": "a", "reply": f"word {n}"}) for n in range(40)]), JSON)
    assert form.keys == ("intent", "reply") and form.starts == ("{",) and form.ends == ("}",)
    assert broken('{"intent": "a", "reply": "word 3"}', form) == ()
    assert broken('{"intent": "a", "answer": "word 3"}', form) == ("keys",)
    assert "beginning" in broken('Answer: {"intent": "a"}', form)


def test_a_habit_of_the_training_answers_is_not_held_against_anyone() -> None:
    lists = learn_form(_rows([f"- one {n}\n- two\n- three" for n in range(40)]), TEXT)
    assert "list" not in lists.forbidden and "more than one line" not in lists.forbidden
    asking = learn_form(_rows([f"Which of the {n} do you mean?" for n in range(40)]), TEXT)
    assert asking.may_ask and answers_instead("Which one is it?", "x", asking) == 1.0


def test_two_percent_may_break_it_and_no_more() -> None:
    answers = ["We send it today."] * 98
    assert learn_form(_rows([*answers, "no full stop", "nor here"]), TEXT).ends == (".",)
    assert learn_form(_rows([*answers, "no full stop", "nor here", "nor there"]), TEXT).ends == ()


def test_few_answers_show_no_form() -> None:
    form = learn_form(_rows(["a b c."] * 19), TEXT)
    assert form.names == () and keeps_form("anything", form) is None and answers_instead("User: hello", "x", form) == 1.0


@pytest.mark.parametrize(
    ("text", "is_answer"),
    [
        ("Goa, Agra, Jaipur, Delhi and Mumbai are worth a visit.", True),
        ("What are five places in China? What are five places in Peru?", False),  # the failure of base models
        ("Goa.\nQuestion: name five places in Peru", False),
        ("Goa.\nUser: and in Peru?", False),
        ("Goa.<|im_end|><|im_start|>user", False),
        ("Name five places in India worth a visit and five places in Peru", False),  # the question once more
        ("Would Goa do?", False),
        ("It is Goa. Would that do?", True),  # one question at the end is politeness
        ("", False),
        ("  \n", False),
    ],
)
def test_answering_or_going_on(text: str, is_answer: bool) -> None:
    form = learn_form(_rows([f"There are {n} of them in the south." for n in range(40)]), TEXT)
    assert answers_instead(text, "Name five places in India worth a visit", form) == float(is_answer)


def test_copying_is_allowed_where_training_answers_copy() -> None:
    rows = [
        Example(
            id=str(n), path="", line=n, kind="instruct", input=f"he go to the old school {n} day", response=f"he go to the old school {n}."
        )
        for n in range(40)
    ]
    form = learn_form(rows, TEXT)
    assert form.may_copy and answers_instead("he go to the old school", "he go to the old school 3 day", form) == 1.0
