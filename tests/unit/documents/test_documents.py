"""A folder of documents, whatever lies in it, and the passages that come of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.fixtures.hostile import HOSTILE

from luthier.core.errors import ConfigError, InputError
from luthier.data import documents
from luthier.data.documents import MAX_PASSAGE_CHARS, cut, read_documents

RULES = """# Cards

A new card takes 5 working days.

It comes by post.
## Lost cards
Block it in the app.
A new one costs 4.50 EUR.

# Empty section
# Fees
None.
"""


def _texts(text: str) -> list[tuple[int, str]]:
    return [(passage.line, passage.text) for passage in cut("a.md", text)]


def test_passages_stand_under_their_headings() -> None:
    assert _texts(RULES) == [
        (3, "Cards\nA new card takes 5 working days.\n\nIt comes by post."),
        (7, "Lost cards\nBlock it in the app.\nA new one costs 4.50 EUR."),
        (12, "Fees\nNone."),
    ]


def test_long_text_is_cut_between_sentences() -> None:
    sentence = "This is a sentence of forty-two characters. "
    found = _texts("# T\n\n" + sentence * 100)
    assert len(found) > 4 and all(text.startswith("T\nThis") and text.endswith("characters.") for _, text in found)
    assert "".join(text.removeprefix("T\n") + " " for _, text in found) == sentence * 100
    assert [len(text) for _, text in _texts("x" * 2000)] == [800, 800, 400]


words = st.text(st.sampled_from(list("ab. \n\t#é語\u2028")), max_size=400)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.one_of(words, words.map(lambda text: text * 9), st.sampled_from(HOSTILE)))
@example("\n\n\n# a\n\n\n")
@example("# " + "a" * 400)
def test_nothing_is_lost_and_nothing_is_too_long(text: str) -> None:
    found = list(cut("a.md", text))
    assert all(0 < len(passage.text) <= MAX_PASSAGE_CHARS for passage in found)
    kept = "".join("".join(passage.text.split()) for passage in found)
    for word in text.split():
        if "#" not in text and len(word) < 100:
            assert word in kept
    lines = text.split("\n")
    for passage in found:
        first = passage.text.split("\n")[-1 if "#" in text else 0].split()
        assert not first or "#" in text or first[0] in lines[passage.line - 1]


def test_a_hostile_line_takes_no_time() -> None:
    started = time.perf_counter()
    list(cut("a.md", "# " + "#" * 2_000_000 + "x"))
    list(cut("a.md", "\n \t" * 500_000))
    list(cut("a.md", "a" * 2_000_000))
    assert time.perf_counter() - started < 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    (root / "sub").mkdir(parents=True)
    (root / "cards.md").write_text(RULES, encoding="utf-8")
    (root / "sub" / "fees.txt").write_bytes(b"\xef\xbb\xbfThe fee is 3 EUR.\r\n\r\nIt comes by post.\r\n")
    return root


def test_what_is_read_and_what_is_counted(folder: Path, tmp_path: Path) -> None:
    (folder / ".hidden.md").write_text("secret", encoding="utf-8")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD.txt").write_text("secret", encoding="utf-8")
    (tmp_path / "outside.txt").write_text("secret", encoding="utf-8")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "picture.md").write_bytes(b"\x89PNG\r\n\0")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "data.csv").write_text("a,b", encoding="utf-8")
    (folder / "nothing.txt").write_text(" \n", encoding="utf-8")
    os.mkfifo(folder / "pipe.txt")
    found = read_documents(folder)
    assert found.num_files == 2 and [passage.id for passage in found.passages][-1] == "sub/fees.txt:1"
    assert "secret" not in str(found.passages) and "\ufeff" not in str(found.passages) and "\r" not in str(found.passages)
    assert found.left_out == {
        "empty": 1,
        "hidden": 2,
        "no regular file": 1,
        "not UTF-8 text": 2,
        "other ending": 1,
        "symbolic link": 2,
    }


def test_the_digest_is_of_names_and_contents(folder: Path) -> None:
    first = read_documents(folder).digest
    (folder / "notes.csv").write_text("no document", encoding="utf-8")
    assert read_documents(folder).digest == first
    for change in (
        lambda: (folder / "new.md").write_text("more", encoding="utf-8"),
        lambda: (folder / "new.md").rename(folder / "other.md"),
        lambda: (folder / "other.md").write_text("other", encoding="utf-8"),
    ):
        change()
        found = read_documents(folder).digest
        assert found != first
        first = found


def test_the_same_text_counts_once(folder: Path) -> None:
    (folder / "copy.md").write_text(RULES, encoding="utf-8")
    assert len({passage.text for passage in read_documents(folder).passages}) == len(read_documents(folder).passages) == 4
    assert read_documents(folder).passages[0].path == "cards.md"


def test_limits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 60)
    assert read_documents(folder).left_out == {"over 0 MiB": 1}
    monkeypatch.setattr(documents, "MAX_TOTAL_BYTES", 10)
    with pytest.raises(InputError, match="more than"):
        read_documents(folder)
    monkeypatch.setattr(documents, "MAX_ENTRIES", 2)
    with pytest.raises(InputError, match="files and folders"):
        read_documents(folder)


def test_no_folder_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(InputError, match="found nothing"):
        read_documents(tmp_path)
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match="1 other ending"):
        read_documents(tmp_path)
