from __future__ import annotations

import itertools
from typing import Any

import pytest
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.errors import InputError
from luthier.core.types import Example, TokenRow
from luthier.models.tokenizer import open_tokenizer
from luthier.tokens.encode import encode_examples
from luthier.tokens.preview import preview_tokens
from luthier.tokens.template import ChatEncoder, open_chat


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    return open_chat(open_tokenizer(make_tiny_model(tmp_path_factory.mktemp("m"))))


def rows(num_short: int, num_long: int, **more: Any) -> list[Example]:
    def make(n: int, response: str) -> Example:
        values: dict[str, Any] = {"id": f"e{n}", "path": "rows.jsonl", "line": n, "kind": "instruct", "input": "q", "response": response}
        return Example(**{**values, **more})

    return [make(n, "yes") for n in range(1, num_short + 1)] + [make(num_short + n, "long " * 200) for n in range(1, num_long + 1)]


def test_all_rows_in_order_with_progress(encoder: ChatEncoder) -> None:
    seen: list[tuple[int, int]] = []
    found = encode_examples(encoder, rows(3, 0), max_length=100, allow_truncation=False, progress=lambda d, t: seen.append((d, t)))
    assert [row.example_id for row in found.rows] == ["e1", "e2", "e3"]
    assert (found.over_long, found.findings) == ((), ())
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("num_short", "severity"), [(19, "warning"), (199, "info")])
def test_over_long_rows_are_left_out_and_listed(encoder: ChatEncoder, num_short: int, severity: str) -> None:
    found = encode_examples(encoder, rows(num_short, 1), max_length=100, allow_truncation=False)
    assert len(found.rows) == num_short
    assert found.over_long == (f"e{num_short + 1}",)
    (finding,) = found.findings
    assert (finding.code, finding.severity, finding.count) == ("over_long_left_out", severity, 1)
    assert finding.where == (("rows.jsonl", num_short + 1),)


def test_too_many_over_long_rows_are_refused(encoder: ChatEncoder) -> None:
    assert len(encode_examples(encoder, rows(9, 1), max_length=100, allow_truncation=False).rows) == 9  # exactly 10 %
    with pytest.raises(InputError, match=r"rows\.jsonl:9: 2 of 10 rows \(20%\)") as caught:
        encode_examples(encoder, rows(8, 2), max_length=100, allow_truncation=False)
    assert "max_length" in caught.value.fix


def test_truncation_cuts_the_end_of_the_response_only(encoder: ChatEncoder) -> None:
    items = rows(1, 1)
    whole = encoder.encode_example(items[1])
    found = encode_examples(encoder, items, max_length=100, allow_truncation=True)
    assert found.rows[1].input_ids == whole.input_ids[:100]
    assert found.rows[1].is_label == whole.is_label[:100]
    assert found.over_long == ("e2",)
    assert [finding.code for finding in found.findings] == ["over_long_cut"]


def test_a_prompt_that_fills_the_row_is_never_cut(encoder: ChatEncoder) -> None:
    items = [*rows(1, 0), *rows(0, 1, input="word " * 200)]
    found = encode_examples(encoder, items, max_length=100, allow_truncation=True)
    assert len(found.rows) == 1
    assert [finding.code for finding in found.findings] == ["over_long_left_out"]


def test_no_row_left(encoder: ChatEncoder) -> None:
    with pytest.raises(InputError, match="no row is left"):
        encode_examples(encoder, rows(2, 0), max_length=3, allow_truncation=True)
    assert encode_examples(encoder, [], max_length=3, allow_truncation=False).rows == ()


def test_nothing_to_learn_is_an_error_of_the_line(encoder: ChatEncoder) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl:1: the response has no token"):
        encode_examples(encoder, rows(1, 0, response=""), max_length=100, allow_truncation=False)


def test_unwanted_answers_are_not_imitated(encoder: ChatEncoder) -> None:
    items = [*rows(1, 0, kind="kto", desirable=True), *rows(1, 0, kind="kto", desirable=False)]
    found = encode_examples(encoder, items, max_length=100, allow_truncation=False)
    assert len(found.rows) == 1
    assert [(finding.code, finding.count) for finding in found.findings] == [("unwanted_left_out", 1)]


@pytest.mark.parametrize("length", [2, 3, 7, 50, 51, 52])
def test_long_raw_text_is_trained_on_in_windows_each_token_once(encoder: ChatEncoder, length: int) -> None:
    text = Example(id="t", path="r", line=1, kind="text", input="", response=" ".join(str(n) for n in range(25)))
    whole = encoder.encode_example(text)
    found = encode_examples(encoder, [text], max_length=length, allow_truncation=False)
    assert all(2 <= len(row.input_ids) <= length or len(found.rows) == 1 for row in found.rows)
    trained = [i for row in found.rows for i, wanted in zip(row.input_ids, row.is_label, strict=True) if wanted]
    assert trained == [i for i, wanted in zip(whole.input_ids, whole.is_label, strict=True) if wanted]
    for before, after in itertools.pairwise(found.rows):
        assert after.input_ids[0] == before.input_ids[-1] and not after.is_label[0]
    assert len({row.example_id for row in found.rows}) == len(found.rows)
    codes = [finding.code for finding in found.findings]
    assert codes == (["text_in_windows"] if len(whole.input_ids) > length else []) and found.over_long == ()


def test_preview(encoder: ChatEncoder) -> None:
    item = Example(id="e", path="r", line=1, kind="instruct", input="é €?", response="漢🙂 ok")
    row = encoder.encode_example(item)
    pieces = preview_tokens(row, encoder.tokenizer)
    assert "".join(text for text, _ in pieces) == "<|im_start|>user\né €?<|im_end|>\n<|im_start|>assistant\n漢🙂 ok<|im_end|>"
    assert "".join(text for text, trained in pieces if trained) == "漢🙂 ok<|im_end|>"
    assert not any("\ufffd" in text for text, _ in pieces)


def test_preview_of_a_cut_character_keeps_every_token(encoder: ChatEncoder) -> None:
    ids = tuple(encoder.tokenizer("🙂", add_special_tokens=False)["input_ids"])
    assert len(ids) > 1
    row = TokenRow(example_id="e", input_ids=ids[:-1] + ids[:-1], is_label=(False,) * 2 * (len(ids) - 1))
    assert "\ufffd" in "".join(text for text, _ in preview_tokens(row, encoder.tokenizer))
