"""Instructions of another tool: text files, and what DSPy saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import InputError
from luthier.data.instructions import MAX_CHARS, read_instruction

# As DSPy 2.5 and later save `ChainOfThought("query -> label")` after MIPROv2: one predictor, and the versions.
PREDICTOR = {
    "traces": [],
    "train": [],
    "demos": [{"augmented": True, "query": "where is my card", "reasoning": "…", "label": "card"}, {"query": "a", "label": "b"}],
    "signature": {
        "instructions": "Sort the query by what it is about.\nName one label.",
        "fields": [{"prefix": "Query:", "description": "${query}"}, {"prefix": "Label:", "description": "${label}"}],
    },
    "lm": None,
}
METADATA = {"dependency_versions": {"python": "3.11", "dspy": "2.6.27", "cloudpickle": "3.1"}}


def _write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_a_text_file_is_taken_whole(tmp_path: Path) -> None:
    found = read_instruction(_write(tmp_path / "mine.txt", "\ufeff  Be exact.\n\nSay one word. \n"))
    assert (found.name, found.text, found.num_demos) == ("mine.txt", "Be exact.\n\nSay one word.", 0)


@pytest.mark.parametrize(
    "state",
    [
        {"predict": PREDICTOR, "metadata": METADATA},  # a module
        {**PREDICTOR, "metadata": METADATA},  # a bare Predict
        {"predict": {"demos": PREDICTOR["demos"], "signature_instructions": PREDICTOR["signature"]["instructions"]}},  # before 2.5
    ],
)
def test_what_dspy_saves_is_read(tmp_path: Path, state: object) -> None:
    found = read_instruction(_write(tmp_path / "optimised.json", state))
    assert found.text == PREDICTOR["signature"]["instructions"] and found.num_demos == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"a": PREDICTOR, "b": PREDICTOR}, "2 predictors (a, b)"),
        ("a.json", {"metadata": METADATA}, "no predictor with an instruction"),
        ("a.json", [1, 2], "no predictor with an instruction"),
        ("a.json", "{", "it is no JSON"),
        ("a.json", "[" * 100_000, "it is no JSON"),
        ("a.json", {"a": {**PREDICTOR, "signature": {"instructions": "  "}}}, "is empty"),
        ("a.json", {"a": {**PREDICTOR, "signature": {"instructions": 5}}}, "no predictor with an instruction"),
        ("a.txt", " \n", "is empty"),
        ("a.txt", "x" * (MAX_CHARS + 1), "at most 65,536"),
    ],
)
def test_what_is_no_instruction_is_refused(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_instruction(_write(tmp_path / name, content))
    assert message in str(caught.value) and caught.value.fix and caught.value.where.endswith(name)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_instruction(tmp_path / "nowhere.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"not UTF-8 \(byte 3\)"):
        read_instruction(tmp_path / "latin.txt")
    (tmp_path / "program.pkl").write_bytes(b"\x80\x04\x95")
    with pytest.raises(InputError, match="not UTF-8"):
        read_instruction(tmp_path / "program.pkl")
