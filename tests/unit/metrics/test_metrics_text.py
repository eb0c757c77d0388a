from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.metrics import text as module
from luthier.metrics.text import MAX_ROUGE_TOKENS, chrf, edit_distance, edit_similarity, exact_match, rouge_l, token_f1, word_tokens

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "Mat", "ﬁve", "ß", "東京", "don't", "5%", "-", "क्या"]), max_size=12).map(" ".join)
TEXTS = st.one_of(st.text(max_size=40), WORDS)
DETERMINISTIC = settings(derandomize=True, max_examples=150, deadline=None)


@pytest.mark.parametrize(
    ("pred", "gold", "expected"),
    [
        ("card_arrival", "Card_Arrival.", 1.0),
        ("  two\twords\n", "two words", 1.0),
        ("ﬁve", "five", 1.0),  # NFKC
        ("STRASSE", "straße", 1.0),  # casefold
        ("a", "the", 0.0),  # articles only vanish in token F1
        ("no", "yes", 0.0),
        ("", "", 1.0),
        ("", "x", 0.0),
    ],
)
def test_exact_match(pred: str, gold: str, expected: float) -> None:
    assert exact_match(pred, gold) == expected


@pytest.mark.parametrize(
    ("pred", "gold", "expected"),
    [
        ("The cat!", "a cat", 1.0),  # articles and punctuation
        ("u.s.", "US", 1.0),  # punctuation is removed, not a space
        ("well-known", "wellknown", 1.0),
        ("the", "a", 1.0),  # both without tokens
        ("the", "cat", 0.0),
        ("", "cat", 0.0),
        ("cat cat", "cat", 2 / 3),  # counts, not sets
        ("in the year 1066", "1066", 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("the theatre", "theatre", 1.0),  # "the" only as a word
        ("“yes”", "yes", 1.0),
        ("東京都", "東京", 0.8),  # characters
    ],
)
def test_token_f1_by_squad_rules(pred: str, gold: str, expected: float) -> None:
    assert token_f1(pred, gold) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pred", "gold", "expected"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, section 3
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("the gunman police killed", "police killed the gunman", 0.5),
        ("a b c d", "d c b a", 0.25),
        ("😀", "😺", 0.0),  # no word, not the same
        ("😀", "😀", 1.0),
        ("", "x", 0.0),
        ("ab-cd", "ab cd", 1.0),
    ],
)
def test_rouge_l_known_answers(pred: str, gold: str, expected: float) -> None:
    assert rouge_l(pred, gold) == pytest.approx(expected)


@DETERMINISTIC
@given(TEXTS, TEXTS)
def test_in_range_symmetric_and_implied_by_exact(a: str, b: str) -> None:
    for metric in (exact_match, token_f1, rouge_l):
        score = metric(a, b)
        assert 0.0 <= score <= 1.0
        assert score == metric(b, a)
        assert metric(a, a) == 1.0
    if exact_match(a, b) == 1.0:
        assert token_f1(a, b) == 1.0
        assert rouge_l(a, b) == 1.0


@DETERMINISTIC
@given(st.lists(st.sampled_from("abcd"), max_size=70), st.lists(st.sampled_from("abcd"), max_size=70))
def test_rouge_l_equals_the_textbook_lcs(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    expected = 2 * table[-1][-1] / (len(a) + len(b)) if a and b else float(a == b)
    assert rouge_l(" ".join(a), " ".join(b)) == expected


def test_rouge_l_of_very_long_texts_is_a_lower_bound() -> None:
    long = " ".join(str(i) for i in range(MAX_ROUGE_TOKENS + 2_000))
    assert rouge_l(long, long) == 1.0
    score = rouge_l(long + " end", long)
    assert 0.9 < score < 1.0


def test_words_keep_their_combining_marks() -> None:
    assert word_tokens("क्या है?") == ("क्या", "है")
    assert word_tokens("Don't—stop\x00now") == ("don", "t", "stop", "now")


@pytest.mark.parametrize(
    ("pred", "gold", "expected"),
    [
        ("abcdef", "abcdef", 1.0),
        ("Abc Def.", "abc def", 1.0),  # after the one normalisation
        ("a b c", "abc", 1.0),  # white space is no character
        ("abc", "xyz", 0.0),
        ("", "abc", 0.0),
        ("ab", "abc", 5 * 1.0 * (2 / 3 + 1 / 2) / 2 / (4 * 1.0 + (2 / 3 + 1 / 2) / 2)),  # precision 1, recall (2/3 + 1/2) / 2
        ("abc", "ab", 5 * (2 / 3 + 1 / 2) / 2 * 1.0 / (4 * (2 / 3 + 1 / 2) / 2 + 1.0)),  # recall weighs more, so this is higher
    ],
)
def test_chrf(pred: str, gold: str, expected: float) -> None:
    assert chrf(pred, gold) == pytest.approx(expected)


def test_chrf_is_that_of_sacrebleu() -> None:
    """Sentence scores of sacreBLEU 2.6.0, chrF2, on lower-case texts without a final stop."""
    known = [
        ("the eagle is a cheap coffee shop near the river", "the eagle is a coffee shop by the riverside with low prices", 53.153),
        ("we bring the osprey to your door for €85", "we deliver the osprey 90 to your home for €85", 43.904),
        ("ja", "jawohl, gerne", 15.596),
        ("東京は日本の首都", "東京都は日本の首都です", 46.511),
        ("no", "yes", 0.0),
    ]
    for pred, gold, score in known:
        assert 100 * chrf(pred, gold) == pytest.approx(score, abs=0.005), (pred, gold)


@DETERMINISTIC
@given(st.text(alphabet="abcé ", max_size=25), st.text(alphabet="abcé ", max_size=25))
def test_edit_distance_is_that_of_the_table(a: str, b: str) -> None:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    assert edit_distance(a, b) == edit_distance(b, a) == row[-1]


def test_edit_similarity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert edit_similarity("Kitten.", "kitten") == 1.0 and edit_similarity("", "abc") == 0.0
    whole = edit_similarity("abcdefgh" * 4, "abcdefgi" * 4)
    monkeypatch.setattr(module, "MAX_EDIT_CHARS", 16)
    assert edit_similarity("abcdefgh" * 4, "abcdefgi" * 4) < whole  # what lies beyond counts as different
