"""The numbers that the leak search is held to: exact 100 %, near-duplicates 95 %, at most 1 % false alarms on clean data."""

from __future__ import annotations

import random

from tests.unit.data_check.make_rows import pairs, row, rows, sentences, vocabulary

from luthier.core.types import Example
from luthier.data.leakage import find_given_answers, find_leaks


def jaccard(a: str, b: str) -> float:
    left, right = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (a, b))
    return len(left & right) / len(left | right)


def near_copy(text: str, rng: random.Random, words: list[str]) -> str:
    """Words exchanged, one after another, while the similarity stays at 0.8 or above."""
    best = text
    for _ in range(4):
        parts = best.split()
        parts[rng.randrange(len(parts))] = rng.choice(words)
        changed = " ".join(parts)
        if jaccard(text, changed) < 0.8:
            break
        best = changed
    return best if best != text else text[:-1]


def test_recall_and_false_alarms_on_ten_thousand_rows() -> None:
    rng = random.Random("leaks")
    texts = sentences(10_000, name="leaks")
    train = pairs(*((text, "x") for text in texts[:8000]))
    clean = texts[8000:]
    planted = rng.sample(texts[:8000], 600)
    words = vocabulary(random.Random("other"), 500)
    exact, spelled = planted[:200], [text.title().replace(" ", ",  ", 2) + " !" for text in planted[200:400]]
    near = [near_copy(text, rng, words) for text in planted[400:]]
    assert all(jaccard(a, b) >= 0.8 for a, b in zip(near, planted[400:], strict=True))
    test = rows([row(text, "x") for text in (*exact, *spelled, *near, *clean)], "test.jsonl")
    leaks = find_leaks(train, test)
    found = {leak.test.line for leak in leaks.prompts}
    assert {leak.test.line for leak in leaks.exact} == set(range(1, 201))
    assert {leak.test.line for leak in leaks.spelling} == set(range(201, 401))
    assert len(found & set(range(401, 601))) >= 0.95 * 200
    assert sum(line > 600 for line in found) <= 0.01 * len(clean)
    for leak in leaks.prompts:  # and each names the row it was copied from
        if leak.test.line <= 600:
            assert leak.train.input == planted[leak.test.line - 1]


def test_a_pair_is_told_once_under_its_strictest_kind() -> None:
    texts = sentences(3, name="kinds")
    train = pairs((texts[0], "x"), (texts[1], "x"), (f"{texts[2]} and then some more of it", "x"))
    test = rows([row(texts[0] + ".", "x"), row(f"({texts[1]})", "x")], "test.jsonl")
    leaks = find_leaks(train, test)
    assert [leak.train.line for leak in leaks.exact] == [1]
    assert [leak.train.line for leak in leaks.spelling] == [2]
    assert (leaks.near, leaks.contained, leaks.answers) == ((), (), ())


def test_a_test_prompt_inside_a_longer_one() -> None:
    a, b, c = sentences(3, name="contained")
    leaks = find_leaks(pairs((f"{a} {b} {c}", "x")), rows([row(b, "x")], "test.jsonl"))
    assert [(leak.kind, leak.similarity) for leak in leaks.contained] == [("contained", 1.0)]
    assert leaks.near == ()


def test_an_instruction_in_every_row_is_no_leak() -> None:
    instruction = "Sort the message of the customer into one of the seventy seven intents of the bank and answer with its name only: "
    texts = sentences(60, name="instruction")
    made: list[Example] = [row(instruction + text, "x") for text in texts]
    leaks = find_leaks(rows(made[:50]), rows(made[50:], "test.jsonl"))
    assert leaks.prompts == ()


def test_every_row_is_listed_where_several_meet() -> None:
    train = pairs(("Where is my card?", "a"), ("where is my card", "b"))
    test = rows([row("Where is my card", str(i)) for i in range(3)], "test.jsonl")
    leaks = find_leaks(train, test)
    assert {leak.train.line for leak in leaks.exact} == {1, 2}
    assert {leak.test.line for leak in leaks.exact} == {1, 2, 3}
    assert leaks.spelling == ()


def test_long_answers_in_training_prompts() -> None:
    a, b, c, d = sentences(4, name="answers")
    train = pairs((f"Context: {a} {b} Question: what?", "x"), (c, "x"))
    too_short = " ".join(a.split()[:7])
    test = rows([row("A question of its own", a), row("Another question here", d), row("And a third", too_short)], "test.jsonl")
    assert [(leak.test.line, leak.train.line) for leak in find_leaks(train, test).answers] == [(1, 1)]
    # Without a test set: any other row; an answer in its own prompt is the task.
    data = pairs((f"Context: {a} {b}", a), ("Something else", b), (f"Repeat: {c}", c))
    assert [(leak.test.line, leak.train.line) for leak in find_given_answers(data)] == [(2, 1)]


def test_nothing_to_compare() -> None:
    assert find_leaks((), pairs(("a", "b"))).prompts == ()
    assert find_leaks(pairs(("a", "b")), ()).prompts == ()
