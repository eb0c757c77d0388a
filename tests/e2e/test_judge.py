"""A judge through the real command: refused early, failed without harm, asked once, calibrated by a person's file, decided again alone."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.test_run import _rows
from tests.fixtures.fake_server import Answer, fake_server
from tests.fixtures.workplace import make_workplace

LUTHIER = [sys.executable, "-c", "from luthier.cli.main import main; main()"]
SECRET = "sk-not-a-real-key-9876543210"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workplace(tmp_path_factory.mktemp("judge"))
    (root / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in _rows(80, seed=2)), encoding="utf-8")
    return root


def _command(place: Path, url: str, *more: str) -> list[str]:
    return [
        *LUTHIER, "run", str(place / "train.jsonl"), "--test", str(place / "test.jsonl"), "--instruction", "Name the kind.",
        "--input", "text", "--output", "category", "--model", str(place / "model"), "--run-dir", str(place / "run"), "--epochs", "1",
        "--batch", "8", "--lr", "0.001", "--set", "arms.shots=[1]", "--set", "arms.dev_items=6", "--set", "arms.latency_items=2",
        "--set", "arms.constrained=false", "--set", "arms.consistency_items=0", "--set", "probes.safety=false",
        "--set", "probes.retention=false", "--set", "model.dtype=float32", "--threads", "1", "--json",
        "--judge-endpoint", url, "--judge-model", "wise", "--judge-key-env", "JUDGE_KEY", "--set", "judge.retries=0", *more,
    ]  # fmt: skip


def _go(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, env=full, timeout=240, check=False)


def _found(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def _better(request: str, a: str, b: str) -> str:
    """A taste that gives every verdict, whatever a tiny model writes: the longer, of equals the later in the alphabet; or the other one
    where the request has an odd number of vowels.
    """
    more, fewer = ("A", "b") if sum(char in "aeiou" for char in request) % 2 == 0 else ("b", "A")
    return "tie" if a == b else more if (len(a), a) > (len(b), b) else fewer


def _by_length(request: dict, number: int) -> Answer:
    whole = request["messages"][-1]["content"]
    asked, *parts = whole.split("\n\nAnswer ")
    a, b = (part.split("\n\nWhich")[0].partition("\n")[2] for part in parts[:2])
    said = {"tie": "TIE", "A": "1", "b": "2"}[_better(asked.split("\n\n")[0].partition("\n")[2], a, b)]
    return Answer(text=f"I counted.\nVERDICT: {said}", model="wise-2026-01-01")


def test_a_judge_from_refusal_to_calibration(place: Path, tmp_path: Path) -> None:
    run = str(place / "run")
    refused = _go(_command(place, "http://example.com/v1"))
    assert refused.returncode == 2 and "judge.url" in refused.stderr and not (place / "run" / "train").exists()

    with fake_server(_by_length) as server:
        command = _command(place, server.url)
        without = _found(_go(command))
        assert "JUDGE_KEY is not set" in without["judge"]["failed"] and not server.seen
        assert "--judge-key-env" in without["judge"]["failed"] or "export JUDGE_KEY" in without["judge"]["failed"]

        done = _go(command, JUDGE_KEY=SECRET)
        found = _found(done)
        num_paid = len(server.seen)
        assert num_paid and all(one.headers["Authorization"] == f"Bearer {SECRET}" for one in server.seen)
        judge = found["judge"]
        assert judge["failed"] is None and judge["n"] == 80 and judge["wins"] + judge["losses"] + judge["ties"] == 80
        assert not judge["is_calibrated"] and judge["low"] <= judge["win_rate"] <= judge["high"]
        assert {key: without[key] for key in ("verdict", "sentence", "arms")} == {
            key: found[key] for key in ("verdict", "sentence", "arms")
        }
        assert _found(_go(command))["judge"] == judge and len(server.seen) == num_paid  # not even a key is needed
        asked = [one.body["messages"] for one in server.seen]
        some = _found(_go([*command, "--set", "judge.items=10"], JUDGE_KEY=SECRET))["judge"]
        assert some["n"] == 10 and _found(_go(command))["judge"] == judge
        assert len(server.seen) <= num_paid + 2 * 20  # pairs are paid for once; of ten items other answers carry the attacks

    record = json.loads((place / "run" / "results.json").read_text(encoding="utf-8"))
    assert record["judge"]["served_by"] == "wise-2026-01-01" and len(record["judge"]["attacks"]) == 20
    assert all(messages[0]["role"] == "system" for messages in asked)
    for path in (place / "run").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path

    # a person labels as the judge does, and decides again without any server
    sheet = tmp_path / "pairs.csv"
    wrote = _found(_go([*LUTHIER, "judge", run, "--sample", str(sheet), "--json"]))
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert wrote["num_pairs"] == len(rows) == 60 and list(rows[0]) == ["pair", "request", "wanted answer", "answer A", "answer B", "better"]
    assert "already there" in _go([*LUTHIER, "judge", run, "--sample", str(sheet)]).stderr
    for row in rows:
        row["better"] = _better(row["request"], row["answer A"], row["answer B"])
    _write(sheet, rows)
    taken = _found(_go([*LUTHIER, "judge", run, "--labels", str(sheet), "--json"]))
    assert taken["num_labels"] == 60 and taken["kappa"] == 1.0 and taken["kappa_low"] < 1
    assert taken["is_calibrated"] == (taken["moved_by_attacks"] <= 0.05)  # a demand for marks makes an answer longer
    decided = _found(_go([*LUTHIER, "decide", run, "--json"]))
    assert decided["judge"]["kappa"] == 1.0 and decided["judge"]["win_rate"] == judge["win_rate"]
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert "Compared by a judge" in page and "kappa 1.00" in page and "ask for marks gain" in page
    lines = _go([*LUTHIER, "judge", run]).stdout
    assert "Agreement with the 60 pairs" in lines and "longer answer" in lines

    again = tmp_path / "again.csv"
    _go([*LUTHIER, "judge", run, "--sample", str(again), "--pairs", "70"])
    with again.open(encoding="utf-8-sig", newline="") as file:
        kept = {row["pair"]: row["better"] for row in csv.DictReader(file)}
    assert len(kept) > 60 and {pair: kept[pair].lower() for pair in kept if kept[pair]} == {
        row["pair"]: row["better"].lower() for row in rows
    }


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"better": "C"}, "expected A, B or tie"),
        ({"better": "A", "pair": "0123456789ab"}, "was not given"),
        ({}, "no row has a label"),
    ],
)
def test_labels_that_are_none(place: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    run, sheet = str(place / "run"), tmp_path / "pairs.csv"
    assert _go([*LUTHIER, "judge", run, "--sample", str(sheet), "--pairs", "3"]).returncode == 0
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = [{**row, "better": ""} for row in csv.DictReader(file)]
    rows[1].update(change)
    _write(sheet, rows)
    done = _go([*LUTHIER, "judge", run, "--labels", str(sheet)])
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_a_run_without_a_judge_says_how_to_get_one(place: Path) -> None:
    done = _go([*LUTHIER, "judge", str(place)])
    assert done.returncode == 2 and "no results yet" in done.stderr
