"""`luthier run --vllm`: vLLM answers for the arms, with the scores of Luthier's own engine; the record says so, nothing is mixed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.fake_vllm import make_fake_vllm
from tests.fixtures.tiny_model import make_tiny_model

WORDS = {"card": "my card has not come yet", "card lost": "my card is gone now", "close": "please close the account today"}


def make_place(root: Path) -> Path:
    """A model and rows with labels, one of which another begins with."""
    make_tiny_model(root / "model")
    rng = random.Random(1)
    for name, num in (("train", 90), ("test", 24)):
        rows = [
            {"text": f"{WORDS[label]} {rng.randrange(10**6)}", "category": label}
            for label in (rng.choice(sorted(WORDS)) for _ in range(num))
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def run(place: Path, name: str, *more: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    words = [
        "run", str(place / "train.jsonl"), "--test", str(place / "test.jsonl"), "--instruction", "Name the kind.", "--input", "text",
        "--output", "category", "--model", str(place / "model"), "--run-dir", str(place / name), "--folds", "1", "--dev-rows", "12",
        "--epochs", "1", "--batch", "8", "--lr", "0.01", "--set", "arms.shots=[1]", "--set", "arms.latency_items=2",
        "--set", "arms.consistency_items=4", "--set", "model.dtype=float32", "--threads", "1", "--json", *more,
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "luthier", *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env},
        timeout=900,
    )


def record_of(place: Path, name: str) -> dict[str, Any]:
    return json.loads((place / name / "results.json").read_text(encoding="utf-8"))


def assert_same_scores(found: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    """Every answer of every arm, with the probability of its label; and every answer that was not drawn of those asked again."""
    assert [arm["name"] for arm in found["arms"]] == [arm["name"] for arm in want["arms"]]
    for arm, other in zip(found["arms"], want["arms"], strict=True):
        assert arm["failed"] is None and arm["dev_score"] == other["dev_score"], arm["name"]
        assert [item["text"] for item in arm["items"]] == [item["text"] for item in other["items"]], arm["name"]
        for item, same in zip(arm["items"], other["items"], strict=True):
            told = {name: value for name, value in item["values"].items() if name not in ("confidence", "consistency")}
            assert told == {name: same["values"][name] for name in told}
            if same["values"].get("confidence") is not None:
                assert item["values"]["confidence"] == pytest.approx(same["values"]["confidence"], abs=1e-3)


def assert_it_says_so(record: Mapping[str, Any], version: str) -> None:
    """In each arm, for the measured times too, and in the notes, what else was not by vLLM."""
    for arm in record["arms"]:
        answered_by = arm["params"].get("answered by")
        assert answered_by == (f"vLLM {version}" if arm["model"] else None), arm["name"]
        assert not arm["model"] or arm["peak_mem_gib"] is None
        assert arm["latencies_s"] or arm["name"].endswith(", seed 1")  # of which none are taken
    [note] = [note for note in record["notes"] if "vLLM" in note]
    assert f"were answered by vLLM {version}" in note and "By Luthier's own engine" in note and "the probes" in note


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def installed(place: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([make_fake_vllm(place / "installed"), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def finished(place: Path, installed: dict[str, str]) -> dict[str, Any]:
    done = run(place, "vllm", "--vllm", "--train-seeds", "2", env=installed)
    assert done.returncode == 0, done.stderr
    return record_of(place, "vllm")


def test_scores_are_those_of_the_own_engine(finished: dict[str, Any], place: Path, installed: dict[str, str]) -> None:
    done = run(place, "own", "--train-seeds", "2", env=installed)
    assert done.returncode == 0, done.stderr
    want = record_of(place, "own")
    assert_same_scores(finished, want)
    assert not any("answered by" in arm["params"] for arm in want["arms"]) and not any("vLLM" in note for note in want["notes"])
    keys = [
        {json.loads(line)["key"] for line in (place / name / "journal" / "generations.jsonl").read_text("utf-8").splitlines()}
        for name in ("vllm", "own")
    ]
    arms = {arm["name"]: arm["items"] for arm in finished["arms"]}
    num_probed = len(finished["probes"]["base"]["items"]) if finished["probes"] else 0
    assert len(keys[0] & keys[1]) <= 2 * num_probed < min(map(len, keys))  # the probes alone are by one engine in both
    assert len({str(item["text"]) for items in arms.values() for item in items}) > 1


def test_the_record_names_the_engine(finished: dict[str, Any]) -> None:
    assert_it_says_so(finished, "0.32.0")
    assert any(arm["name"].endswith(", seed 1") for arm in finished["arms"])


def test_a_run_stays_with_its_engine(finished: dict[str, Any], place: Path, installed: dict[str, str]) -> None:
    del finished
    done = run(place, "vllm", env=installed)
    assert done.returncode == 2 and "arms.vllm: was true, now false" in done.stderr
    memory = run(place, "vllm", "--vllm", "--train-seeds", "2", "--set", "arms.vllm_memory=0.5", env=installed)
    assert memory.returncode == 0, memory.stderr  # changes nothing of what was measured


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (("--method", "dora"), "plain adapters, not DoRA adapters"),
        (("--method", "full", "--lr", "0.001"), "plain adapters, not the whole model that full leaves"),
        (("--method", "freeze", "--lr", "0.001"), "plain adapters, not the whole model that freeze leaves"),
        (("--lora-r", "1024"), "vLLM takes up to 512"),
        (("--set", "arms.vllm_memory=1.5"), "arms.vllm_memory"),
    ],
)
def test_what_it_does_not_compute_is_refused_before_anything_computes(
    place: Path, installed: dict[str, str], more: tuple[str, ...], found: str
) -> None:
    done = run(place, "refused", "--vllm", *more, env=installed)
    assert done.returncode == 2 and found in done.stderr, done.stderr
    assert not (place / "refused").exists()


def test_without_one_installed_or_wanted(place: Path) -> None:
    done = run(place, "refused", "--vllm", env={})
    assert done.returncode == 2 and "there is no vLLM here" in done.stderr and "leave --vllm out" in done.stderr
    done = run(place, "refused", "--set", "arms.vllm_memory=0.5", env={})
    assert done.returncode == 2 and "arms.vllm_memory only with arms.vllm" in done.stderr
    assert not (place / "refused").exists()
