"""Whatever the bytes: rows, rejects or one typed error; nothing else, and the same again the second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import LuthierError
from luthier.data.limits import Limits
from luthier.data.load import load_examples
from luthier.data.mapping import ColumnMap

LIMITS = Limits(max_record_bytes=400, max_depth=6, max_keys=8, max_number_digits=20)
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")

_PIECES = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"\n",
        b"\r",
        b"\r\n",
        b" ",
        b"\t",
        b";",
        b"|",
        b"\x00",
        b"\xff",
        b"\xc3\xa9",
        b"\xef\xbb\xbf",
    ),
    *(
        f'"{name}"'.encode()
        for name in [
            "prompt",
            "completion",
            "messages",
            "conversations",
            "role",
            "content",
            "from",
            "value",
            "user",
            "assistant",
            "gpt",
            "human",
        ]
    ),
    *(f'"{name}"'.encode() for name in ["label", "chosen", "rejected", "split", "instruction", "output", "text"]),
    *(b"null", b"true", b"1e999", b"NaN", b"-1", b"9" * 30, b'"\\ud800"', b'"\\u0000"', b"a,b\n", b'"a ""b"""', b"[[[[[[[[[["),
    *(b'{"prompt": "a", "completion": "b"}', b'{"text": "a"}'),
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
]
_BYTES = st.lists(st.sampled_from(_PIECES) | st.binary(max_size=3), max_size=40).map(b"".join)

_NAMES = st.sampled_from(
    [
        "messages",
        "conversations",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "label",
        "kto_tag",
        "instruction",
        "input",
        "output",
        "text",
        "system",
        "history",
        "split",
        "question",
        "answer",
        "tools",
        "role",
        "content",
        "from",
        "value",
        "type",
        "x",
    ]
)
_TEXTS = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "text", "train", "true", "", " ", "a", "\ud800", "\x00"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)
_RECORDS = st.lists(st.dictionaries(_NAMES, _VALUES, min_size=1, max_size=5) | _VALUES, min_size=1, max_size=4)


def _outcome(path: Path, columns: ColumnMap | None, format_name: str) -> object:
    try:
        result = load_examples([path], limits=LIMITS, columns=columns, format=format_name)
    except LuthierError as error:
        assert error.message
        return str(error)
    assert len(result.examples) + len(result.rejects) == result.num_read
    assert all(reject.code and reject.reason and reject.fix and reject.line >= 1 for reject in result.rejects)
    assert len({example.id for example in result.examples}) == len(result.examples)
    for example in result.examples:
        for text in (example.instruction, example.input, example.response, example.system, *(turn.content for turn in example.history)):
            text.encode("utf-8")
            assert "\x00" not in text
    assert all(example.response.strip() for example in result.examples)
    json.dumps([reject.excerpt + reject.reason for reject in result.rejects], ensure_ascii=False).encode("utf-8")
    return result


def _check(data: bytes, suffix: str, columns: ColumnMap | None, format_name: str, folder: Path) -> None:
    path = folder / f"fuzz{suffix}"
    path.write_bytes(data)
    assert _outcome(path, columns, format_name) == _outcome(path, columns, format_name)


_COLUMNS = st.sampled_from([None, None, ColumnMap(input="prompt", output="completion"), ColumnMap(group="label"), ColumnMap(split="x")])


def _any_bytes(num_examples: int):
    @settings(derandomize=True, max_examples=num_examples, deadline=None)
    @given(data=_BYTES, suffix=st.sampled_from(SUFFIXES), columns=_COLUMNS)
    def run(folder: Path, data: bytes, suffix: str, columns: ColumnMap | None) -> None:
        _check(data, suffix, columns, "auto", folder)

    return run


def _any_records(num_examples: int):
    formats = st.sampled_from(["auto", "auto", "messages", "sharegpt", "alpaca", "completion", "preference", "kto", "text"])

    @settings(derandomize=True, max_examples=num_examples, deadline=None)
    @given(records=_RECORDS, as_list=st.booleans(), indent=st.sampled_from([None, 0, 2]), format_name=formats)
    def run(folder: Path, records: list[object], as_list: bool, indent: int | None, format_name: str) -> None:
        if as_list:
            _check(json.dumps(records, indent=indent).encode(), ".json", None, format_name, folder)
        else:
            _check("\n".join(json.dumps(record) for record in records).encode(), ".jsonl", None, format_name, folder)

    return run


def test_any_bytes(tmp_path: Path) -> None:
    _any_bytes(400)(tmp_path)


def test_any_records(tmp_path: Path) -> None:
    _any_records(400)(tmp_path)


@pytest.mark.slow
def test_any_bytes_long(tmp_path: Path) -> None:
    _any_bytes(5_000)(tmp_path)


@pytest.mark.slow
def test_any_records_long(tmp_path: Path) -> None:
    _any_records(5_000)(tmp_path)
