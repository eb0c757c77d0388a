"""Requests with verifiable constraints: how the file is read, and how an answer is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import InputError, MissingExtraError
from luthier.core.types import Generation
from luthier.evaluate.probes import Probe, constraint_item
from luthier.pipeline.probes import check_languages, read_constraints


def _row(kinds: object, values: object, prompt: object = "Say it.") -> str:
    return json.dumps({"key": 1, "prompt": prompt, "instruction_id_list": kinds, "kwargs": values}) + "\n"


def test_an_answer_follows_only_if_it_keeps_every_constraint(tmp_path: Path) -> None:
    file = tmp_path / "few.jsonl"
    rows = [
        _row(["punctuation:no_comma", "change_case:english_capital"], [{}, {}]),
        _row(["punctuation:no_comma", "language:response_language"], [{}, {"language": "kn"}]),
    ]
    file.write_text("".join(rows), encoding="utf-8")
    probe, other = read_constraints(file)
    assert (probe.id, other.id) == ("constraint-1", "constraint-2") and not probe.is_request

    def judged(text: str) -> tuple[float | None, str]:
        generation = Generation(
            item_id="", text=text, finish="stop", num_prompt_tokens=1, num_cached_tokens=0, num_new_tokens=1, latency_s=0.1
        )
        item = constraint_item(probe, generation)
        return item.values["follows"], item.note

    assert judged("ALL OF IT IS WRITTEN IN ENGLISH WORDS") == (1.0, "")
    assert judged("ALL OF IT, IS WRITTEN IN ENGLISH WORDS") == (0.0, "broken: punctuation:no_comma")
    assert judged("ALLES IST IN DEUTSCHEN WORTEN GESCHRIEBEN UND ZWAR NUR") == (0.0, "broken: change_case:english_capital")
    assert judged("all, of it") == (0.0, "broken: punctuation:no_comma, change_case:english_capital")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (_row(["punctuation:no_comma"], []), "as many names"),
        (_row([], []), "as many names"),
        (_row("punctuation:no_comma", [{}]), "as many names"),
        (_row(["punctuation:no_comma"], [1]), "as many names"),
        (_row(["punctuation:no_comma"], [{}], prompt=" "), "as many names"),
        (_row(["keywords:existence"], [{"keywords": None}]), "keywords:existence has no keywords"),
        (_row(["length_constraints:number_sentences"], [{}]), "has no relation, num_sentences"),
        (_row(["keywords:frequency"], [{"keyword": "a", "relation": "at most", "frequency": 2}]), "the relation 'at most'; expected"),
        (_row(["keywords:letter_frequency"], [{"letter": "a", "let_relation": "at most", "let_frequency": 2}]), "the relation 'at most'"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, row: str, problem: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(row, encoding="utf-8")
    with pytest.raises(InputError, match=problem) as caught:
        read_constraints(file)
    assert "bad.jsonl" in caught.value.where and "IFEval" in caught.value.fix


def test_an_unknown_type_is_refused_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "typo.jsonl"
    file.write_text(_row(["punctuation:no_comma"], [{}]) + _row(["lenght_constraints:number_words"], [{}]), encoding="utf-8")
    with pytest.raises(InputError, match="none of IFEval's 25 types") as caught:
        read_constraints(file)
    assert caught.value.where.endswith("typo.jsonl:2") and caught.value.fix.startswith("length_constraints:number_words")


def test_a_language_is_refused_where_none_can_be_told_or_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "languages.jsonl"

    def probes(kind: str, values: dict[str, str]) -> tuple[Probe, ...]:
        file.write_text(_row([kind], [values]), encoding="utf-8")
        return read_constraints(file)

    for code in ("kn", "zh-cn"):
        check_languages(probes("language:response_language", {"language": code}), str(file))
    with pytest.raises(InputError, match="the language 'zh'") as caught:
        check_languages(probes("language:response_language", {"language": "zh"}), str(file))
    assert "zh-" in caught.value.fix
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_languages(probes("punctuation:no_comma", {}), str(file))
    for kind in ("language:response_language", "change_case:english_capital", "change_case:english_lowercase"):
        with pytest.raises(MissingExtraError) as missing:
            check_languages(probes(kind, {"language": "kn"}), str(file))
        assert missing.value.where == str(file) and "luthier[language]" in missing.value.fix
