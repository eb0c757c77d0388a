"""Untrusted text on stdout while it is still being written: one answer, or several side by side.

Only whole lines and characters are added, nothing is ever taken back: the cursor never moves but forward, whatever the text holds.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence

from luthier.core.console import write_rendered
from luthier.core.untrusted import reveal, reveal_settled

MIN_COLUMN_CELLS = 24  # narrower columns are no help
SEPARATOR = " │ "
_WORD = re.compile(r"\s+|\S+")


class GrowingText:
    """One answer, shown piece by piece. A character whose look depends on the next one is held back until that is there."""

    def __init__(self, head: str = "") -> None:
        self._text = ""
        self._num_shown = 0
        write_rendered(sys.stdout, reveal(head))

    def add(self, piece: str) -> None:
        """Show what is settled of the text so far."""
        self._text += piece
        self._show(reveal_settled(self._text))

    def finish(self) -> None:
        """Show the rest, and end the line."""
        self._show(f"{reveal(self._text)}\n")

    def _show(self, shown: str) -> None:
        if len(shown) > self._num_shown:
            write_rendered(sys.stdout, shown[self._num_shown :])
            self._num_shown = len(shown)


class SideBySide:
    """Several answers in columns. A line is written once it is complete in every column."""

    def __init__(self, heads: Sequence[str], cells: int) -> None:
        self._cells = cells
        self._texts = [""] * len(heads)
        self._is_done = [False] * len(heads)
        self._num_shown = 0
        write_rendered(sys.stdout, _line([wrap_cells(reveal(head).replace("\n", " "), cells)[0] for head in heads], cells))
        write_rendered(sys.stdout, "─┼─".join("─" * cells for _ in heads) + "\n")

    def add(self, column: int, piece: str) -> None:
        """Put a piece behind the text of a column."""
        self._texts[column] += piece
        self._show()

    def finish(self, column: int) -> None:
        """Say that nothing more comes in this column."""
        self._is_done[column] = True
        self._show()

    def _show(self) -> None:
        columns = [
            wrap_cells(reveal(text), self._cells) if done else wrap_cells(reveal_settled(text), self._cells)[:-1]
            for text, done in zip(self._texts, self._is_done, strict=True)
        ]
        growing = [len(lines) for lines, done in zip(columns, self._is_done, strict=True) if not done]
        num_ready = min(growing) if growing else max(map(len, columns))
        for index in range(self._num_shown, num_ready):
            write_rendered(sys.stdout, _line([lines[index] if index < len(lines) else "" for lines in columns], self._cells))
        self._num_shown = max(self._num_shown, num_ready)


def column_cells(num_columns: int) -> int | None:
    """Width of each of so many columns on this terminal; None where there is no terminal, or no room for them."""
    if not sys.stdout.isatty():
        return None
    cells = (shutil.get_terminal_size().columns - 1 - len(SEPARATOR) * (num_columns - 1)) // num_columns
    return cells if cells >= MIN_COLUMN_CELLS else None


def wrap_cells(text: str, cells: int) -> list[str]:
    """Lines of at most `cells` terminal cells, at least one line. All but the last stay as they are when text is appended.

    Words that are too long for a line are cut. Tabs count as one space: a column has no tab stops.
    """
    from rich.cells import cell_len

    lines: list[str] = []
    for paragraph in text.replace("\t", " ").split("\n"):
        line, width = "", 0
        for word in _WORD.findall(paragraph):
            num = cell_len(word)
            if word.isspace() and width + num > cells:
                width = cells  # the spaces a line ends with are not carried over
                continue
            if width and width + num > cells:
                lines.append(line)
                line, width = "", 0
            for char in word if width + num > cells else [word]:
                step = cell_len(char)
                if width and width + step > cells:
                    lines.append(line)
                    line, width = "", 0
                line, width = line + char, width + step
        lines.append(line)
    return lines


def _line(parts: Sequence[str], cells: int) -> str:
    from rich.cells import cell_len

    padded = [part + " " * (cells - cell_len(part)) for part in parts[:-1]]
    return SEPARATOR.join([*padded, parts[-1]]).rstrip() + "\n"
