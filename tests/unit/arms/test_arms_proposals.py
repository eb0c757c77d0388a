"""Instructions a model proposes: what it is shown, and what becomes of what it writes."""

from __future__ import annotations

import pytest

from luthier.arms.proposals import MAX_INSTRUCTION_CHARS, MAX_SHOWN_CHARS, TIPS, Mistake, proposed_arm, questions
from luthier.core.types import Example, TaskProfile

LABELS = ("card", "money")
PROFILE = TaskProfile(kind="label", evidence="", labels=LABELS)


def _row(n: int, **changes: object) -> Example:
    values = {"id": f"{n:03}", "path": "t", "line": n, "kind": "instruct", "input": f"text {n}", "response": LABELS[n % 2], **changes}
    return Example(**values)  # type: ignore[arg-type]


TRAIN = tuple(_row(n) for n in range(40))
MISTAKES = tuple(Mistake(item=_row(n, input=f"missed {n}"), answer="wrong") for n in range(100, 110))


def _ask(**changes: object) -> list[str]:
    values = {"number": 6, "seed": 0, "max_prompt_chars": 8000, "mistakes": MISTAKES, "train": TRAIN, **changes}
    return [m.content for [m] in questions(values.pop("train"), PROFILE, values.pop("mistakes"), **values)]  # type: ignore[arg-type]


def test_every_question_is_another_and_the_same_run_asks_the_same() -> None:
    asked = _ask()
    assert len(set(asked)) == 6 and all(tip in text for tip, text in zip(TIPS, asked, strict=True))
    assert asked == _ask(train=tuple(reversed(TRAIN))) and asked != _ask(seed=1)
    assert all(text.count("missed") == 4 and text.count("Input: text") == 6 and "It answered: wrong" in text for text in asked)
    assert all("- card" in text and "- money" in text for text in asked)


def test_limits_are_kept_by_showing_less() -> None:
    long = tuple(_row(n, input="x" * 5000) for n in range(40))
    for limit in (900, 1500, 3000):
        assert all(len(text) <= limit for text in _ask(train=long, max_prompt_chars=limit))
    assert all("x" * MAX_SHOWN_CHARS not in text for text in _ask(train=long))


def test_no_mistakes_and_few_rows() -> None:
    assert all("Mistakes" not in text for text in _ask(mistakes=(), train=TRAIN[:2]))


def test_unwanted_answers_are_no_examples() -> None:
    bad = tuple(_row(n, response="BAD", desirable=False) for n in range(200, 260))
    assert all("BAD" not in text for text in _ask(train=(*TRAIN, *bad)))


def test_proposals_become_candidates_with_the_form_of_the_answer() -> None:
    texts = ["  Go by the noun. ", "Go by the noun.", "", " \n", "y" * 3000, "Second {0} %s"]
    arm = proposed_arm(TRAIN, PROFILE, texts, max_prompt_chars=8000, by="x")
    assert [c.params["proposal"] for c in arm.candidates] == ["1", "5", "6"]
    assert "3 of 6 were empty, repeated or too long" in arm.description and "1 were cut" in arm.description
    assert arm.candidates[1].params["instruction"] == "y" * MAX_INSTRUCTION_CHARS
    system, user = arm.candidates[2].build(_row(900, input="the item"))
    assert "Second {0} %s" in system.content and "- card" in system.content and user.content.startswith("the item")
    assert arm.family == "prompt" and arm.failed is None


@pytest.mark.parametrize(("texts", "limit"), [((), 8000), (("", " "), 8000), (("z" * 1900,), 1000)])
def test_nothing_usable_is_a_failed_arm_not_a_zero(texts: tuple[str, ...], limit: int) -> None:
    arm = proposed_arm(TRAIN, PROFILE, texts, max_prompt_chars=limit, by="the model itself")
    assert arm.failed is not None and "no proposal of the model itself can be used" in arm.failed and not arm.candidates


def test_what_a_person_gave_is_never_cut() -> None:
    long = "Be exact. " * 1000
    arm = proposed_arm(TRAIN, PROFILE, [long, "Be brief."], max_prompt_chars=50_000, by="a.txt, b.json", are_given=True)
    assert [c.params["instruction"] for c in arm.candidates] == [long.strip(), "Be brief."]
    assert all(c.params["instruction"] in c.build(TRAIN[0])[0].content for c in arm.candidates)
    assert arm.description == "Instructions given, not proposed here: a.txt, b.json, the best on dev."
    again = proposed_arm(TRAIN, PROFILE, [long.strip()], max_prompt_chars=50_000, by="", are_given=True)  # as a run makes it once more
    assert again.candidates[0].build(TRAIN[3]) == arm.candidates[0].build(TRAIN[3])
    too_long = proposed_arm(TRAIN, PROFILE, [long], max_prompt_chars=500, by="a.txt", are_given=True)
    assert too_long.failed is not None and "no instruction of a.txt can be used" in too_long.failed
