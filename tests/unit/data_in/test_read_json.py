"""JSON rows: what the strict decoder refuses and lets pass, and where the rows of a .json file are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import InputError
from luthier.core.types import Reject, SourceRow
from luthier.data.json_row import object_decoder
from luthier.data.limits import DEFAULT_LIMITS, Limits
from luthier.data.lines import Tally
from luthier.data.read import iter_records
from luthier.data.reject import RowError

DECODE = object_decoder(DEFAULT_LIMITS)


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def _lines(path: Path) -> list[tuple[int, object]]:
    return [(r.line, r.code if isinstance(r, Reject) else r.fields) for r in iter_records(path)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"a": 1', "not_json"),
        ("{'a': 1}", "not_json"),
        ('{"a": "tab\there"}', "not_json"),
        ('{"a": 1} {"a": 2}', "not_json"),
        ("", "not_json"),
        ("null", "not_an_object"),
        ('{"a": NaN}', "not_finite"),
        ('{"a": [{"b": -Infinity}]}', "not_finite"),
        ('{"a": 1e400}', "not_finite"),
        ('{"a": ' + "1" * 4301 + "}", "number_too_long"),
        ('{"a": 0.' + "1" * 4301 + "}", "number_too_long"),
        ('{"a": {"b": 1, "b": 1}}', "duplicate_key"),
        ('{"a": "\\ud800"}', "lone_surrogate"),
        ('{"\\udfff": 1}', "lone_surrogate"),
        ('{"a": "\\\\\\ud800"}', "lone_surrogate"),
        ('{"a": "\\u0000"}', "nul"),
        ('{"a": "\\\\\\u0000"}', "nul"),
        ('{"a": "\x00"}', "nul"),
        ('{"a":' * 64 + "[1]" + "}" * 64, "too_deep"),
    ],
)
def test_refused(text: str, code: str) -> None:
    with pytest.raises(RowError) as caught:
        DECODE(text)
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ' + "1" * 4300 + "}",
        '{"a": "\\ud83d\\ude00"}',
        '{"a": "\\\\u0000 and \\\\ud800"}',
        '{"a":' * 63 + "[1]" + "}" * 63,
        '{"a": "' + "[{" * 1000 + '"}',  # brackets in a text are no depth
        json.dumps({"a": ["[" * 40, {"b": '"[[[' * 40}]}),
        "{}",
        '{"a": 1e-400}',
    ],
)
def test_let_pass(text: str) -> None:
    assert DECODE(text) == json.loads(text)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"\\[{]},\n ", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
_ROWS = st.lists(st.dictionaries(st.text('xyz"\\[{]},\n ', max_size=3), _VALUES, max_size=3), min_size=1, max_size=5)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(rows=_ROWS, indent=st.sampled_from([None, 0, 1, 2]), escape=st.booleans(), newline=st.sampled_from(["\n", "\r\n"]))
def test_a_list_reads_as_json_loads_does(
    rows: list[dict[str, object]], indent: int | None, escape: bool, newline: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also when brackets, commas, quotes and line ends stand inside texts and keys."""
    text = json.dumps(rows, indent=indent, ensure_ascii=escape).replace("\n", newline)
    path = _write(tmp_path_factory.getbasetemp(), "list.json", text)
    assert [dict(r.fields) for r in iter_records(path) if isinstance(r, SourceRow)] == rows
    wrapped = _write(
        tmp_path_factory.getbasetemp(),
        "object.json",
        json.dumps({"n": [1], "rows": rows, "z": {"m": []}}, indent=indent, ensure_ascii=escape),
    )
    assert [dict(r.fields) for r in iter_records(wrapped) if isinstance(r, SourceRow)] == rows


@settings(derandomize=True, max_examples=100, deadline=None)
@given(rows=_ROWS, data=st.data())
def test_a_list_may_be_laid_out_anyhow(
    rows: list[dict[str, object]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Several items on a line, different indents, commas at either end."""
    between = st.sampled_from([", ", ",\n", ",\n  ", "\n  , ", " ,\n\n    "])
    items = [json.dumps(row) for row in rows]
    text = items[0] + "".join(data.draw(between) + item for item in items[1:])
    before, after = data.draw(st.sampled_from(["", "\n", "\n  "])), data.draw(st.sampled_from(["", "\n"]))
    path = _write(tmp_path_factory.getbasetemp(), "laid_out.json", f"[{before}{text}{after}]")
    assert [dict(r.fields) for r in iter_records(path) if isinstance(r, SourceRow)] == rows


def test_line_numbers_of_list_items(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.json", '[\n  {"a": 1},\n  {\n    "a": 2\n  },\n\n  {"a": 3}\n]')
    assert _lines(path) == [(2, {"a": 1}), (3, {"a": 2}), (7, {"a": 3})]
    path = _write(tmp_path, "b.json", '{"v": 1,\n"rows": [{"a": 1}, {"a": 2},\n{"a": 3}]}')
    assert _lines(path) == [(2, {"a": 1}), (2, {"a": 2}), (3, {"a": 3})]


def test_one_broken_item_costs_one_item(tmp_path: Path) -> None:
    rows = json.dumps([{"a": f"text {i}"} for i in range(50)], indent=2).replace('"text 7"', '"text "7"').replace('"text 9"', '"text 9')
    found = _lines(_write(tmp_path, "a.json", rows))
    assert [item for _, item in found] == [("not_json" if i in {7, 9} else {"a": f"text {i}"}) for i in range(50)]


def test_cut_list(tmp_path: Path) -> None:
    assert [item for _, item in _lines(_write(tmp_path, "a.json", '[\n  {"a": 1},\n  {"a": 2},\n  {"a"'))] == [
        {"a": 1},
        {"a": 2},
        "not_json",
    ]
    assert [item for _, item in _lines(_write(tmp_path, "b.json", '[\n  {"a": 1},\n  {"a": 2}'))] == [{"a": 1}, {"a": 2}, "truncated"]
    with pytest.raises(InputError, match="never closed"):
        _lines(_write(tmp_path, "c.json", '[{"a": 1}, {"a": 2'))


def test_json_lines_in_a_json_file_and_the_other_way_round(tmp_path: Path) -> None:
    assert _lines(_write(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\nx\n')) == [(1, {"a": 1}), (2, {"a": 2}), (3, "not_json")]
    assert _lines(_write(tmp_path, "b.jsonl", ' [ {"a": 1},\n{"a": 2}]')) == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_conversation_a_line_without_a_name_is_refused_as_a_whole(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", '[{"role": "user"}]\n[{"role": "user"}]\n')
    with pytest.raises(InputError, match="more after the list") as caught:
        _lines(path)
    assert "jq -c '{messages: .}'" in caught.value.fix
    assert caught.value.where.endswith(":2")


def test_a_single_chat_row_is_not_taken_for_a_list_of_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one object, not a list"):
        _lines(_write(tmp_path, "a.json", '{"messages": [{"role": "user", "content": "x"}]}'))


def test_a_key_cannot_smuggle_a_command_into_the_remedy(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.json", '{"x\';touch gotcha;\'": [{"a": 1}], "$(id)": [{"a": 1}]}')
    with pytest.raises(InputError) as caught:
        _lines(path)
    assert "touch" not in caught.value.fix
    assert "id" not in caught.value.fix.replace("id.json", "")


def test_limits_are_read(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", '{"a": 1, "b": 2}\n{"a": [[1]]}\n{"a": 12345}\n{"a": "xxxxxxxxxxxxxxxxxxx"}\n{"a": 1}\n')

    def codes(limits: Limits) -> list[str]:
        return [r.code for r in iter_records(path, limits=limits) if isinstance(r, Reject)]

    assert codes(DEFAULT_LIMITS) == []
    assert codes(Limits(max_keys=1)) == ["too_many_keys"]
    assert codes(Limits(max_depth=2)) == ["too_deep"]
    assert codes(Limits(max_number_digits=4)) == ["number_too_long"]
    assert codes(Limits(max_record_bytes=20)) == ["record_too_long"]
    as_json = _write(tmp_path, "b.json", '[{"a": 1}]')
    with pytest.raises(InputError, match="MiB") as caught:
        list(iter_records(as_json, limits=Limits(max_json_file_bytes=5)))
    assert caught.value.fix.startswith("jq -c '.[]'")


def test_blank_lines_and_rows_are_tallied(tmp_path: Path) -> None:
    tally = Tally()
    rows = list(iter_records(_write(tmp_path, "a.jsonl", '\n{"a": 1}\n \t\nx\n\n'), tally=tally))
    assert (tally.num_rows, tally.num_blank, len(rows)) == (2, 3, 2)


def test_items_of_other_kinds_and_a_comma_at_the_end(tmp_path: Path) -> None:
    expected = [{"a": 1}, "not_an_object", {"a": 2}, "not_an_object", "not_an_object"]
    items = ['{"a": 1}', "5", '{"a": 2}', '"x"', "[1, 2]"]
    for separator, close in ((",\n  ", "\n]"), (", ", "]"), (",\n  ", ",\n]"), (", ", ", ]")):
        opening = "[" + separator.lstrip(",").strip(" ") + ("  " if "\n" in separator else "")
        text = opening + separator.join(items) + close
        assert [item for _, item in _lines(_write(tmp_path, "a.json", text))] == expected, text
