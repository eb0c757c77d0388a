"""The bad inputs we hold ourselves to, case by case, and the test that has each: 67, none of them lost when tests are moved.

What the files look like and what is said of each is in the tests named here; this one only counts and looks them up.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from tests.e2e.test_bad_models import BAD_MODELS, WITHOUT
from tests.unit.data_in.bad_input_files import MAKERS
from tests.unit.data_in.test_bad_inputs import COUNTED, REFUSED
from tests.unit.tokens.test_template_trial import HOSTILE

TESTS = Path(__file__).resolve().parent
MODELS = "e2e/test_bad_models.py"
STATISTICS = "unit/data_check/test_statistical_cases.py"

ROWS = {  # case -> file of tests/fixtures/bad_input, or its maker; with a number: the line that is rejected
    "JSON": {
        "100,000 levels deep": "deep_nest",
        "64 MB in one line": "long_line",
        "integer of 5,000 digits": "huge_integer.jsonl",
        "NaN, Infinity": "nan_infinity.jsonl",
        "duplicate keys": "duplicate_keys.jsonl",
        "lone surrogate": "lone_surrogate.jsonl",
        "NUL": "nul.jsonl",
        "UTF-8 with BOM": "bom.jsonl",
        "UTF-16": "utf16.jsonl",
        "Latin-1": "latin1.jsonl",
        "CRLF and CR": "crlf.jsonl",
        "no final newline": "no_final_newline.jsonl",
        "array at the top": "top_array.json",
        "object at the top": "top_object.json",
        "last line cut off": "truncated.jsonl",
        "blank lines": "blank_lines.jsonl",
        "1,000 keys": "thousand_keys",
        "several types in one field": "mixed_types.jsonl",
    },
    "tables and archives": {
        "field of 131,073 characters": "long_field",
        "unbalanced quote": "unbalanced_quote.csv",
        "10,000 columns": "many_columns",
        "ragged rows": "ragged.csv",
        "semicolons": "semicolon.csv",
        "no header": "missing_header.csv",
        "lying Parquet footer": "lying_footer",
        "gzip bomb": "gzip_bomb",
        "name out of the folder in a zip": "zip_slip",
        "link out of the folder": "link_out",
    },
    "chats": {
        "empty response": "chat_structure.jsonl 2",
        "blank response": "chat_structure.jsonl 3",
        "only a system turn": "chat_structure.jsonl 4",
        "two users in a row": "chat_structure.jsonl 5",
        "ends with the user": "chat_structure.jsonl 6",
        "unknown role": "chat_structure.jsonl 7",
        "content is a list, null, a number": "chat_structure.jsonl 8 9 11",
        "tool call": "chat_structure.jsonl 12",
        "300 turns": "long_chat",
        "prompt longer than the model": "long_prompt",
        "answer longer than the model": "long_answer",
        "control tokens in content": "chat_structure.jsonl -13",
    },
}
TEMPLATES = {
    "loop bomb": "loop bomb",
    "string bomb": "string bomb",
    "reaches out 1": "subclasses",
    "reaches out 2": "globals",
    "reaches out 3": "attr filter",
}
TRAINS: dict[str, dict[str, object]] = {
    "no pad": {"has_pad": False},
    "no eos": {"has_eos": False},
    "no chat template": {"chat_template": None},
    "pad is not eos": {"pad_is_eos": False},
}
MODEL_CASES = {
    "vocabulary larger than the embedding": "vocabulary larger than the embedding",
    "shapes of another model": "a shape the config does not say",
    "pickle-only": "pickle-only weights",
    "remote code": "auto_map",
}
NAMED = {  # case -> (file, test)
    "pad is eos": ("unit/tokens/test_chat_encoder.py", "test_padding_token_never_decides_what_is_trained"),
    "template without {% generation %}": ("unit/tokens/test_chat_encoder.py", "test_labels_are_the_response_and_its_end"),
    "adapter of another base": (MODELS, "test_an_adapter_of_another_base_or_in_pickled_form_is_refused"),
}
STATISTICAL = {
    "0, 1, 2 rows": "test_no_or_almost_no_rows",
    "all duplicates": "test_all_duplicates",
    "30 % of the test rows leaked": "test_thirty_percent_of_the_test_rows_leaked",
    "one class": "test_one_class",
    "20 % label noise": "test_twenty_percent_label_noise",
    "constant output": "test_constant_output",
    "fewer than 30 test rows": "test_fewer_than_thirty_test_rows",
    "two answers to one prompt": "test_conflicting_answers_to_one_prompt",
    "canary and personal data": "test_canary_and_personal_data",
    "50 rows of one trigger": "test_fifty_rows_of_one_trigger",
    "languages mixed": "test_language_mix",
    "test answers in train prompts": "test_test_answers_inside_train_prompts",
}


@cache
def _tests_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_all_67_cases_are_there() -> None:
    assert [len(cases) for cases in ROWS.values()] == [18, 10, 12]
    models = {**TEMPLATES, **{name: "" for name in (*TRAINS, *MODEL_CASES, *NAMED)}}
    del models["pad is not eos"]  # the other half of "pad is eos"
    assert len(models) == 15 and len(STATISTICAL) == 12
    assert sum(map(len, ROWS.values())) + len(models) + len(STATISTICAL) == 67


@pytest.mark.parametrize("case", [case for cases in ROWS.values() for case in cases])
def test_rows_have_a_file_and_what_is_said_of_it(case: str) -> None:
    name, *lines = next(cases[case] for cases in ROWS.values() if case in cases).split()
    assert name in MAKERS or (TESTS / "fixtures" / "bad_input" / name).is_file()
    assert name in COUNTED or name in REFUSED
    rejected = {line for line, _ in COUNTED.get(name, (0, []))[1]}
    for line in map(int, lines):  # a negative one is kept: its content is text, whatever it looks like
        assert (abs(line) in rejected) == (line > 0)


def test_models_and_statistics_have_their_tests() -> None:
    assert set(TEMPLATES.values()) <= set(HOSTILE)
    assert all(options in WITHOUT for options in TRAINS.values())
    assert set(MODEL_CASES.values()) <= set(BAD_MODELS)
    for file, test in (*NAMED.values(), *((STATISTICS, test) for test in STATISTICAL.values())):
        assert test in _tests_in(file), f"{file} has no {test}"
