from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data_check.make_rows import sentences

from luthier.data.similar import is_short, jaccard, shingle, similar_pairs


def plain_jaccard(a: str, b: str) -> float:
    left, right = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (a, b))
    return len(left & right) / len(left | right)


def edited(text: str, rng: random.Random) -> str:
    """A few characters removed, doubled or exchanged."""
    chars = list(text)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(chars))
        chars[place] = rng.choice(["", chars[place] * 2, rng.choice("aeiou ")])
    return "".join(chars)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.7, 0.8, 0.9, 1.0]))
def test_finds_exactly_the_pairs_that_brute_force_finds(seed: int, threshold: float) -> None:
    rng = random.Random(seed)
    texts = sentences(9, name=str(seed))
    texts = sorted({*texts, *(edited(text, rng) for text in texts)})[:19]  # fewer than a template is looked for in
    rng.shuffle(texts)
    expected = {(i, j) for (i, a), (j, b) in combinations(enumerate(texts), 2) if plain_jaccard(a, b) >= threshold}
    found = {(i, j): similarity for i, j, similarity in similar_pairs(texts, threshold=threshold)}
    assert set(found) == expected
    for (i, j), similarity in found.items():
        assert similarity == pytest.approx(plain_jaccard(texts[i], texts[j]))


def test_shingles_are_counted_once_and_short_texts_have_none() -> None:
    assert len(shingle("abcdeabcde")) == 5
    assert len(shingle("abcd")) == 0
    assert jaccard(shingle("abc"), shingle("abc")) == 0.0
    assert jaccard(shingle("abcdef"), shingle("abcdef")) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("cancel my card", True), ("cancel my card now", False), ("取消我的卡", True), ("请帮我取消我的银行卡好吗", False), ("", True)],
)
def test_short_texts(text: str, expected: bool) -> None:
    assert is_short(text) is expected


def test_a_template_around_the_texts_does_not_make_them_similar() -> None:
    template = "You are a helpful assistant of a bank. Sort the customer's message into one of 77 intents. Message: {} Intent:"
    texts = [template.format(text) for text in sentences(60, name="template")]
    assert plain_jaccard(texts[0], texts[1]) > 0.3
    again = [*texts, texts[3][:-10] + "s Intent:"]
    assert [(i, j) for i, j, _ in similar_pairs(again, threshold=0.8)] == [(3, 60)]


def test_lone_surrogates_pass() -> None:
    assert list(similar_pairs(["one two three four \ud800", "one two three four \udc00"], threshold=0.5))
