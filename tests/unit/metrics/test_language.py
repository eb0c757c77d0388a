"""The language of a text: what is told, that it never changes, and the refusal where nothing can tell."""

from __future__ import annotations

import random

import pytest

from luthier.core.errors import MissingExtraError
from luthier.metrics.language import known_languages, language_of, require_detector

TEXTS = {
    "en": "The weather is nice today, so we are going to walk through the park.",
    "de": "Das Wetter ist heute schön, deshalb gehen wir durch den Park spazieren.",
    "it": "Oggi il tempo è bello, quindi andiamo a fare una passeggiata nel parco.",
    "ru": "Сегодня хорошая погода, поэтому мы идём гулять в парк.",
    "kn": "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ, ಆದ್ದರಿಂದ ನಾವು ಉದ್ಯಾನದಲ್ಲಿ ನಡೆಯಲು ಹೋಗುತ್ತೇವೆ.",
    "th": "วันนี้อากาศดี เราจึงไปเดินเล่นในสวนสาธารณะ",
    "ko": "오늘은 날씨가 좋아서 우리는 공원을 산책하러 갑니다.",
}


@pytest.mark.parametrize("code", TEXTS)
def test_a_sentence_has_its_language(code: str) -> None:
    assert language_of(TEXTS[code]) == code and code in known_languages()


def test_a_text_without_letters_has_none() -> None:
    assert [language_of(text) for text in ("", "55 + 5 = 60", "!?")] == [None, None, None]


def test_a_short_text_has_one_language_however_often_it_is_asked() -> None:
    random.seed(1)  # langdetect's own draws must not hang on it
    short = ("並查看更", "Hello world", "\n  THIS IS AN ENGLISH SENTENCE. EVERY LETTER IS CAPITALIZED!!! AMAZING.\n  ")
    assert [len({language_of(text) for _ in range(40)}) for text in short] == [1, 1, 1]


def test_languages_stand_in_one_order_and_langdetects_own_seed_is_left_alone() -> None:
    from langdetect import DetectorFactory

    assert list(known_languages()) == sorted(known_languages()) and len(known_languages()) == 55
    assert DetectorFactory.seed is None


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="langdetect") as caught:
        require_detector("some.jsonl")
    assert caught.value.where == "some.jsonl" and caught.value.fix == "pip install 'luthier[language]'"
    with pytest.raises(MissingExtraError):
        language_of("No word of it is read.")
