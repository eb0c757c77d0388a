"""Text that appears while it is written: however it is cut into pieces, the terminal gets the safe text, and never takes a step back."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from tests.fixtures.hostile import HOSTILE, TERMINAL

from luthier.core import growing
from luthier.core.growing import GrowingText, SideBySide, wrap_cells
from luthier.core.untrusted import render_untrusted, reveal, reveal_settled

any_text = st.text(st.characters(exclude_categories=()), max_size=30)
joining = st.sampled_from(["\u200d", "\ufe0f", "⟨", "⟨U", "⟨U+", "👩", "क", "\u200c", "1", "\u20e3", "a", "\n", "\t", " ", "語", "\x1b[2J"])
pieces = st.lists(st.one_of(st.sampled_from(HOSTILE), any_text, joining), max_size=8)
examples = settings(derandomize=True, max_examples=300, deadline=None)


def _written(parts: list[str]) -> str:
    with redirect_stdout(io.StringIO()) as out:
        text = GrowingText("[tuned] ")
        for part in parts:
            text.add(part)
        text.finish()
    return out.getvalue()


@examples
@given(pieces)
@example(["👩", "\u200d", "👩"])
@example(["⟨", "U", "+202E⟩"])
@example(["1", "\ufe0f", "\u20e3"])
def test_pieces_give_what_the_whole_gives(parts: list[str]) -> None:
    assert _written(parts) == "[tuned] " + render_untrusted("".join(parts), "terminal") + "\n"


@pytest.mark.parametrize("text", TERMINAL)
def test_nothing_that_moves_a_cursor_gets_through(text: str) -> None:
    assert not [char for char in _written(list(text)) if (char < " " and char not in "\n\t") or "\x7f" <= char <= "\x9f"]


@examples
@given(any_text, any_text)
@example("👩\u200d", "👩")
@example("⟨", "U+0041⟩")
def test_what_is_settled_stays(now: str, later: str) -> None:
    assert reveal(now + later).startswith(reveal_settled(now))


def test_almost_everything_is_settled_at_once() -> None:
    assert reveal_settled("where is my card") == "where is my card"  # or streaming would not be one


@examples
@given(pieces.map("".join), st.integers(2, 12), st.integers(0, 40))
def test_lines_of_a_column_stay_as_text_is_added(text: str, cells: int, cut: int) -> None:
    shown = reveal(text)
    whole, part = wrap_cells(shown, cells), wrap_cells(shown[:cut], cells)
    assert whole[: len(part) - 1] == part[:-1]
    assert all(cell_len(line) <= cells for line in whole)
    assert "".join("".join(whole).split()) == "".join(shown.split())  # nothing is lost but spaces


def test_columns_are_written_line_by_line() -> None:
    with redirect_stdout(io.StringIO()) as out:
        table = SideBySide(["tuned", "base"], 8)
        table.add(0, "card arrival ")
        assert out.getvalue().count("\n") == 2  # names and rule: the base has not written its first line yet
        table.add(1, "I\x1b[2J am")
        table.add(0, "soon")
        table.finish(0)
        table.finish(1)
    assert out.getvalue().splitlines() == [
        "tuned    │ base",
        "─────────┼─────────",
        "card     │ I⟨U+001B",
        "arrival  │ ⟩[2J am",
        "soon     │",
    ]


def test_columns_need_a_terminal_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert growing.column_cells(2) is None  # captured: no terminal
    monkeypatch.setattr("sys.stdout", type("Tty", (io.StringIO,), {"isatty": lambda self: True})())
    monkeypatch.setenv("COLUMNS", "80")
    assert growing.column_cells(2) == 38
    monkeypatch.setenv("COLUMNS", "40")
    assert growing.column_cells(2) is None
