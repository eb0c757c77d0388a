"""CSV and TSV against the standard library's writer and reader, and what they do not do: recover, bound, tell line numbers."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from luthier.core.errors import InputError
from luthier.core.types import Reject, SourceRow
from luthier.data.limits import Limits
from luthier.data.lines import Tally
from luthier.data.read import iter_records

_CELL = st.text('ab",;|\t \n', max_size=6)


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def _read(path: Path, limits: Limits | None = None) -> list[object]:
    return [(r.line, r.code) if isinstance(r, Reject) else list(r.fields.values()) for r in iter_records(path, limits=limits or Limits())]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(_CELL, _CELL, _CELL), min_size=2, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_the_csv_module_writes_is_read_back(
    rows: list[tuple[str, str, str]], delimiter: str, end: str, quoting: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(("first", "second", "third"))
    writer.writerows(rows)
    # Cells may hold the other delimiters; the header says which one counts unless every row fits another one as well.
    assume(all(len(line) == 3 for line in csv.reader(io.StringIO(out.getvalue(), newline=""), delimiter=delimiter)))
    path = _write(tmp_path_factory.getbasetemp(), "table.csv", out.getvalue())
    assert _read(path) == [list(row) for row in rows]


def test_line_numbers_are_first_physical_lines(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", 'a,b\n"1\n2",x\n\n"3",y\n')
    tally = Tally()
    rows = list(iter_records(path, tally=tally))
    assert [row.line for row in rows] == [2, 5]
    assert [dict(row.fields) for row in rows if isinstance(row, SourceRow)] == [{"a": "1\n2", "b": "x"}, {"a": "3", "b": "y"}]
    assert tally.num_blank == 1


def test_a_stray_quote_costs_one_row(tmp_path: Path) -> None:
    lines = [f"text {i},label" for i in range(1000)]
    lines[100] = '"text 100,label'
    lines[500] = '"text, 500",label'
    found = _read(_write(tmp_path, "a.csv", "\n".join(("a,b", *lines)) + "\n"))
    assert found[100] == (102, "text_after_quote")
    assert found[500] == ["text, 500", "label"]
    assert len(found) == 1000
    assert sum(isinstance(row, tuple) for row in found) == 1


def test_an_open_quote_reaches_no_further_than_the_limit(tmp_path: Path) -> None:
    lines = ["text,label"] * 100
    lines[3] = '"text,label'
    found = _read(_write(tmp_path, "a.csv", "\n".join(("a,b", *lines)) + "\n"), Limits(max_record_bytes=300))
    assert [row for row in found if isinstance(row, tuple)] == [(5, "quote_not_closed")]
    assert len(found) == 100


@pytest.mark.parametrize(
    ("header", "message"),
    [("a,b,a", 'two columns are named "a"'), ('"a,b', "header cannot be read"), (",".join(map(str, range(513))), "513 columns")],
)
def test_headers_that_cannot_be_used(header: str, message: str, tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", header + "\n1,2\n")
    with pytest.raises(InputError, match=message) as caught:
        _read(path)
    assert caught.value.where == f"{path}:1"


def test_header_details(tmp_path: Path) -> None:
    """A byte order mark and spaces are no part of a name; the unnamed column of row numbers gets one."""
    path = _write(tmp_path, "a.csv", "\ufeff, text ,label\n0,x,y\n")
    assert [dict(row.fields) for row in iter_records(path) if isinstance(row, SourceRow)] == [{"column_1": "0", "text": "x", "label": "y"}]


def test_one_column_and_header_only(tmp_path: Path) -> None:
    assert _read(_write(tmp_path, "a.csv", "text\nhello\nyou\n")) == [["hello"], ["you"]]
    with pytest.raises(InputError, match="no rows"):
        _read(_write(tmp_path, "b.csv", "text,label\n"))


def test_bad_bytes_cost_one_record(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("a,b\n1,\u00e9\n".encode() + b'"x\n\xff",2\n3,\x00\n4,5\n')
    assert _read(path) == [["1", "\u00e9"], (3, "not_utf8"), (5, "nul"), ["4", "5"]]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import datetime

    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table(
        {
            "prompt": ["one", None, "three"],
            "score": [1.5, float("nan"), 2.0],
            "day": [datetime.date(2024, 1, 2)] * 3,
            "messages": [[{"role": "user", "content": "hi"}]] * 3,
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    rows = [row for row in iter_records(path) if isinstance(row, SourceRow)]
    assert [row.line for row in rows] == [1, 2, 3]
    assert rows[0].fields == {"prompt": "one", "score": 1.5, "day": "2024-01-02", "messages": [{"role": "user", "content": "hi"}]}
    assert rows[1].fields["prompt"] is None
    assert rows[1].fields["score"] is None
    with pytest.raises(InputError, match="4 columns; at most 3"):
        list(iter_records(path, limits=Limits(max_keys=3)))


@pytest.mark.skipif(sys.platform == "win32", reason="no address space limit on Windows")
def test_parquet_that_needs_too_much_memory(tmp_path: Path) -> None:
    """A small file of one long run: 200 MiB of text in 40 rows."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.DictionaryArray.from_arrays([0] * 40, ["x" * (5 * 2**20)])}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"needs more than 0\.4 GiB"):
        list(iter_records(path, limits=Limits(parquet_memory_bytes=400 * 2**20)))
    assert [row.code for row in iter_records(path) if isinstance(row, Reject)] == ["record_too_long"] * 40


def test_parquet_reader_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    script = tmp_path / "hang.py"
    script.write_text("import sys\nsys.stdin = open('/dev/zero', 'rb')\nwhile sys.stdin.read(1):\n    pass\n", encoding="utf-8")
    monkeypatch.setattr("luthier.data.parquet_file._CHILD", script)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"nothing could be read within 0\.5 s"):
        list(iter_records(path, limits=Limits(parquet_idle_s=0.5)))


def test_parquet_reader_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    script = tmp_path / "die.py"
    script.write_text("import os, signal\nprint('{\"a\": 1}', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n", encoding="utf-8")
    monkeypatch.setattr("luthier.data.parquet_file._CHILD", script)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="ended with code -11"):
        list(iter_records(path))


def test_paragraphs(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.txt", "\n# One\nline two\n\n\n  \nTwo\r\n\r\nThree")
    tally = Tally()
    rows = list(iter_records(path, tally=tally))
    assert [(row.line, row.fields["text"]) for row in rows if isinstance(row, SourceRow)] == [
        (2, "# One\nline two"),
        (7, "Two"),
        (9, "Three"),
    ]
    assert tally.num_blank == 5
    assert [(r.line, r.code) for r in iter_records(path, limits=Limits(max_record_bytes=10)) if isinstance(r, Reject)] == [
        (2, "record_too_long")
    ]
