from __future__ import annotations

import json

import pytest

from luthier.core.types import Example, Message
from luthier.metrics.closed_world import (
    ClosedWorld,
    abstains,
    abstention_markers,
    fabrication,
    known_facts,
    over_abstention,
    reference_counts,
    unsupported,
    unsupported_facts,
)

NOTHING = ClosedWorld(known=frozenset())


def make(input: str, response: str = "ok", **more: object) -> Example:
    return Example(id=input[:20], path="t.jsonl", line=1, kind="instruct", input=input, response=response, **more)  # type: ignore[arg-type]


def test_the_world_is_responses_and_instructions_not_inputs() -> None:
    world = known_facts([make("I paid $77", "Refunds take 5 days", instruction="Be brief, 10 % off", system="Open 9am")])
    assert world.known == {"qty:5 day", "pct:10", "time:09:00"}


def test_an_undesirable_response_teaches_nothing() -> None:
    assert known_facts([make("x", "It costs $9", desirable=False)]).known == frozenset()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It will arrive soon.", None),  # no fact
        ("It takes 5 days.", 0.0),  # training response
        ("You paid $77.", 0.0),  # input
        ("You paid 77.00 USD on 5 March.", 0.0),  # other spelling; the input gives the full date
        ("Order AB1234 is on its way.", 0.0),  # history
        ("It takes 6 days.", 1.0),
        ("It takes 5 hours.", 1.0),  # same number, other unit
        ("It takes 5 days and costs $3.", 1.0),  # one invention is enough
        ("Write to help@bank.example.", 1.0),
        ("The fee is €40.", 0.0),  # the input has a bare 40
    ],
)
def test_unsupported(answer: str, expected: float | None) -> None:
    world = known_facts([make("q", "Refunds take 5 days")])
    item = make("I paid $77 on 2024-03-05, fee 40", history=(Message(role="user", content="order AB-1234"),))
    assert unsupported(answer, item, world) == expected


def test_unsupported_facts_are_named_in_order() -> None:
    assert unsupported_facts("$3 in 6 days", make("q"), NOTHING) == ("money:3 usd", "qty:6 day")
    assert unsupported_facts("none", make("q"), NOTHING) is None


def test_reference_counts_show_tasks_that_compute_values() -> None:
    items = [make("2 boxes at $3", "$6"), make("paid $5", "$5"), make("hi", "hello")]
    assert reference_counts(items, NOTHING) == (2, 1)


DECLINE = "I do not have that information. Please call us."


def test_markers_repeat_over_inputs_and_decline() -> None:
    train = [make(f"question {i}", DECLINE) for i in range(3)]
    train += [make(f"again {i}", "Please contact support") for i in range(5)]  # repeats, but declines nothing
    train += [make("same", "I don't know the code") for _ in range(5)]  # one input only
    assert abstention_markers(train) == {"i do not have that information. please call us"}


def test_markers_are_found_inside_json_fields() -> None:
    train = [make(f"q{i}", json.dumps({"n": i, "answer": "Not mentioned in the text."})) for i in range(3)]
    assert abstention_markers(train) == {"not mentioned in the text"}


@pytest.mark.parametrize(
    "text",
    [
        DECLINE,
        "I DON’T KNOW.",
        "I'm sorry, but I cannot answer that.",
        "We are unable to confirm this.",
        "The text does not mention when it was built.",
        "This is not specified in the contract.",
        "There is not enough information to tell.",
        '{"answer": "I don\'t know", "confidence": 1}',
        "Sorry!\n\nWe do not currently have any information about that.",
    ],
)
def test_abstains(text: str) -> None:
    assert abstains(text, frozenset())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "card_not_working",
        "unable_to_verify_identity",
        "It takes 5 days.",
        "You cannot pay by cheque.",
        "I couldn't help but notice the traffic.",
        "The information is on page 3.",
        "x" * 400 + " i don't know",  # too late in the answer
        '{"i don\'t know": "Paris"}',  # a key is no text
    ],
)
def test_does_not_abstain(text: str) -> None:
    assert not abstains(text, frozenset())


def test_a_learned_marker_counts_anywhere() -> None:
    marker = frozenset({"ask a colleague"})
    assert abstains("Hm. Ask a colleague!", marker)
    assert not abstains("Hm. Ask a colleague!", frozenset())


def test_fabrication_and_over_abstention() -> None:
    none: frozenset[str] = frozenset()
    assert fabrication("Paris", "I don't know", none) == 1.0
    assert fabrication("I do not know.", "I don't know", none) == 0.0
    assert fabrication("Paris", "Rome", none) is None
    assert fabrication("I don't know", "Rome", none) is None
    assert over_abstention("Paris", "Rome", none) == 0.0
    assert over_abstention("I don't know", "Rome", none) == 1.0
    assert over_abstention("Paris", "I don't know", none) is None
    assert over_abstention("I don't know", "I do not know", none) is None


def test_a_set_phrase_of_two_words_is_an_abstention() -> None:
    assert abstains("Not answerable.", frozenset())
    assert not abstains("It is answerable", frozenset())
