"""`luthier run` with retrieval by embeddings: failed without harm, measured, then never asked again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fixtures.fake_embeddings import embedded
from tests.fixtures.fake_server import fake_server
from tests.fixtures.workplace import make_workplace

LUTHIER = [sys.executable, "-c", "from luthier.cli.main import main; main()"]
NEW = ["few-shot by embeddings", "documents by embeddings", "tuned + embeddings"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workplace(tmp_path_factory.mktemp("embeddings"))
    (root / "documents").mkdir()
    (root / "documents" / "cards.md").write_text("# Cards\nA card comes by post.\n\n# Money\nMoney takes a day.\n", encoding="utf-8")
    return root


def _command(place: Path, url: str, *more: str) -> list[str]:
    return [
        *LUTHIER, "run", str(place / "train.jsonl"), "--instruction", "Name the kind.", "--input", "text", "--output", "category",
        "--model", str(place / "model"), "--run-dir", str(place / "run"), "--epochs", "1", "--batch", "8", "--lr", "0.001",
        "--set", "arms.shots=[1]", "--set", "arms.passages=[1]", "--set", "arms.dev_items=6", "--set", "arms.latency_items=2",
        "--set", "model.dtype=float32", "--set", "arms.consistency_items=4", "--set", "arms.max_new_tokens=8",
        "--set", "probes.safety=false", "--set", "probes.retention=false", "--threads", "1", "--documents", str(place / "documents"),
        "--embeddings-endpoint", url, "--embeddings-model", "near", "--set", "embeddings.retries=0", "--json", *more,
    ]  # fmt: skip


def _go(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, env=full, timeout=240, check=False)


def _arms(done: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    assert done.returncode == 0, done.stderr
    return {arm["name"]: arm for arm in json.loads(done.stdout.strip().splitlines()[-1])["arms"]}


def test_failed_then_measured_then_never_asked_again(place: Path) -> None:
    refused = _go(_command(place, "http://example.com/v1"))
    assert refused.returncode == 2 and "embeddings.url" in refused.stderr and "--embeddings-endpoint https" in refused.stderr
    with fake_server(embedded) as server:
        command = _command(place, server.url, "--embeddings-key-env", "NEAR_KEY")
        without = _arms(_go(command))
        assert [name for name in without if without[name]["failed"]] == NEW
        assert all("NEAR_KEY is not set" in without[name]["failed"] and without[name]["n"] == 0 for name in NEW) and not server.seen
        found = _arms(_go(command, NEAR_KEY="sk-0123"))
        num_paid = len(server.seen)
        texts = [text for one in server.seen for text in one.body["input"]]
        assert num_paid and len(texts) == len(set(texts))  # rows, items, passages, and reworded items: each once
    for name in NEW:
        assert found[name]["failed"] is None and found[name]["n"] == 30, found[name]
    others = [name for name in found if name not in NEW]
    assert [found[name]["score"] for name in others] == [without[name]["score"] for name in others]
    record = json.loads((place / "run" / "results.json").read_text(encoding="utf-8"))
    arms = {arm["name"]: arm for arm in record["arms"]}
    assert all(arms[name]["params"]["retrieved by"].startswith("near at 127.0.0.1") for name in NEW)
    assert arms["documents by embeddings"]["items"][0]["sources"]
    assert "found by the embeddings of near at" in (place / "run" / "report.html").read_text(encoding="utf-8")
    (place / "run" / "results.json").unlink()  # everything is put together again, from kept answers and vectors, without a server
    again = _arms(_go(command))
    assert again.keys() == found.keys()
    assert all(again[name] == found[name] for name in found if found[name]["family"] != "floor")  # floors are timed anew
