"""Behaviour through the real command on a tiny model: measured, kept, and switched off on a finished run without a new training."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fixtures.fake_server import Answer, fake_server
from tests.fixtures.tiny_model import make_tiny_model

LUTHIER = [sys.executable, "-c", "from luthier.cli.main import main; main()"]
WORDS = ["parcel", "loom", "heddle", "thread", "invoice", "shuttle", "pedal", "wool", "order", "bench", "reed", "beam"]
SMALL = ["--set", "arms.consistency_items=6", "--set", "arms.consistency_samples=2", "--set", "arms.style_rows=24"]


def _rows(n: int, *, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    out = []
    for _ in range(n):
        thing, other, number = rng.choice(WORDS), " ".join(rng.sample(WORDS, 4)), rng.randrange(10**6)
        asked, told = f"Where is my {thing}, not the {other} of {number}?", f"We sent the {thing} with number {number} on Monday."
        out.append({"text": asked, "reply": told})
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("behaviour")
    make_tiny_model(root / "model")
    (root / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in _rows(60, seed=1)), encoding="utf-8")
    (root / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in _rows(32, seed=2)), encoding="utf-8")
    return root


def _run(place: Path, *more: str) -> dict:
    command = [
        *LUTHIER, "run", str(place / "train.jsonl"), "--test", str(place / "test.jsonl"), "--instruction", "Answer the customer.",
        "--input", "text", "--output", "reply", "--model", str(place / "model"), "--run-dir", str(place / "run"), "--epochs", "1",
        "--set", "arms.shots=[2]", "--set", "arms.dev_items=4", "--set", "arms.latency_items=1", "--set", "arms.max_new_tokens=8",
        "--set", "arms.skip=[instructed,few-shot retrieved,tuned + retrieval]", "--lr", "0.001", "--set", "model.dtype=float32",
        "--threads", "1", "--json", *more,
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def _record(place: Path) -> dict:
    return json.loads((place / "run" / "results.json").read_text(encoding="utf-8"))


def test_measured_kept_changed_and_switched_off(place: Path) -> None:
    first = _run(place, *SMALL)
    record = _record(place)
    found, arms = record["behaviour"], {arm["name"]: arm for arm in record["arms"]}
    contestants = set(found["asked"])
    assert "tuned" in contestants and len(contestants) == 2
    for name, asked in found["asked"].items():
        ways = [one["way"] for one in asked]
        assert ways.count("repeat") == 6 * 2 and ways.count("reworded") == 6 * 2 and 6 <= ways.count("input") <= 6 * 2
        assert ("order" in ways) == (name == "few-shot")
        scored = [i["values"]["consistency"] for i in arms[name]["items"] if "consistency" in i["values"]]
        assert len(scored) == 6 and all(0 <= value <= 1 for value in scored)
    for arm in record["arms"]:
        assert all({"answers", "keeps_form"} <= set(item["values"]) for item in arm["items"])
    assert all("stops" in item["values"] for item in arms["tuned"]["items"])
    assert first["gates"]["consistency"] in ("pass", "fail", "not shown")
    keys = {line["key"] for line in first["behaviour"]["lines"]}
    assert {"answers", "stops", "keeps_form", "consistency", "distance: length"} <= keys
    assert found["style"] is None or 0 <= found["style"]["auc"] <= 1
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert "Behaviour before and after" in page and "Follows the instruction" in page

    journal = place / "run" / "journal" / "generations.jsonl"
    adapter = (place / "run" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    size = journal.stat().st_size
    assert _run(place, *SMALL)["behaviour"] == first["behaviour"] and journal.stat().st_size == size  # nothing is asked twice

    # Lost after the answers were given, as by a kill before the record was written: put together again from the journal.
    record["behaviour"] = None
    (place / "run" / "results.json").write_text(json.dumps(record), encoding="utf-8")
    assert _run(place, *SMALL)["behaviour"] == first["behaviour"]
    assert journal.stat().st_size == size

    off = _run(place, "--set", "arms.consistency_items=0", "--set", "arms.style_rows=0")
    assert off["gates"]["consistency"] == "not measured" and journal.stat().st_size == size
    assert not any("consistency" in item["values"] for arm in _record(place)["arms"] for item in arm["items"])
    assert (place / "run" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == adapter


BARE = ("--set", "probes.safety=false", "--set", "probes.retention=false")  # they are asked for elsewhere


def _rewrites(request: dict, number: int) -> Answer:
    """Good in the first way, a number changed in the second; a tie as a judge."""
    system, user = (message["content"] for message in request["messages"])
    if not system.startswith("You rewrite"):
        return Answer(text="VERDICT: TIE")
    text = user.partition("\n\n| ")[2]
    good = "Tell me where I find " + text.removeprefix("Where is ")
    return Answer(
        text=good if user.startswith("Write it as another person") else good.replace("1", "2").replace("3", "4").replace("5", "6")
    )


def test_paraphrases_by_a_model_are_checked_counted_and_kept(place: Path) -> None:
    run = ("--run-dir", str(place / "told"), *SMALL, *BARE)
    plain = _run(place, *run)
    with fake_server(_rewrites) as server:
        asks = ("--judge-endpoint", server.url, "--judge-model", "writer", "--set", "judge.items=1", "--set", "arms.paraphraser=judge")
        first = _run(place, *run, *asks)
        num_paid = len(server.seen)
        assert _run(place, *run, *asks)["behaviour"] == first["behaviour"] and len(server.seen) == num_paid
        shown = [one.body["messages"][1]["content"] for one in server.seen if one.body["messages"][0]["content"].startswith("You rewrite")]
    assert len(shown) == 6 * 2 and all("\n\n| Where is my" in text for text in shown)
    found = json.loads((place / "told" / "results.json").read_text(encoding="utf-8"))["behaviour"]
    told = found["paraphrases"]
    assert told["by"].startswith("writer at 127.0.0.1") and told["num_asked"] == 12 and told["num_items"] == 6 and not told["failed"]
    assert 1 <= told["refused"]["changes a number, a quotation or a code"] <= 6 and sum(told["refused"].values()) == 6
    for asked in found["asked"].values():
        texts = [one for one in asked if one["way"] == "paraphrased"]
        assert len(texts) == 6 and all(one["shown"].startswith("Tell me where I find my") for one in texts)
    lines = {line["key"]: line for line in first["behaviour"]["lines"]}
    assert lines["paraphrased"]["values"]["tuned"]["n"] == 6
    before = {line["key"]: line for line in plain["behaviour"]["lines"]}
    assert "paraphrased" not in before and before["consistency"] == lines["consistency"]  # what the gate looks at is the same
    page = (place / "told" / "report.html").read_text(encoding="utf-8")
    assert "put in other words by writer at" in page and "changes a number" in page and "Tell me where I find my" in page


def test_a_paraphraser_that_is_not_named_is_refused_and_one_that_fails_harms_nothing(place: Path) -> None:
    run = ("--run-dir", str(place / "told"), *SMALL, *BARE)
    with pytest.raises(AssertionError, match=r"arms\.paraphraser"):
        _run(place, *run, "--set", "arms.paraphraser=endpoint")
    with fake_server(lambda request, number: Answer(status=400, body=b"not today")) as server:
        asks = ("--judge-endpoint", server.url, "--judge-model", "other", "--set", "judge.items=1", "--set", "arms.paraphraser=judge")
        found = _run(place, *run, *asks)
    assert any("No paraphrases by other at" in note and "not today" in note for note in found["behaviour"]["notes"])
    assert "consistency" in {line["key"] for line in found["behaviour"]["lines"]} and found["judge"]["failed"]
