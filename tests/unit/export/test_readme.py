"""The README beside exported files: the exact commands, how to ask, and the terms that go with the weights."""

from __future__ import annotations

import pytest
from tests.fixtures.hostile import HOSTILE

from luthier.core.exports import ExportKind, Parity, SecondReading
from luthier.core.types import Estimate
from luthier.export.readme import AboutExport, render_readme

SCORE = Estimate(value=0.8, low=0.7, high=0.9, n=12, method="Wilson")
SECOND = SecondReading(
    program="llama.cpp by llama-cpp-python 1",
    num_exact=10,
    num_ties=1,
    num_tokens=90,
    mean_kl=0.002,
    max_kl=0.1,
    max_logit_difference=0.3,
    tolerance={},
    tolerance_words="little",
    artefact=SCORE,
    difference=SCORE,
    checks={},
    different=(),
    failures=(),
)
PARITY = Parity(
    n=12,
    num_locked=40,
    num_exact=12,
    num_ties=0,
    num_tokens=90,
    mean_kl=0.001,
    max_kl=0.1,
    max_logit_difference=0.2,
    tolerance={},
    tolerance_words="little",
    metric="exact",
    tested=SCORE,
    artefact=SCORE,
    difference=SCORE,
    recorded=SCORE,
    num_as_recorded=12,
    checks={"tokens": True},
    different=(),
    failures=(),
    llama_cpp=SECOND,
)


def _about(kind: ExportKind, storage: str, num_labels: int = 0, **changes: str) -> AboutExport:
    texts = {"licence": "Gemma", "notice": "Subject to terms.", "system": "Be brief.", "instruction": "Name the kind.", **changes}
    return AboutExport(kind=kind, storage=storage, name="rows-base", base_model="org/base", rank=8, num_labels=num_labels, **texts)


@pytest.mark.parametrize(
    ("kind", "storage", "command"),
    [
        ("adapter", "adapter", "    luthier chat . --model org/base"),
        ("hub-folder", "adapter", "    luthier chat . --model org/base"),
        ("hub-folder", "bfloat16", "    vllm serve . --served-model-name rows-base"),
        ("merged", "bfloat16", "    luthier chat ."),
        ("gguf", "F16", "    llama-server --model rows-base.gguf --jinja --temp 0"),
        ("ollama", "Q8_0", "    ollama create rows-base --file Modelfile"),
    ],
)
def test_each_kind_has_its_commands_its_prompt_and_its_terms(kind: ExportKind, storage: str, command: str) -> None:
    text = render_readme(_about(kind, storage), PARITY)
    assert command in text.splitlines()
    for part in (
        "The instruction of all its training rows: Name the kind.",
        "Be brief.",
        "Licence of the base model: Gemma",
        "Subject to terms.",
    ):
        assert part in text
    assert "12 of 40 locked test items" in text and "The same by llama.cpp by llama-cpp-python 1: 10 the same, 1 ties, 1 different" in text


def test_answers_that_were_held_to_labels_are_said_to_have_been() -> None:
    assert "answers were held to the 77 labels" in render_readme(_about("gguf", "F16", num_labels=77), PARITY)
    assert "held to" not in render_readme(_about("gguf", "F16"), PARITY)


def test_what_is_not_known_is_not_claimed() -> None:
    text = render_readme(_about("merged", "bfloat16", licence="", notice="", system="", instruction=""), PARITY)
    assert "Licence" not in text and "instruction of all" not in text and "system text" not in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_instructions_stay_one_line_of_text(hostile: str) -> None:
    plain, text = render_readme(_about("gguf", "F16"), PARITY), render_readme(_about("gguf", "F16", instruction=f"x {hostile}"), PARITY)
    assert len(text.split("\n")) == len(plain.split("\n"))
