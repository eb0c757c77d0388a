"""One prompt field and one answer field, under any of the usual pairs of names."""

from __future__ import annotations

from luthier.core.types import Example, SourceRow
from luthier.data.formats.fields import Fields, example, refuse_empty_prompt, refuse_empty_response, text_of
from luthier.data.reject import RowError

PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("input", "output"), ("query", "response"))


def pairs_in(fields: Fields) -> list[tuple[str, str]]:
    """The pairs of names of which both are there."""
    return [pair for pair in PAIRS if pair[0] in fields and pair[1] in fields]


def from_completion(row: SourceRow) -> Example:
    """The prompt is the input. Raises RowError, also where a row has two pairs of names."""
    pairs = pairs_in(row.fields)
    if len(pairs) != 1:
        names = " and ".join(f"`{a}`/`{b}`" for a, b in pairs) or "none"
        raise RowError(
            "missing_field" if not pairs else "two_pairs",
            f"expected one pair of fields out of {', '.join(f'`{a}`/`{b}`' for a, b in PAIRS)}; found {names}",
            "give the row a prompt and a completion; or name the columns with --input and --output",
        )
    prompt_name, response_name = pairs[0]
    prompt, response = text_of(row.fields, prompt_name), text_of(row.fields, response_name)
    refuse_empty_prompt(prompt)
    refuse_empty_response(response, response_name)
    return example(
        row.path, row.line, kind="instruct", input=prompt, response=response, system=text_of(row.fields, "system", required=False)
    )
