"""From files to examples: detection with evidence, columns, ids, splits, groups; nothing lost on the way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.errors import ConfigError, InputError
from luthier.core.types import SourceRow
from luthier.data.detect import detect_format
from luthier.data.load import load_examples, number_examples
from luthier.data.mapping import ColumnMap

CHAT = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]
SHARED = [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}]


def _write(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def _rows(*fields: dict[str, object], path: str = "a.jsonl") -> list[SourceRow]:
    return [SourceRow(path=path, line=index, fields=one) for index, one in enumerate(fields, start=1)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, "alpaca"),
        ({"instruction": "a", "output": "c"}, "alpaca"),
        ({"messages": CHAT}, "messages"),
        ({"conversations": CHAT}, "messages"),
        ({"conversations": SHARED, "system": "s"}, "sharegpt"),
        ({"messages": []}, "messages"),
        ({"conversations": ["odd"]}, "sharegpt"),
        ({"prompt": "a", "completion": "b", "label": "c"}, "completion"),
        ({"question": "a", "answer": "b"}, "completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": SHARED[1]}, "preference"),
        ({"instruction": "a", "output": "x", "chosen": "b", "rejected": "c"}, "preference"),
        ({"messages": CHAT, "label": True}, "kto"),
        ({"prompt": "a", "completion": "b", "kto_tag": False}, "kto"),
        ({"text": "a", "url": "b"}, "text"),
    ],
)
def test_detected(fields: dict[str, object], expected: str) -> None:
    assert detect_format(_rows(fields)).format == expected


def test_evidence_counts_and_names_what_is_not_used() -> None:
    fields: list[dict[str, object]] = (
        [{"instruction": "a", "input": "b", "output": "c", "lang": "de"}] * 98 + [{"x": 1}, {"output": "c"}] + [{"y": 1}] * 50
    )
    assert detect_format(_rows(*fields)).evidence == "98 of 100 first rows have `instruction`, `input`, `output`; not used: lang, x"
    assert detect_format(_rows({"text": "a"})).evidence == "the one row has `text`"


@pytest.mark.parametrize(
    ("fields", "message", "fix"),
    [
        ({"text": "a", "category": "b"}, "fields found: text, category$", "--input text --output category --instruction"),
        ({"question_id": 1, "turns": ["a"]}, "question_id, turns; no field is known to hold the answers", "--input COLUMN --output COLUMN"),
        ({"messages": CHAT, "instruction": "a", "output": "b"}, "fit messages and alpaca", "--format messages or --format alpaca"),
        ({"prompt": "a", "label": "b"}, "no known format", "--input prompt --output label"),
        ({}, "no known format", "--input"),
    ],
)
def test_not_guessed(fields: dict[str, object], message: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        detect_format(_rows(fields))
    assert re.search(message, caught.value.message)
    assert fix in caught.value.fix
    assert caught.value.where == "a.jsonl:1"


def test_half_of_the_rows_is_not_enough() -> None:
    with pytest.raises(InputError, match="no known format"):
        detect_format(_rows({"messages": CHAT}, {"instruction": "a", "output": "b"}))
    with pytest.raises(InputError, match="no readable row"):
        detect_format([])


def test_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,category,who\nhello,greet,x\nbye,part,y\n,part,y\n", encoding="utf-8")
    result = load_examples([path], columns=ColumnMap(instruction="Name the intent", input="text", output="category", group="who"))
    assert [(e.instruction, e.input, e.response, e.group) for e in result.examples] == [
        ("Name the intent", "hello", "greet", "x"),
        ("Name the intent", "bye", "part", "y"),
    ]
    assert [(r.line, r.code) for r in result.rejects] == [(4, "empty_prompt")]
    assert result.format == "columns"
    by_column = load_examples([path], columns=ColumnMap(instruction="who", input="text", output="category", system="category"))
    assert (by_column.examples[0].instruction, by_column.examples[0].system) == ("x", "greet")


def test_mapped_values_that_are_no_text_are_written_as_json(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", [{"i": "x", "o": value} for value in (3, 2.5, True, {"ä": [1]}, "s", None)])
    result = load_examples([path], columns=ColumnMap(input="i", output="o"))
    assert [e.response for e in result.examples] == ["3", "2.5", "true", '{"ä": [1]}', "s"]
    assert [r.code for r in result.rejects] == ["missing_field"]


@pytest.mark.parametrize(
    ("columns", "message", "fix"),
    [
        (ColumnMap(input="txt", output="category"), 'no column "txt"; found: text, category', "--input text"),
        (ColumnMap(input="text", output="Category"), 'no column "Category"', "--output category"),
        (ColumnMap(group="zzz"), 'no column "zzz"', "--group with one of: text, category"),
        (ColumnMap(input="text"), "no column is named for the answer", "--output COLUMN, one of: text, category"),
        (ColumnMap(instruction="Do it", output="category"), "what changes from row to row", "--input COLUMN"),
        (ColumnMap(instruction="categry", input="text", output="category"), "nearly the name of a column", "--instruction category"),
    ],
)
def test_column_slips(columns: ColumnMap, message: str, fix: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,category\nhello,greet\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_examples([path], columns=columns)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("format_name", "columns", "message"),
    [
        ("alpacca", None, "unknown format"),
        ("columns", None, "needs to know the columns"),
        ("alpaca", ColumnMap(input="a", output="b"), "reads its own fields"),
    ],
)
def test_options_that_contradict(format_name: str, columns: ColumnMap | None, message: str, tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(ConfigError, match=message):
        load_examples([path], format=format_name, columns=columns)
    with pytest.raises(ConfigError, match="no file"):
        load_examples([])
    with pytest.raises(ConfigError, match="named twice"):
        load_examples([path, tmp_path / "." / "a.jsonl"])


def test_ids_follow_the_content_only(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"p{i}", "completion": "c"} for i in range(3)]
    one = load_examples([_write(tmp_path, "a.jsonl", [*rows, rows[0], rows[0]])])
    other = load_examples(
        [_write(tmp_path, "b.jsonl", [{"question": r["prompt"], "answer": "c", "split": "test", "who": "x"} for r in reversed(rows)])]
    )
    ids = [example.id for example in one.examples]
    assert [example.id for example in other.examples] == ids[2::-1]
    assert ids[3:] == [f"{ids[0]}-2", f"{ids[0]}-3"]
    assert len(set(ids)) == 5
    together = number_examples((*one.examples, *other.examples))
    assert len({example.id for example in together}) == 8
    assert [example.id for example in together[:5]] == ids


def test_each_part_of_the_content_changes_the_id(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "b", "input": "a", "output": "c"},
        {"instruction": "ab", "input": "", "output": "c"},
        {"instruction": "a", "input": "b", "output": "d"},
        {"instruction": "a", "input": "b", "output": "c", "system": "s"},
        {"instruction": "a", "input": "b", "output": "c", "history": [["q", "r"]]},
    ]
    result = load_examples([_write(tmp_path, "a.jsonl", rows)])
    assert len({example.id for example in result.examples}) == len(rows)
    tags = [{"prompt": "a", "completion": "b", "label": tag} for tag in (True, False)]
    assert len({example.id for example in load_examples([_write(tmp_path, "b.jsonl", tags)]).examples}) == 2


def test_id_is_a_known_answer_and_the_same_in_every_process(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", [{"prompt": "p", "completion": "c"}])
    imports = "import sys\nfrom pathlib import Path\nfrom luthier.data.load import load_examples\n"
    code = f"{imports}sys.stdout.write(load_examples([Path(sys.argv[1])]).examples[0].id)"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    elsewhere = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=env).stdout
    # sha256 of ["instruct", "", [], "", "p", "c", null, null]
    assert elsewhere == load_examples([path]).examples[0].id == "6a42db690d8294a8"


def test_splits(tmp_path: Path) -> None:
    names = ["train", "dev", "validation", "valid", "test", " Test ", "", None, "holdout", 3]
    path = _write(tmp_path, "a.jsonl", [{"prompt": "p", "completion": "c", "split": name} for name in names])
    result = load_examples([path])
    assert [e.given_split for e in result.examples] == ["train", "dev", "dev", "dev", "test", "test", None, None]
    assert [(r.line, r.code) for r in result.rejects] == [(9, "unknown_split"), (10, "unknown_split")]
    as_test = load_examples([path], given_split="test")
    assert [e.given_split for e in as_test.examples] == ["test"] * 4
    assert {r.code for r in as_test.rejects} == {"split_conflict", "unknown_split"}


def test_split_and_group_columns_go_with_any_format(tmp_path: Path) -> None:
    path = _write(
        tmp_path, "a.jsonl", [{"messages": CHAT, "part": "test", "who": 5, "n": 0}, {"messages": CHAT, "part": "train", "who": ["x"]}]
    )
    result = load_examples([path], columns=ColumnMap(split="part", group="who"))
    assert [(e.given_split, e.group) for e in result.examples] == [("test", "5")]
    assert [(r.line, r.code) for r in result.rejects] == [(2, "bad_group")]
    assert result.format == "messages"


def test_several_files(tmp_path: Path) -> None:
    one = _write(tmp_path, "a.jsonl", [{"prompt": "p", "completion": "c"}])
    two = _write(tmp_path, "b.jsonl", [{"messages": CHAT}, {"messages": []}])
    result = load_examples([one, two])
    assert (result.format, result.num_read, len(result.examples), len(result.rejects)) == ("completion, messages", 3, 2, 1)
    assert str(two) in result.evidence
    assert [example.id.endswith("-2") for example in result.examples] == [False, True]  # the same content, from two formats
    pairs = _write(tmp_path, "c.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    with pytest.raises(InputError, match="different kinds"):
        load_examples([one, pairs])


def test_a_named_format_is_not_second_guessed(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", [{"messages": CHAT, "instruction": "a", "output": "b"}])
    assert load_examples([path], format="alpaca").examples[0].response == "b"
    with pytest.raises(InputError, match="none of the 1 rows can be used"):
        load_examples([path], format="sharegpt")


def test_no_readable_row_tells_the_first_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("x\ny\n", encoding="utf-8")
    with pytest.raises(InputError, match="none of the 2 rows can be read; the first: not valid JSON") as caught:
        load_examples([path])
    assert caught.value.where == f"{path}:1"
