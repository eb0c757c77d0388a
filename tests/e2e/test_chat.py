"""`luthier chat` and `luthier feedback` as a person uses them: at a terminal, through a pipe, and again tomorrow."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.tiny_model import make_tiny_model

from luthier.cli.main import main

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    make_tiny_model(root / "other", seed=3)
    return make_tiny_model(root / "model")


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """The command in this process, with a text piped into it."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))

    def run(*words: str, piped: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["luthier", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped), encoding="utf-8"))
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def _turns(out: str) -> list[dict[str, Any]]:
    return json.loads(out.splitlines()[-1])["turns"]


def test_a_pipe_is_one_prompt(say: Say, model: Path) -> None:
    letter = b"First line.\n\n/exit is only a word here.\nLast line.\n"
    code, out, _ = say("chat", str(model), "-s", "Sum it up.", "--max-new-tokens", "4", "--json", piped=letter)
    [turn] = _turns(out)
    assert code == 0 and turn["prompt"] == letter.decode()
    shown = json.loads(Path(json.loads(out)["transcript"]).read_text(encoding="utf-8").splitlines()[1])
    assert shown["system"] == "Sum it up."


@pytest.mark.parametrize(
    ("piped", "message"), [(b"", "nothing to answer"), (b"\xff\xfe", "not UTF-8"), (b"x" * (4 * 2**20 + 1), "more than")]
)
def test_a_pipe_that_is_no_prompt_is_refused_before_a_model_is_loaded(say: Say, piped: bytes, message: str) -> None:
    code, out, _ = say("chat", "no-such-model-anywhere", "--json", piped=piped)
    found = json.loads(out)["error"]
    assert code == 2 and message in found["message"] and found["where"] == "standard input" and found["fix"]


def test_lines_are_turns_and_commands(say: Say, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = b"hello\n/edit We open at nine.\n /good is what I say\n/multi\none\ntwo\n/end\n/save copy.jsonl\n/reset\nafter\n/exit\nnever\n"
    monkeypatch.chdir(tmp_path)
    code, out, err = say("chat", str(model), "--lines", "--max-new-tokens", "4", "--json", piped=script)
    assert code == 0 and [turn["prompt"] for turn in _turns(out)] == ["hello", " /good is what I say", "one\ntwo", "after"]
    records = [json.loads(line) for line in Path(json.loads(out)["transcript"]).read_text(encoding="utf-8").splitlines()]
    assert [r["event"] for r in records] == ["opened", "turn", "mark", "turn", "turn", "reset", "turn"]
    histories = [r["answers"][0]["history"] for r in records if r["event"] == "turn"]
    assert [len(h) for h in histories] == [0, 2, 4, 0]
    assert histories[1][1]["content"] == "We open at nine."  # the better answer is what the model is shown from then on
    assert len((tmp_path / "copy.jsonl").read_text(encoding="utf-8").splitlines()) == 5 and "forgotten" in err
    code, _, err = say("chat", str(model), "--lines", "--max-new-tokens", "4", piped=b"/goood\n")
    assert code == 2 and "did you mean /good" in err


def test_tomorrow_it_goes_on(say: Say, model: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.jsonl"
    words = ("chat", str(model), "--transcript", str(talk), "--max-new-tokens", "4", "--json")
    assert say(*words, "-p", "one", "-s", "Be brief.")[0] == 0
    code, _, err = say(*words, "-p", "two")
    assert code == 2 and "--continue" in err  # never written over
    assert say(*words, "-p", "two", "--continue")[0] == 0
    turn = json.loads(talk.read_text(encoding="utf-8").splitlines()[-1])
    assert turn["system"] == "Be brief." and turn["answers"][0]["history"][0]["content"] == "one"
    assert say("chat", str(model), "-p", "x", "--no-log", "--max-new-tokens", "1")[0] == 0
    assert say("chat", str(model), "-p", "x", "-c")[0] == 2  # what was kept in a file of its own is not the latest one here
    assert say("chat", str(model), "-p", "x", "-c", "-n")[0] == 2


def test_marked_answers_become_rows_that_check_reads(say: Say, model: Path, tmp_path: Path) -> None:
    script = b"where is my card\n/edit card_arrival\nI lost it\n/edit lost_card\nhello\n/bad\n"
    assert say("chat", str(model), "--lines", "--max-new-tokens", "3", piped=script)[0] == 0
    code, out, _ = say("feedback", str(model), "--list", "--json")
    ids = [answer["id"] for answer in json.loads(out)["answers"]]
    assert [answer["mark"] for answer in json.loads(out)["answers"]] == ["edited", "edited", "bad"]
    assert say("feedback", str(model), "--edit", ids[2], "greeting")[0] == 0
    for kind, form in (("training", "alpaca"), ("preference", "preference"), ("kto", "kto")):
        rows = str(tmp_path / f"{kind}.jsonl")
        code, out, _ = say("feedback", str(model), "--out", rows, "--kind", kind)
        assert code == 0 and f"luthier check {rows}" in out
        _, out, err = say("check", rows, "--model", str(model), "--json")
        found = json.loads(out.splitlines()[-1])
        assert found["format"] == form and found["read"] == found["kept"] > 0 and found["rejected"] == 0, err
        errors = {finding["code"] for finding in found["findings"] if finding["severity"] == "error"}
        assert errors <= {"few-rows", "refused-split"}  # a handful of rows is nothing to split; nothing else is wrong with them
    assert say("feedback", str(model), "--mark", ids[0], "none")[0] == 0


def test_the_same_seed_draws_the_same(say: Say, model: Path) -> None:
    words = ("chat", str(model), "-p", "hello", "--max-new-tokens", "8", "--json", "-n")

    def answer(*more: str) -> str:
        return _turns(say(*words, *more)[1])[0]["answers"]["model"]

    greedy, drawn = answer(), answer("--temperature", "1")
    assert greedy == answer() != drawn == answer("--temperature", "1") != answer("--temperature", "1", "--seed", "1")
    assert answer("--temperature", "1", "--top-k", "1") == greedy == answer("--temperature", "1", "--top-p", "0.000001")


def test_two_models_answer(say: Say, model: Path) -> None:
    words = ("chat", str(model), "-p", "hello", "--max-new-tokens", "4", "-n")
    code, out, _ = say(*words, "--compare", str(model.parent / "other"))
    assert code == 0 and re.search(r"^\[model\] ", out, re.M) and re.search(r"^\[other\] ", out, re.M)
    code, _, err = say(*words, "--compare", "base")
    assert code == 2 and "no base model" in err
