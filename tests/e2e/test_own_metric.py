"""The real command with a score of the user's own: it decides, it is recorded with its source, and the record stands without it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fixtures.workplace import make_workplace

LUTHIER = [sys.executable, "-c", "from luthier.cli.main import main; main()"]
SCORE = '''"""Half a point for the first letter."""


def points(answer, references):
    best = max(1.0 if answer == right else 0.5 * (answer[:1] == right[:1]) for right in references)
    return None if "kilo" in answer else best
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workplace(tmp_path_factory.mktemp("own"))
    (root / "myscore.py").write_text(SCORE, encoding="utf-8")
    return root


def _go(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*LUTHIER, *words], capture_output=True, text=True, env=env, timeout=240, check=False, cwd=place)


def _run(place: Path, metric: str) -> subprocess.CompletedProcess[str]:
    return _go(
        place, "run", "train.jsonl", "--instruction", "Name the kind.", "--input", "text", "--output", "category", "--model", "model",
        "--run-dir", "run", "--epochs", "1", "--batch", "8", "--test-rows", "40", "--set", "arms.shots=[1]", "--set", "arms.dev_items=8",
        "--set", "arms.latency_items=2", "--set", "train.lr=0.001", "--set", "model.dtype=float32", "--threads", "1", "--json",
        "--set", "arms.skip=[few-shot,few-shot retrieved,tuned + retrieval]", "--set", "arms.consistency_items=0",
        "--set", "arms.constrained=false", "--set", "probes.safety=false", "--set", "probes.retention=false", "--metric", metric,
    )  # fmt: skip


def test_run_decide_and_report_by_a_function_of_the_users_own(place: Path) -> None:
    refused = _run(place, "myscore:point")
    assert refused.returncode == 2 and "there are points" in refused.stderr and "--metric myscore:points" in refused.stderr
    done = _run(place, "myscore:points")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["metric"] == "myscore:points"
    record = json.loads((place / "run" / "results.json").read_text(encoding="utf-8"))
    assert record["metric_sha256"] == hashlib.sha256(SCORE.encode()).hexdigest()
    assert "a function of your own, myscore:points in myscore.py" in record["notes"][0] and "100.0 points" in record["notes"][0]
    nearest = next(arm for arm in record["arms"] if arm["name"] == "nearest neighbour")
    for item in nearest["items"]:
        assert item["values"]["myscore:points"] == (1.0 if item["text"] == item["gold"] else 0.5 * (item["text"][0] == item["gold"][0]))
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert "Score, myscore:points" in page and "a score of your own" in page and str(place) not in page

    (place / "myscore.py").rename(place / "gone.txt")  # the record is enough: nothing is imported again
    again = _go(place, "decide", "run", "--min-effect", "3", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.strip().splitlines()[-1])["metric"] == "myscore:points"

    (place / "myscore.py").write_text(SCORE.replace("0.5", "0.4"), encoding="utf-8")
    changed = _run(place, "myscore:points")
    assert changed.returncode == 2 and "decide.metric.sha256" in changed.stderr, changed.stderr
