from __future__ import annotations

import random
import time

import pytest
from tests.unit.data_check.make_rows import chat, pairs, row, rows, sentences

from luthier.core.types import Message
from luthier.data.duplicates import find_duplicates


def groups(examples: tuple, found: tuple) -> list[list[int]]:  # type: ignore[type-arg]
    line = {e.id: e.line for e in examples}
    return [[line[e_id] for e_id in group] for group in found]


def test_exact_needs_prompt_and_answer() -> None:
    data = pairs(
        ("How do I top up my card?", "top_up"),
        ("how do I  top up my card", "Top_up."),
        ("How do I top up my card?", "other"),
        ("Where is my nearest cash machine?", "atm"),
    )
    found = find_duplicates(data)
    assert groups(data, found.exact) == [[1, 2]]
    assert groups(data, found.near) == [[1, 2, 3]]


def test_another_system_prompt_or_history_is_not_an_exact_duplicate() -> None:
    data = rows(
        [
            row("What is it called?", "Ada"),
            row("What is it called?", "Ada", system="You are Ada."),
            chat("Hi", "Hello", "What is it called?", response="Ada"),
        ]
    )
    assert find_duplicates(data).exact == ()


@pytest.mark.parametrize(
    "twin",
    [
        "WHERE IS MY NEW DEBIT CARD",
        "where is my new debit card ?",
        "Where  is my new debit-card?",
        "Where is my new debit cards?",
        "“Where is my new debit card”…",
    ],
)
def test_near_duplicates(twin: str) -> None:
    data = pairs(("Where is my new debit card?", "a"), (twin, "a"), ("How long does a transfer to Spain take?", "b"))
    assert groups(data, find_duplicates(data).near) == [[1, 2]]


def test_short_texts_are_near_duplicates_only_when_the_words_are_the_same() -> None:
    data = pairs(("cancel my subscription", "a"), ("cancel my subscriptions", "a"), ("Cancel my subscription!", "a"))
    assert groups(data, find_duplicates(data).near) == [[1, 3]]


def test_a_shared_instruction_does_not_make_rows_similar() -> None:
    instruction = "Answer the customer of the shop as one line of JSON with the keys intent, reply and handover, and nothing else at all."
    data = rows([row(text, instruction=instruction) for text in ("Where is my loom?", "Can I pay by card?", "Do you ship to Norway?")])
    assert find_duplicates(data).near == ()
    same = rows([row("", instruction=instruction), row("", instruction=instruction.upper())])
    assert len(find_duplicates(same).near) == 1


def test_groups_and_conversations_are_clusters_but_not_duplicates() -> None:
    opening = "I would like to return the shoes that I bought"
    data = rows(
        [
            row("The first invoice of this customer", group="c1"),
            row("Something else entirely, about shipping", group="c1"),
            chat(opening, "Which ones?", "The red ones"),
            chat(opening, "Which ones?", "The red ones", "We have sent you a label by post.", "Thanks"),
            row(opening),
            chat("Hi", "Hello", "Is the store in Leeds open today?"),
            chat("Hi", "Good day", "Is there a discount for students?"),
        ]
    )
    found = find_duplicates(data)
    cluster = [found.clusters[e.id] for e in data]
    assert cluster[0] == cluster[1]
    assert cluster[2] == cluster[3] == cluster[4]
    assert len(set(cluster)) == 4  # a common greeting binds nothing
    assert found.near == ()


def test_equal_ids_from_two_files_are_one_cluster() -> None:
    data = (*pairs(("yes", "a")), *pairs(("yes", "a")))
    assert len(set(find_duplicates(data).clusters.values())) == 1


def test_clusters_cover_all_and_do_not_depend_on_order() -> None:
    texts = sentences(200, name="order")
    data = list(rows([row(text) for text in (*texts, *(f"{text} ok" for text in texts[:40]))]))
    found = find_duplicates(data).clusters
    assert set(found) == {e.id for e in data}
    assert len(set(found.values())) == 200
    assert all(found[name] == name for name in found.values())
    random.Random(1).shuffle(data)
    assert find_duplicates(data).clusters == found


def test_raw_text_is_compared_by_its_content() -> None:
    data = rows(
        [row("", text, kind="text") for text in ("The cat sat on the mat today.", "the cat sat on the mat today", "Dogs bark in the night")]
    )
    assert groups(data, find_duplicates(data).exact) == [[1, 2]]


def test_history_counts_in_short_replies() -> None:
    ask = (Message(role="user", content="Shall I book the table for two on Friday evening?"), Message(role="assistant", content="Yes?"))
    other = (Message(role="user", content="Do you want me to delete all of the old invoices?"), Message(role="assistant", content="Sure?"))
    data = rows([row("yes please", history=ask), row("yes please", history=other)])
    assert find_duplicates(data).near == ()


def test_threshold_is_checked() -> None:
    with pytest.raises(ValueError, match="threshold"):
        find_duplicates((), threshold=0)


def test_ten_thousand_rows_in_seconds() -> None:
    data = rows([row(text) for text in sentences(10_000, name="speed")])
    start = time.process_time()
    found = find_duplicates(data)
    assert time.process_time() - start < 5
    assert len(set(found.clusters.values())) == 10_000
