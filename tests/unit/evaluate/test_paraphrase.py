"""Paraphrases of a model: what is asked for, what passes, and what is refused and counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.core.types import Example, Generation, TaskProfile
from luthier.evaluate.paraphrase import WAYS, checked, paraphrase_requests, varying_part, why_not, with_part

LABELS = TaskProfile(kind="label", evidence="", labels=("card_arrival", "lost_card", "refund"))
SHORT, TEXT, JSON = (TaskProfile(kind=kind, evidence="") for kind in ("short", "text", "json"))

AWAY = "gives the answer away, or names another label"
NESTED = '{"thing": "loom", "where": {"room": "hall"}}'


def _item(text: str, response: str = "card_arrival", **more: object) -> Example:
    return Example(id="a", path="t", line=1, kind="instruct", instruction="Sort it.", input=text, response=response, **more)  # type: ignore[arg-type]


def _reply(text: str, finish: str = "stop") -> Generation:
    return Generation(
        item_id="a",
        text=text,
        finish=finish,
        num_prompt_tokens=1,
        num_cached_tokens=0,
        num_new_tokens=1,
        latency_s=0.1,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("before", "after", "profile", "response", "reason"),
    [
        ("Where is the card I ordered?", "The card I asked for: where is it?", LABELS, "card_arrival", ""),
        ("Where is the card I ordered?", "where is the card i ordered", LABELS, "card_arrival", "is the same text"),
        ("Where is the card I ordered?", "", LABELS, "card_arrival", "is empty"),
        ("Where is the card I ordered?", "It is a lost card, is it not?", LABELS, "card_arrival", AWAY),
        ("I want a refund for my lost things", "I want money for my lost things", LABELS, "refund", "loses a value of the answer"),
        ("Where is it?", "Where " + "oh where " * 8 + "is it?", LABELS, "card_arrival", "is much longer or shorter"),
        ("I paid 30 euros on 3 May for this", "On 3 May I paid 30 euros for that", TEXT, "x", ""),
        ("I paid 30 euros on 3 May for this", "On 3 May I paid 13 euros for that", TEXT, "x", "changes a number, a quotation or a code"),
        ('He said "no" to all of us', 'To all of us he said "yes"', TEXT, "x", "changes a number, a quotation or a code"),
        ("Did the parcel for Maria arrive there", "Has the parcel arrived for her there", TEXT, "x", "loses a name"),
        ("Did the parcel for Maria arrive there", "Has the parcel for Maria arrived there", TEXT, "x", ""),
        ("What is the capital of that country?", "Which city is its capital? Paris, is it?", SHORT, "Paris", AWAY),
        ("The town of the king is old. Which town?", "Which town is it? The king's town is old.", SHORT, "old", ""),
        ("my blue loom broke in the hall", "in the hall, the blue loom of mine broke", JSON, NESTED, ""),
        ("my blue loom broke in the hall", "in the hall, the blue thing of mine broke", JSON, NESTED, "loses a value of the answer"),
        ("我的卡在哪里可以找到", "请问哪里能找到我的卡", TEXT, "x", ""),
        ("我的卡在哪里可以找到", "卡", TEXT, "x", "is much longer or shorter"),
    ],
)  # fmt: skip
def test_what_is_kept_is_checked(before: str, after: str, profile: TaskProfile, response: str, reason: str) -> None:
    assert why_not(_item(before, response), after, profile) == reason


def test_one_request_a_paraphrase_and_each_quotes_the_text() -> None:
    items = [_item("first\nsecond line"), _item("")]
    requests = paraphrase_requests(items, 3)
    assert len(requests) == 6 and len({request.messages[1].content for request in requests}) == 6
    assert requests[0].messages[1].content == f"{WAYS[0]}\n\n| first\n| second line"
    assert "| Sort it." in requests[3].messages[1].content  # without an input the instruction is reworded
    assert varying_part(with_part(items[1], "Order it.")) == "Order it." and with_part(items[1], "Order it.").instruction == "Order it."
    assert with_part(items[0], "x").instruction == "Sort it."


def test_refused_ones_are_counted_and_none_is_made_up() -> None:
    items = [_item("Where is the card I ordered?"), replace(_item("Nothing has come so far, why?"), id="b")]
    replies = [
        _reply("| Where did the card go that I ordered?"),  # quoted as it was asked: the mark is taken away
        _reply("Where did the card go, that I ordered"),
        _reply("nothing has come so far. why"),
        _reply("So far nothing", finish="length"),
    ]
    found = checked(items, replies, 2, LABELS)
    assert found.texts == {"a": ("Where did the card go that I ordered?",)} and found.num_asked == 4
    assert found.refused == {"says the same as another one": 1, "is the same text": 1, "was cut off": 1}
