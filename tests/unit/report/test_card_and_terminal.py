"""The model card and the closing lines of a run."""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt
from tests.fixtures import reports
from tests.fixtures.hostile import HOSTILE

from luthier.core.untrusted import reveal
from luthier.report.card import Shipped, render_card
from luthier.report.model import ReportModel
from luthier.report.terminal import verdict_lines

MODELS = {
    "clear": reports.clear_win(),
    "inconclusive": reports.inconclusive(),
    "nothing": reports.nothing_compared(),
    "failed": reports.with_failed_arm(reports.clear_win(60)),
}


BASE = reports.with_failed_arm(reports.clear_win(24))


def _hostile(text: str) -> ReportModel:
    return reports.with_every_text(BASE, lambda before: f"{before} {text}")


# ---------------------------------------------------------------- card


def _rendered(card: str) -> tuple[list[str], str]:
    tags: list[str] = []
    words: list[str] = []
    parser = HTMLParser(convert_charrefs=True)

    def start(tag: str, attrs: list[tuple[str, str | None]]) -> None:
        tags.append(tag)
        words.append(" " if tag == "br" else "")

    parser.handle_starttag = start
    parser.handle_data = words.append
    body = card.split("\n---\n", 1)[1]
    parser.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
    parser.close()
    return tags, " ".join("".join(words).split())


@functools.cache
def _benign_tags() -> list[str]:
    return _rendered(render_card(_hostile("x")))[0]


def test_front_matter_is_what_the_hub_reads() -> None:
    model = reports.clear_win()
    front = yaml.safe_load(render_card(model).split("---\n")[1])
    assert (front["base_model"], front["library_name"]) == ("HuggingFaceTB/SmolLM2-360M-Instruct", "peft")
    result = front["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == pytest.approx(0.8233)
    assert "n = 300" in result["metrics"][0]["name"] and "0.7762 to 0.8623" in result["metrics"][0]["name"]
    assert result["dataset"]["revision"] == model.split.test_sha256


def test_a_run_without_a_tuned_arm_claims_no_adapter() -> None:
    card = render_card(reports.nothing_compared())
    front = yaml.safe_load(card.split("---\n")[1])
    assert "library_name" not in front and "base_model" not in front
    assert "No tuned model came out of this run" in card


def test_card_states_results_data_and_limits() -> None:
    card = render_card(reports.clear_win())
    for part in (
        "**+11.0 points**",
        "[77.6, 86.2]",
        "4,312 rows read, 4,287 kept, 25 rejected",
        "## Limits",
        "luthier run data/support.jsonl",
    ):
        assert part in card
    assert "| failed |" in render_card(MODELS["failed"])


def test_card_of_weights_that_are_handed_over_says_how_to_use_them_and_under_which_terms() -> None:
    whole = dataclasses.replace(reports.clear_win(), training={"method": "all weights, 135,000,000 weights"})
    shipped = Shipped(library="transformers", use=("    vllm serve .",), licence="Gemma", notice="Gemma is provided under its terms <b>.")
    card = render_card(whole, shipped)
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["library_name"], front["license"], front["tags"]) == ("transformers", "gemma", ["luthier"])  # no adapter, no "lora"
    assert "## Use\n\n    vllm serve ." in card and "## Licence" in card and "Gemma is provided under its terms &lt;b&gt;." in card
    assert yaml.safe_load(render_card(reports.clear_win()).split("---\n")[1])["tags"] == ["luthier", "lora"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_field_of_the_card(text: str) -> None:
    model = _hostile(text)
    card = render_card(model)
    front = yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert front["base_model"] == model.base_model
    assert front["model-index"][0]["name"] == model.title
    assert set(front) == {"base_model", "library_name", "pipeline_tag", "tags", "model-index"}
    tags, words = _rendered(card)
    assert [tag for tag in tags if tag != "br"] == _benign_tags()
    assert not {"a", "img", "script", "svg", "iframe"} & set(tags)
    for expected in (model.title, model.verdict.sentence, model.rows[5].name, model.run_command):
        assert " ".join(reveal(expected).split()) in words


# ---------------------------------------------------------------- terminal


def _columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


@pytest.mark.parametrize("name", MODELS)
def test_closing_lines_are_plain_and_narrow(name: str) -> None:
    lines = verdict_lines(MODELS[name], report_path="runs/support/report.html")
    assert all(_columns(line) <= 80 for line in lines)
    "\n".join(lines).encode("ascii")
    assert len(lines) <= 20
    assert lines[0].startswith("VERDICT ") and MODELS[name].verdict.headline in lines[0]
    assert lines[-1] == "  Report: runs/support/report.html"


def test_closing_lines_hold_number_interval_arms_and_next_step() -> None:
    lines = verdict_lines(reports.clear_win())
    text = "\n".join(lines)
    assert re.search(r"\+11\.0 points accuracy, 95 % interval \+5\.3 to \+16\.7, n = 300, margin 2\.0", text)
    assert re.search(r"^  \* tuned, LoRA r=16 +82\.3  \[77\.6, 86\.2\] +0\.021 +204 ms$", text, re.MULTILINE)
    assert re.search(r"^    nearest neighbour +70\.7", text, re.MULTILINE)
    assert "Next:   Try it: luthier chat" in text


def test_failed_arm_is_named_failed_and_not_zero() -> None:
    line = next(line for line in verdict_lines(MODELS["failed"]) if "zero-shot" in line)
    assert "failed: RuntimeError" in line and "0.0" not in line


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_neither_controls_the_terminal_nor_forges_a_line(text: str) -> None:
    lines = verdict_lines(_hostile(text))
    assert all(_columns(line) <= 80 for line in lines)
    assert all(ord(char) >= 0x20 and not 0x7F <= ord(char) <= 0x9F for line in lines for char in line)
    "\n".join(lines).encode("utf-8")
    assert sum(line.startswith("VERDICT ") for line in lines) == 1
    assert all(line == "" or line.startswith(("  ", "        ")) for line in lines[1:])


def test_many_arms_and_wide_names_stay_in_the_table() -> None:
    model = reports.clear_win(24)
    rows = tuple(dataclasses.replace(model.rows[3], name=f"{i} 漢字かな交じりのとても長い名前のアーム") for i in range(30))
    lines = verdict_lines(dataclasses.replace(model, rows=(*rows, model.rows[5])))
    assert all(_columns(line) <= 80 for line in lines)
    assert any(line == "  23 more arms are in the report." for line in lines)
    assert any("* tuned, LoRA" in line for line in lines)
