"""Requests with verifiable constraints: how the file is read, and how an answer is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import InputError
from luthier.core.types import Generation
from luthier.evaluate.probes import constraint_item
from luthier.pipeline.probes import read_constraints


def _row(kinds: object, values: object, prompt: object = "Say it.") -> str:
    return json.dumps({"key": 1, "prompt": prompt, "instruction_id_list": kinds, "kwargs": values}) + "\n"


def test_an_answer_follows_only_if_it_keeps_every_constraint(tmp_path: Path) -> None:
    file = tmp_path / "few.jsonl"
    rows = [
        _row(["punctuation:no_comma", "change_case:english_capital"], [{}, {}]),
        _row(["punctuation:no_comma", "language:response_language"], [{}, {"language": "kn"}]),
    ]
    file.write_text("".join(rows), encoding="utf-8")
    [probe], left_out = read_constraints(file)
    assert left_out == 1 and probe.id == "constraint-1" and not probe.is_request

    def judged(text: str) -> tuple[float | None, str]:
        generation = Generation(
            item_id="", text=text, finish="stop", num_prompt_tokens=1, num_cached_tokens=0, num_new_tokens=1, latency_s=0.1
        )
        item = constraint_item(probe, generation)
        return item.values["follows"], item.note

    assert judged("ALL OF IT") == (1.0, "")
    assert judged("ALL, OF IT") == (0.0, "broken: punctuation:no_comma")
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
        (_row(["length_constraints:number_sentences"], [{}]), "no request whose constraints can be checked"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, row: str, problem: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(row, encoding="utf-8")
    with pytest.raises(InputError, match=problem) as caught:
        read_constraints(file)
    assert "bad.jsonl" in caught.value.where and "IFEval" in caught.value.fix
