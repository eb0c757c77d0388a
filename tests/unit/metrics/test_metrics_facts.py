from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.metrics.facts import bare_numbers, bare_value, fact_tokens, weaker_forms


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", set()),
        ("1. First, 2. second; 3 cats", set()),
        ("A refund of $1,200.00 is due", {"money:1200 usd"}),
        ("1200 USD, 1.200,50 € and £0.99", {"money:1200 usd", "money:1200.5 eur", "money:0.99 gbp"}),
        ("fifty dollars, $5k, $2.5 million", {"money:50 usd", "money:5000 usd", "money:2500000 usd"}),
        ("$5-10 or 20 to 30 euros", {"money:5 usd", "money:10 usd", "money:20 eur", "money:30 eur"}),
        ("50 %, 12.5 percent, 5–10%", {"pct:50", "pct:12.5", "pct:5", "pct:10"}),
        ("within 5-7 business days", {"qty:5 business day", "qty:7 business day"}),
        ("a 30-day trial, thirty days, 24h", {"qty:30 day", "qty:24 hour"}),
        ("twenty-five days", {"qty:25 day"}),
        ("two hundred days, one hundred and five days", set()),  # long number words are not read, and not misread
        ("One day, one second", set()),  # idioms
        ("16GB at 5 km/h and 20°C, 12,5 kg", {"qty:16 gb", "qty:5 km/h", "qty:20 deg c", "qty:12.5 kg"}),
        ("5 March 2024, March 5th, 2024, 2024-03-05", {"date:2024-03-05"}),
        ("the 5th of March; 31/12/2023; 03/04/2024", {"date:--03-05", "date:2023-12-31", "date:03/04/2024"}),
        ("2024-13-45", set()),
        ("9am to 5:30 p.m., 14:30, 12 am", {"time:09:00", "time:17:30", "time:14:30", "time:00:00"}),
        ("+1 (800) 555-0199 or 1-800-555-0199", {"phone:18005550199"}),
        ("020 7946 0958, (020) 7946 0958", {"phone:02079460958"}),
        ("mail Support@Example.com.", {"email:support@example.com"}),
        ("see https://www.Example.com/help/. or (www.x.org)", {"url:example.com/help", "url:x.org"}),
        ("order #123, ORD-12345, ord12345, 12345678", {"code:123", "code:ord12345", "code:12345678"}),
        ("version 2.5.1 at 192.168.1.10", {"code:2.5.1", "code:192.168.1.10"}),
        ("GPT-4, the 21st, the 1990s, B2B", set()),
        ("１２ days, ٣ days", {"qty:12 day", "qty:3 day"}),
        ("10 20 30 40", set()),
    ],
)
def test_fact_tokens(text: str, facts: set[str]) -> None:
    assert fact_tokens(text) == facts


def test_bare_numbers_are_those_no_fact_took() -> None:
    assert bare_numbers("49.90 of 1,000,000 in 5 days, 007") == {"49.9", "1000000", "7"}


def test_bare_value() -> None:
    assert bare_value("money:49.9 eur") == "49.9"
    assert bare_value("pct:5") == "5"
    assert bare_value("code:12345") == "12345"
    assert bare_value("code:ab12") is None
    assert bare_value("date:2024-03-05") is None


def test_ambiguous_dates_support_both_readings() -> None:
    assert {"date:--03-05", "date:05/03/2024", "date:03/05/2024"} <= weaker_forms("date:2024-03-05")
    assert {"date:2024-03-04", "date:2024-04-03"} <= weaker_forms("date:03/04/2024")
    assert weaker_forms("pct:5") == {"pct:5"}


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="0123456789.,-/:$€%+() adhkmpr@#x", max_size=60))
def test_any_text_gives_well_formed_facts_and_case_is_no_matter(text: str) -> None:
    facts = fact_tokens(text)
    assert all(":" in fact and fact.partition(":")[2] for fact in facts)
    bare_numbers(text)
    if text.isascii():
        assert facts == fact_tokens(text.upper())


@pytest.mark.parametrize("piece", ["1,", "1 ", "a@", "$", "0", "9-", "(1", "+1 ", "1:", "a.", "twenty ", "1 to ", "www.", "march ", "1.1"])
def test_hostile_repeats_take_linear_time(piece: str) -> None:
    started = time.process_time()
    fact_tokens(piece * (60_000 // len(piece)))
    assert time.process_time() - started < 2.0  # quadratic matching would take minutes
