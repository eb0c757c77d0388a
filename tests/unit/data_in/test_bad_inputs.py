"""The bad inputs of the data side: each ends in a typed error, or in rejects with file:line, reason and fix; none is lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.data_in.bad_input_files import MAKERS

from luthier.core.errors import InputError, MissingExtraError
from luthier.data.load import load_examples

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "bad_input"

# name: (how many are kept, [(line, code), ...] of the rejects)
COUNTED: dict[str, tuple[int, list[tuple[int, str]]]] = {
    "huge_integer.jsonl": (2, [(2, "number_too_long")]),
    "nan_infinity.jsonl": (2, [(2, "not_finite"), (3, "not_finite"), (4, "not_finite")]),
    "duplicate_keys.jsonl": (2, [(2, "duplicate_key")]),
    "lone_surrogate.jsonl": (2, [(2, "lone_surrogate")]),
    "nul.jsonl": (3, [(2, "nul"), (4, "nul")]),
    "bom.jsonl": (4, []),
    "one_line_not_utf8.jsonl": (3, [(3, "not_utf8")]),
    "crlf.jsonl": (4, []),
    "cr.jsonl": (4, []),
    "no_final_newline.jsonl": (4, []),
    "top_array.json": (4, []),
    "top_array.jsonl": (4, []),
    "top_array_one_bad.json": (3, [(7, "not_json")]),
    "top_object.json": (4, []),
    "truncated.jsonl": (3, [(4, "truncated")]),
    "blank_lines.jsonl": (2, []),
    "mixed_types.jsonl": (
        3,
        [
            (2, "not_text"), (3, "missing_field"), (4, "not_text"), (5, "not_text"), (6, "not_text"),
            (8, "not_an_object"), (9, "not_an_object"), (10, "not_an_object"),
        ],
    ),
    "unbalanced_quote.csv": (5, [(3, "text_after_quote")]),
    "unbalanced_quote_at_end.csv": (3, [(3, "quote_not_closed")]),
    "ragged.csv": (2, [(3, "ragged_row"), (4, "ragged_row")]),
    "semicolon.csv": (2, []),
    "tabs.tsv": (2, []),
    "chat_structure.jsonl": (
        3,
        [
            (2, "empty_response"), (3, "blank_response"), (4, "only_system"), (5, "same_role_twice"), (6, "no_answer"), (7, "unknown_role"),
            (8, "content_null"), (9, "content_not_text"), (11, "content_not_text"), (12, "tool_call"), (14, "no_turns"),
            (15, "starts_with_assistant"), (16, "system_not_first"), (17, "empty_turn"), (18, "not_a_turn"), (19, "missing_field"),
            (20, "not_a_list"), (21, "missing_field"),
        ],
    ),
    "chat_sharegpt.jsonl": (2, [(3, "tool_call"), (4, "no_answer")]),
    "deep_nest": (2, [(2, "too_deep")]),
    "deep_nest_json": (2, [(3, "too_deep")]),
    "long_line": (2, [(2, "record_too_long")]),
    "long_item": (2, [(1, "record_too_long")]),
    "thousand_keys": (2, [(2, "too_many_keys")]),
    "escaped_quotes": (2, [(2, "not_json")]),
    "long_field": (2, []),
    "long_chat": (3, []),
    "long_prompt": (3, []),
    "long_answer": (3, []),
}  # fmt: skip

# name: (what the message says, what the fix says)
REFUSED: dict[str, tuple[str, str]] = {
    "utf16.jsonl": ("looks like UTF-16 ", r"^iconv -f UTF-16 -t UTF-8 \S+utf16\.jsonl > \S+utf16\.utf8\.jsonl$"),
    "utf16_no_bom.jsonl": ("looks like UTF-16LE", "^iconv -f UTF-16LE "),
    "latin1.jsonl": ("looks like ISO-8859-1 .*4 lines", "^iconv -f ISO-8859-1 "),
    "top_array_empty.json": ("holds no rows", "rows"),
    "top_object_one_row.json": ("one object, not a list", "jq -c"),
    "top_object_two_lists.json": ('2 lists of objects \\("train", "test"\\)', "^jq -c '\\.\"train\"\\[\\]'"),
    "pretty_printed.jsonl": ("several lines", "^jq -c"),
    "missing_header.csv": ("card_arrival.* first line is data", "--input"),
    "many_columns": ("10,000 columns", "cut -d"),
    "many_stray_quotes": ("quotes open and close without sense", "CSV library"),
    "lying_footer": ("cannot be read as Parquet", "write the table again"),
    "gzip_bomb": ("gzip-compressed; nothing is unpacked", "^gunzip -k"),
    "zip_slip": ("zip archive", "^unzip "),
    "tar_slip": ("tar archive", "tar -xf"),
    "link_out": ("link out of its folder, to .*secret", "secret.jsonl$"),
}


def path_of(name: str, folder: Path) -> Path:
    if name == "lying_footer":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return MAKERS[name](folder) if name in MAKERS else FIXTURES / name


@pytest.mark.parametrize("name", COUNTED)
def test_bad_rows_are_counted_and_good_rows_kept(name: str, tmp_path: Path) -> None:
    num_kept, rejects = COUNTED[name]
    path = path_of(name, tmp_path)
    result = load_examples([path])
    assert [(reject.line, reject.code) for reject in result.rejects] == rejects
    assert len(result.examples) == num_kept
    assert result.num_read == num_kept + len(rejects)
    for reject in result.rejects:
        assert reject.path == str(path)
        assert reject.reason and reject.fix
        assert len(reject.excerpt) <= 161
        reject.excerpt.encode("utf-8")


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused_with_a_remedy(name: str, tmp_path: Path) -> None:
    message, fix = REFUSED[name]
    path = path_of(name, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        load_examples([path])
    assert re.search(message, caught.value.message)
    assert re.search(fix, caught.value.fix)
    assert caught.value.where.startswith(str(path))
    assert sorted(tmp_path.rglob("*")) == before  # nothing was unpacked


def test_every_fixture_is_used() -> None:
    names = {path.name for path in FIXTURES.iterdir() if not path.name.startswith(".")}
    assert names | set(MAKERS) == set(COUNTED) | set(REFUSED)


_MEASURE = """
import json, sys, time
from pathlib import Path
from luthier.core.errors import LuthierError
from luthier.data.load import load_examples

def peak_mib():  # of this process since it started its program; ru_maxrss begins with the peak of the parent
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

folder = Path(sys.argv[1])
seconds = {}
for path in sorted(folder.iterdir()):
    start = time.perf_counter()
    try:
        load_examples([path])
    except LuthierError:
        pass
    seconds[path.name] = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak memory from /proc")
def test_time_and_memory_of_the_worst(tmp_path: Path) -> None:
    """At most 10 s and 512 MiB each; the peak of one process that reads them all bounds the peak of each."""
    for name in ("deep_nest", "long_line", "long_item", "escaped_quotes", "many_stray_quotes", "many_columns", "gzip_bomb", "long_answer"):
        MAKERS[name](tmp_path)
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120)
    measured = json.loads(done.stdout)
    assert max(measured["seconds"].values()) <= 10, measured
    assert measured["peak_mib"] <= 512, measured
    assert len(measured["seconds"]) == 8


def test_a_line_over_the_limit_is_not_held(tmp_path: Path) -> None:
    import tracemalloc

    path = MAKERS["long_line"](tmp_path)
    tracemalloc.start()
    try:
        load_examples([path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * 2**20  # a record of 4 MiB, chunks, and copies of them; not 64 MiB


def test_parquet_without_pyarrow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and more PAR1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install pyarrow"):
        load_examples([path])
