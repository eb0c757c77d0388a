"""`luthier run --endpoint` against `luthier serve`: a real server holds a real model to the labels, or to the schema, of the task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.test_serve import serving
from tests.fixtures.workplace import make_workplace

KINDS = {"card", "money", "close"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workplace(tmp_path_factory.mktemp("held"))
    rows = [json.loads(line) for line in (root / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    objects = [
        {"text": row["text"], "category": json.dumps({"kind": row["category"], "urgent": bool(n % 2)})} for n, row in enumerate(rows)
    ]
    (root / "objects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects), encoding="utf-8")
    return root


def _run(place: Path, url: str, data: str) -> dict:
    command = [
        sys.executable, "-m", "luthier", "run", str(place / data), "--instruction", "Name the kind.", "--input", "text",
        "--output", "category", "--model", str(place / "model"), "--run-dir", str(place / f"run-{data}"), "--epochs", "1", "--batch", "8",
        "--lr", "0.001", "--threads", "1", "--endpoint", url, "--endpoint-model", "model", "--json",
    ]  # fmt: skip
    for setting in (
        "arms.shots=[1]", "arms.dev_items=2", "arms.latency_items=1", "model.dtype=float32", "endpoint.context=512",
        "arms.consistency_items=0", "arms.skip=[instructed,few-shot,few-shot retrieved,tuned + retrieval]",
    ):  # fmt: skip
        command += ["--set", setting]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((place / f"run-{data}" / "results.json").read_text(encoding="utf-8"))
    return next(arm for arm in record["arms"] if arm["name"] == "zero-shot · model")


def test_labels_and_objects_come_back_in_their_form(place: Path) -> None:
    with serving(str(place / "model")) as (_, ready):
        labels = _run(place, ready["url"], "train.jsonl")
        objects = _run(place, ready["url"], "objects.jsonl")
    assert labels["failed"] is None and labels["params"]["answers"] == "held to the 3 labels by the server (response_format)"
    assert {item["text"] for item in labels["items"]} <= KINDS and len(labels["items"]) == 30
    assert objects["failed"] is None
    assert objects["params"]["answers"] == "held to the JSON schema of the training answers by the server (response_format)"
    for item in objects["items"]:
        found = json.loads(item["text"])
        assert set(found) == {"kind", "urgent"} and found["kind"] in KINDS and type(found["urgent"]) is bool
