"""What cannot work is refused before anything computes, through the real command, and binds nobody."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_run import _rows
from tests.fixtures.tiny_model import make_tiny_model
from tests.unit.data_in.test_bad_inputs import COUNTED, REFUSED
from tests.unit.data_in.test_bad_inputs import path_of as bad_input

from luthier.cli.main import main

Go = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("refusals")
    make_tiny_model(root / "model")
    write(root / "train.jsonl", _rows(150, seed=1))
    write(root / "test.jsonl", _rows(40, seed=2))
    return root


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def go(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Go:
    """Exit code, the object on the last line of stdout, and stderr of one command."""

    def run(verb: str, file: Path, *more: str, run_dir: Path | None = None, columns: bool = True) -> tuple[int, dict[str, Any], str]:
        named = ["--instruction", "Name the kind.", "--input", "text", "--output", "category"] if columns else []
        folder = ["--run-dir", str(run_dir)] if run_dir is not None else []
        words = ["luthier", verb, str(file), *named, "--model", str(place / "model"), "--json", *folder, *more]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), json.loads(out.strip().splitlines()[-1]), err

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metric", "acuracy"), "expected one of exact"),
        (("--metric", "unsupported"), "better when lower"),
        (("--metric", "json_exact"), "kind label"),
        (("--set", "arms.skip=[fewshot]"), "few-shot"),
        (("--set", "arms.shots=[2,2]"), "each number once"),
        (("--larger-model", "gema-3-270m"), "gemma-3-270m"),
        (("--test", "there-is-none.jsonl"), "there-is-none.jsonl"),
    ],
)
def test_mistakes_are_told_before_training_and_bind_nobody(
    go: Go, place: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    code, found, err = go("run", place / "train.jsonl", *options, run_dir=tmp_path / "run")
    assert code == 2 and said in err and found["error"]["fix"], err
    assert not (tmp_path / "run" / "train").exists() and not (tmp_path / "run" / "journal" / "generations.jsonl").exists()
    again = ("--epochs", "0.1", "--lr", "1e-3", "--threads", "1")
    code, found, err = go("train", place / "train.jsonl", *again, run_dir=tmp_path / "run")
    assert code == 0, err


def test_raw_text_can_be_trained_on_but_not_compared(go: Go, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("\n\n".join(f"A paragraph with the number {i} and some more words." for i in range(60)) + "\n\nI\n", encoding="utf-8")
    code, found, err = go("run", text, run_dir=tmp_path / "run", columns=False)
    assert code == 2 and "luthier train" in found["error"]["fix"], err


def test_rows_of_another_kind_in_the_test_file(go: Go, place: Path, tmp_path: Path) -> None:
    other = tmp_path / "pairs.json"
    other.write_text(json.dumps([{"prompt": f"q {i}", "chosen": "yes", "rejected": "no"} for i in range(40)]), encoding="utf-8")
    code, found, _ = go("check", place / "train.jsonl", "--format", "auto", "--test", str(other))
    assert code == 2, found


def test_check_shows_everything_though_rows_are_too_long(go: Go, place: Path) -> None:
    code, found, _ = go("check", place / "train.jsonl", "--max-length", "12")
    assert code == 2 and found["worst"] == "error"
    codes = {finding["code"] for finding in found["findings"]}
    assert "refused-tokens" in codes and found["split"]["train"] > 0 and found["read"] == 150


def test_a_test_item_that_fits_no_model_is_left_out_of_every_arm(go: Go, place: Path, tmp_path: Path) -> None:
    rows = _rows(40, seed=2)
    rows[7]["text"] = "my card has not come yet " * 400
    small = ("--epochs", "0.2", "--lr", "1e-3", "--threads", "1", "--set", "arms.shots=[1]", "--set", "arms.dev_items=4")
    latency = ("--set", "arms.latency_items=1", "--set", "model.dtype=float32")
    test = write(tmp_path / "test.jsonl", rows)
    code, found, err = go("run", place / "train.jsonl", "--test", str(test), *small, *latency, run_dir=tmp_path / "run")
    assert code == 0, err
    assert {arm["n"] for arm in found["arms"]} == {39} and not any(arm["failed"] for arm in found["arms"])
    metrics = found["arms"][-1]["metrics"]
    assert metrics["exact"]["n"] == 39 and metrics["label_valid"]["n"] == 39 and "json_valid" not in metrics
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "1 of 40 test items leave no room" in page and "Every metric" in page


@pytest.mark.parametrize("words", [["run", "f", "--tset", "x"], ["run", "f", "--batch", "eight"], ["nonsense"]])
def test_mistakes_in_the_command_line_are_told_to_programs_too(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["luthier", *words, "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert left.value.code == 2 and err
    assert json.loads(out)["error"]["message"]


def test_chat_with_a_run_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "intents").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["luthier", "chat", str(tmp_path / "runs" / "intnets"), "-p", "hello"])
    with pytest.raises(SystemExit) as left:
        main()
    _, err = capsys.readouterr()
    assert left.value.code == 2 and "no such run" in err and "luthier chat" in err and "intents" in err


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_end_every_command_with_2_and_a_remedy(go: Go, name: str, tmp_path: Path) -> None:
    message, fix = REFUSED[name]
    path = bad_input(name, tmp_path)
    for verb in ("check", "run"):
        code, found, err = go(verb, path, run_dir=tmp_path / "run" if verb == "run" else None, columns=False)
        assert code == 2 and "Traceback" not in err
        assert re.search(message, found["error"]["message"]) and re.search(fix, found["error"]["fix"])
        assert found["error"]["where"].startswith(str(path))


@pytest.mark.parametrize("name", COUNTED)
def test_bad_rows_are_counted_by_the_command(go: Go, name: str, tmp_path: Path) -> None:
    num_kept, rejects = COUNTED[name]
    code, found, err = go("check", bad_input(name, tmp_path), columns=False)
    assert code in (0, 2) and "Traceback" not in err  # 2: so few rows carry no verdict
    assert (found["read"], found["kept"], found["rejected"]) == (num_kept + len(rejects), num_kept, len(rejects))
    assert [(reject["line"], reject["code"]) for reject in found["rejects"]] == rejects
    assert all(reject["reason"] and reject["fix"] for reject in found["rejects"])
