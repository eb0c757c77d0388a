"""Raw text: the field `text` is all there is, and all of it is learnt."""

from __future__ import annotations

from luthier.core.types import Example, SourceRow
from luthier.data.formats.fields import example, refuse_empty_response, text_of


def from_text(row: SourceRow) -> Example:
    """The text is the response to nothing. Raises RowError."""
    text = text_of(row.fields, "text")
    refuse_empty_response(text, "text")
    return example(row.path, row.line, kind="text", response=text)
