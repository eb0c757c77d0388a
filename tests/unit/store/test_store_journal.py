from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.errors import RunError
from luthier.core.types import Generation
from luthier.store import journal
from luthier.store.cache import GenerationCache
from luthier.store.journal import append, read, torn_path, torn_tail

RECORDS = st.lists(st.dictionaries(st.text(max_size=6), st.none() | st.integers() | st.text(max_size=20), max_size=3), max_size=6)


def generation(item: str, text: str = "yes") -> Generation:
    return Generation(item_id=item, text=text, finish="stop", num_prompt_tokens=9, num_cached_tokens=5, num_new_tokens=2, latency_s=0.25)


def test_nothing_there_is_an_empty_journal(tmp_path: Path) -> None:
    assert list(read(tmp_path / "none")) == [] and torn_tail(tmp_path / "none") == b""


@settings(derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(RECORDS, st.data())
def test_cut_anywhere_reads_a_prefix_and_goes_on(tmp_path: Path, records: list[dict[str, object]], data: st.DataObject) -> None:
    """Cutting the file at any byte loses at most the record that was cut, and appending works as if it had never been begun."""
    path = tmp_path / "j.jsonl"
    path.unlink(missing_ok=True)
    torn_path(path).unlink(missing_ok=True)
    for record in records:
        assert append(path, record) == 0
    raw = path.read_bytes() if records else b""
    cut = data.draw(st.integers(0, len(raw)))
    path.write_bytes(raw[:cut])
    whole = raw[:cut].count(b"\n")
    torn = raw[:cut].rpartition(b"\n")[2]
    assert list(read(path)) == records[:whole]
    assert torn_tail(path) == torn
    assert append(path, {"after": "crash"}) == len(torn)
    assert list(read(path)) == [*records[:whole], {"after": "crash"}]
    assert torn_tail(path) == b""
    assert torn_path(path).exists() == bool(torn)
    if torn:
        assert torn_path(path).read_bytes() == torn + b"\n"


def test_a_torn_line_longer_than_one_block_is_found(tmp_path: Path) -> None:
    path = tmp_path / "j"
    append(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"long": "' + b"x" * (3 * journal.LOOK_BACK_BYTES))
    assert append(path, {"b": 2}) == 10 + 3 * journal.LOOK_BACK_BYTES
    assert list(read(path)) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("bad", [b"{]\n", b"[1]\n", b"\n", b"\xff\n", b'"x"\n', b"[" * 100_000 + b"\n"])
def test_a_whole_line_that_is_not_a_record_is_damage(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "j"
    append(path, {"a": 1})
    with path.open("ab") as file:
        file.write(bad)
    append(path, {"b": 2})
    with pytest.raises(RunError) as caught:
        list(read(path))
    assert caught.value.where == f"{path}:2" and "2d" in caught.value.fix


def test_hostile_text_stays_on_its_line(tmp_path: Path) -> None:
    path, record = tmp_path / "j", {"text": 'a\nb\r\u2028\x00\ud800 {"x": 1}\n'}
    append(path, record, fsync=True)
    assert path.read_bytes().count(b"\n") == 1 and list(read(path)) == [record]


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        append(tmp_path / "j", {"loss": float("nan")})
    assert not (tmp_path / "j").exists()


def test_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    append(path, {"a": 1})
    before, real = path.read_bytes(), os.write
    calls: list[int] = []

    def short_then_full(handle: int, data: bytes) -> int:
        if calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        calls.append(1)
        return real(handle, bytes(data)[:5])

    monkeypatch.setattr(journal.os, "write", short_then_full)
    with pytest.raises(RunError, match="No space left"):
        append(path, {"b": 2})
    assert path.read_bytes() == before
    monkeypatch.undo()
    append(path, {"b": 2})
    assert list(read(path)) == [{"a": 1}, {"b": 2}]


def test_cache_remembers_across_processes(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "generations.jsonl"
    cache = GenerationCache(path)
    assert cache.get("k") is None and len(cache) == 0
    cache.put("k", generation("1"))
    cache.put("k", generation("1", text="another"))  # the first one stays
    cache.put("l", generation("2", text="\ud800\n⟨"))
    again = GenerationCache(path)
    assert again.get("k") == generation("1") == cache.get("k")
    assert again.get("l") == generation("2", text="\ud800\n⟨")
    assert len(again) == 2 and len(list(read(path))) == 2


def test_cache_takes_a_torn_last_line_as_never_generated(tmp_path: Path) -> None:
    path = tmp_path / "g"
    GenerationCache(path).put("k", generation("1"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    cache = GenerationCache(path)
    assert len(cache) == 1
    cache.put("m", generation("3"))
    assert len(GenerationCache(path)) == 2


def test_cache_refuses_foreign_records(tmp_path: Path) -> None:
    append(tmp_path / "g", {"key": "k", "something": "else"})
    with pytest.raises(RunError, match="not a generation"):
        GenerationCache(tmp_path / "g")
