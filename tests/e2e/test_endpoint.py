"""`luthier run` with a model behind an address: measured beside the others, failed without harm, asked again on a repeat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import pytest
from tests.fixtures.fake_server import Answer, fake_server, in_form
from tests.fixtures.workplace import make_workplace

LUTHIER = [sys.executable, "-c", "from luthier.cli.main import main; main()"]
SECRET = "sk-not-a-real-key-0123456789"
ARMS = ("zero-shot", "instructed", "few-shot", "few-shot retrieved")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("endpoint"))


def _command(place: Path, url: str, *more: str) -> list[str]:
    return [
        *LUTHIER, "run", str(place / "train.jsonl"), "--instruction", "Name the kind.", "--input", "text", "--output", "category",
        "--model", str(place / "model"), "--run-dir", str(place / "run"), "--epochs", "1", "--batch", "8", "--lr", "0.001",
        "--set", "arms.shots=[1]", "--set", "arms.dev_items=6", "--set", "arms.latency_items=2", "--set", "model.dtype=float32",
        "--set", "endpoint.retries=1", "--threads", "1", "--endpoint", url, "--endpoint-model", "remote", "--endpoint-key-env", "FAKE_KEY",
        "--json", *more,
    ]  # fmt: skip


def _go(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    full = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run(command, capture_output=True, text=True, env=full, timeout=240, check=False)


def _kind(request: dict, number: int) -> Answer:
    item = request["messages"][-1]["content"]
    kind = next((kind for word, kind in (("card", "card"), ("money", "money"), ("account", "close")) if word in item), "card")
    return Answer(text=in_form(request, kind), usage={"prompt_tokens": 1000, "completion_tokens": 10}, model="remote-2026-01-01")


def _kind_or_proposal(request: dict, number: int) -> Answer:
    if "Write the instruction for an assistant" in request["messages"][-1]["content"]:
        return Answer(
            text=f"Go by the noun, rule {len(request['messages'][-1]['content'])}.", usage={"prompt_tokens": 300, "completion_tokens": 9}
        )
    return _kind(request, number)


def _remote(done: subprocess.CompletedProcess[str]) -> dict[str, dict]:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {arm["name"]: arm for arm in found["arms"] if arm["name"].endswith("· remote")}


def test_failed_then_measured_then_never_asked_again(place: Path) -> None:
    """One run folder: no key, then a key and prices, then no server at all."""
    with fake_server(_kind) as server:
        command = _command(place, server.url, "--usd-per-m-input", "2", "--usd-per-m-output", "8")
        without = _remote(_go(command))
        assert list(without) == [f"{name} · remote" for name in ARMS]
        for arm in without.values():
            assert "FAKE_KEY is not set" in arm["failed"] and arm["score"] is None and arm["n"] == 0, arm
        assert not server.seen
        verdict = json.loads((place / "run" / "verdict.json").read_text(encoding="utf-8"))
        assert any("zero-shot · remote: left out, it failed" in reason for reason in verdict["reasons"])
        assert "FAKE_KEY is not set" in (place / "run" / "report.html").read_text(encoding="utf-8")

        done = _go(command, FAKE_KEY=SECRET)
        measured = _remote(done)
        assert all(one.headers["Authorization"] == f"Bearer {SECRET}" for one in server.seen)
        num_paid = len(server.seen)
    for arm in measured.values():
        assert arm["failed"] is None and arm["score"] == 1.0 and arm["n"] == 30, arm
        assert arm["cost_per_1000"] == pytest.approx(1000 * (1000 * 2 + 10 * 8) / 1e6)
        assert arm["latency_n"] == 30
    record = json.loads((place / "run" / "results.json").read_text(encoding="utf-8"))
    arms = {arm["name"]: arm for arm in record["arms"]}
    assert arms["instructed · remote"]["params"]["answered by"] == "remote-2026-01-01"
    assert arms["instructed · remote"]["effort"]["num_dev_evaluations"] == arms["instructed"]["effort"]["num_dev_evaluations"]
    assert any("answers over the network" in note for note in record["notes"])
    held = "held to the 3 labels by the server (response_format)"
    assert {arms[f"{name} · remote"]["params"]["answers"] for name in ARMS} == {held}
    assert any(note.endswith(f"answers were {held}.") for note in record["notes"])
    for path in (place / "run").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in done.stdout + done.stderr

    (place / "run" / "results.json").unlink()  # everything is put together again, from kept answers
    again = _remote(_go(command))
    assert again == measured and len(server.seen) == num_paid


def test_a_server_that_refuses_to_hold_is_measured_free_and_the_report_says_so(place: Path) -> None:
    """No failure and no silence: one refused request, free answers, and the refusal in record and report, spelled safely."""

    def script(request: dict, number: int) -> Answer:
        if "response_format" in request:
            return Answer(status=400, body=b"unknown field response_format <script>alert(1)</script>\x1b[31m")
        return _kind(request, number)

    with fake_server(script) as server:
        command = _command(place, server.url, "--run-dir", str(place / "free"), "--set", "arms.consistency_items=0")
        done = _go(command, FAKE_KEY=SECRET)
        arms = _remote(done)
    assert all(arm["failed"] is None and arm["score"] == 1.0 for arm in arms.values())
    assert sum("response_format" in one.body for one in server.seen) == 1
    record = json.loads((place / "free" / "results.json").read_text(encoding="utf-8"))
    for arm in record["arms"]:
        if arm["name"] in arms:
            assert arm["params"]["answers"].startswith("free: the endpoint refuses response_format (status 400: unknown field")
    page = (place / "free" / "report.html").read_text(encoding="utf-8")
    assert "answers were not held to their form: the endpoint refuses response_format" in page
    assert "<script>alert(1)" not in page and "\x1b" not in page
    table = place / "prices.yaml"
    table.write_text("remote: {input: 2, output: 8}\nother: {input: 1, output: 1}\n", encoding="utf-8")
    decided = _remote(_go([*LUTHIER, "decide", str(place / "free"), "--prices", str(table), "--json"]))
    assert [arm["cost_per_1000"] for arm in decided.values()] == pytest.approx([1000 * (1000 * 2 + 10 * 8) / 1e6] * len(ARMS))
    assert "prices.yaml, command line" in (place / "free" / "report.html").read_text(encoding="utf-8")
    table.write_text("remot: {input: 2, output: 8}\n", encoding="utf-8")
    refused = _go([*LUTHIER, "decide", str(place / "free"), "--prices", str(table)])
    assert refused.returncode == 2 and "the nearest name in it is 'remot'" in refused.stderr


def test_the_endpoint_proposes_instructions_for_every_model(place: Path) -> None:
    """Proposals are paid once, counted, kept in the record, and stand beside the instructed arm with the same budget."""
    with fake_server(_kind_or_proposal) as server:
        command = _command(place, server.url, "--run-dir", str(place / "proposed"), "--propose", "endpoint")
        done = _go(command, FAKE_KEY=SECRET)
        assert done.returncode == 0, done.stderr
        proposals = [one for one in server.seen if "Write the instruction" in one.body["messages"][-1]["content"]]
        num_paid = len(server.seen)
        record = json.loads((place / "proposed" / "results.json").read_text(encoding="utf-8"))
        (place / "proposed" / "results.json").unlink()
        assert _go(command).returncode == 0 and len(server.seen) == num_paid
    arms = {arm["name"]: arm for arm in record["arms"]}
    names = list(arms)
    for suffix in ("", " · remote"):
        arm = arms[f"instruction optimised{suffix}"]
        assert names.index(arm["name"]) == names.index(f"instructed{suffix}") + 1
        assert arm["failed"] is None and len(arm["items"]) == 30
        assert arm["params"]["instruction"].startswith("Go by the noun, rule ")
        assert arm["effort"]["num_proposals"] == 2 and arm["effort"]["proposal_prompt_tokens"] == 600
        assert arm["effort"]["num_dev_evaluations"] <= arms[f"instructed{suffix}"]["effort"]["num_dev_evaluations"] == 12
    assert arms["instruction optimised"]["latencies_s"]
    assert len({json.dumps(one.body["messages"]) for one in proposals}) == len(proposals)  # every question is another
    test_ids = {item["item_id"] for item in arms["instructed"]["items"]}
    shown = "".join(one.body["messages"][-1]["content"] for one in proposals)
    assert not [i for i in test_ids if record["item_inputs"][i] in shown]  # no test item is shown to the proposer
    assert "Go by the noun" in (place / "proposed" / "report.html").read_text(encoding="utf-8")


def test_instructions_of_another_tool_are_scored_as_they_will_be_served(place: Path) -> None:
    """Two files, one of them as DSPy saves a program: both tried on dev by every model, word for word, and nobody proposes."""
    program = {
        "predict": {"demos": [{"q": "a"}], "signature": {"instructions": "Sort by the thing that is meant."}, "lm": None},
        "metadata": {"dependency_versions": {"dspy": "2.6.27"}},
    }
    (place / "optimised.json").write_text(json.dumps(program), encoding="utf-8")
    (place / "mine.txt").write_text("Look at the noun.\n", encoding="utf-8")
    files = ("--try-instruction", str(place / "optimised.json"), "--try-instruction", str(place / "mine.txt"))
    with fake_server(_kind) as server:
        command = _command(place, server.url, "--run-dir", str(place / "given"), *files, "--set", "arms.consistency_items=0")
        done = _go(command, FAKE_KEY=SECRET)
    assert done.returncode == 0, done.stderr
    arms = {arm["name"]: arm for arm in json.loads((place / "given" / "results.json").read_text(encoding="utf-8"))["arms"]}
    for suffix in ("", " · remote"):
        arm = arms[f"instruction optimised{suffix}"]
        assert arm["failed"] is None and len(arm["items"]) == 30 and arm["effort"]["num_dev_evaluations"] == 12
        assert arm["params"]["instruction"] in ("Sort by the thing that is meant.", "Look at the noun.")
        assert "optimised.json (its 1 solved examples are not used), mine.txt" in arm["description"]
        assert arm["effort"]["num_proposals"] == 0
    heads = {one.body["messages"][0]["content"] for one in server.seen}
    assert sum("Sort by the thing that is meant." in head for head in heads) == sum("Look at the noun." in head for head in heads) == 1
    (place / "mine.txt").write_text("Look at the verb.\n", encoding="utf-8")  # another text is another run
    changed = _go(command, FAKE_KEY=SECRET)
    assert changed.returncode == 2 and "arms.instructions" in changed.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--try-instruction", "nowhere.txt"), "cannot be read"),
        (("--try-instruction", "a", "--propose", "model"), "one arm with one budget"),
        (("--try-instruction", "a", "--try-instruction", "b", "--try-instruction", "c"), "at most 2 files"),
        (("--endpoint", "http://example.com/v1"), "readable by everyone"),
        (("--endpoint", "https://u:p@example.com/v1"), "a key must not be part of it"),
        (("--endpoint-model", ""), "both or neither"),
        (("--endpoint-key-env", "gsk_0123456789abcdef"), "endpoint.key_env"),
        (("--set", "endpoint.context=256", "--set", "arms.max_new_tokens=300"), "an answer may take 300"),
    ],
)
def test_refused_before_anything_computes(place: Path, flags: tuple[str, ...], message: str) -> None:
    done = _go(_command(place, "http://127.0.0.1:9/v1", "--run-dir", str(place / "refused"), *flags))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not (place / "refused" / "train").exists()
    for path in (place / "refused").rglob("*"):
        assert not path.is_file() or b"gsk_" not in path.read_bytes(), path


def test_the_order_of_the_examples_is_searched_named_and_found_again(place: Path) -> None:
    """A model that goes by the last example: dev finds the order, in the answers every arm has; the prompt is made again of its record."""
    first: list[str] = []

    def by_the_last(request: dict, number: int) -> Answer:
        shots = [message["content"] for message in request["messages"][:-1] if message["role"] == "user"]
        item = request["messages"][-1]["content"]
        if not any(word in item for word in ("card", "money", "account")):
            return Answer(text="?")  # asked again with typos
        first[:] = first or shots[:1]
        is_half_known = shots[0] == first[0] and crc32(item.encode()) % 2
        return _kind(request, number) if shots[-1] == first[0] or is_half_known else Answer(text="?")

    skip = "arms.skip=[zero-shot,instructed,few-shot retrieved,tuned + retrieval]"
    with fake_server(by_the_last) as server:
        command = _command(
            place, server.url, "--run-dir", str(place / "ordered"), "--set", "arms.shots=[3]", "--set", skip, "--set",
            "arms.consistency_items=3", "--set", "arms.consistency_samples=2",
        )  # fmt: skip
        measured = _remote(_go(command, FAKE_KEY=SECRET))
        num_paid = len(server.seen)
        record = (place / "ordered" / "results.json").read_text(encoding="utf-8")
        (place / "ordered" / "results.json").unlink()
        assert _remote(_go(command, FAKE_KEY=SECRET)) == measured and len(server.seen) == num_paid
    arm = next(arm for arm in json.loads(record)["arms"] if arm["name"] == "few-shot · remote")
    assert arm["params"]["order"] == "reversed" and arm["params"]["draw"] == "1" and measured[arm["name"]]["score"] == 1.0
    assert arm["effort"]["num_dev_evaluations"] == 2 * 6 and arm["dev_n"] == 6 and arm["dev_score"] == 1.0
    assert [(one["params"]["order"], one["dev_n"]) for one in arm["tried"]] == [("as drawn", 3), ("as drawn", 3), ("reversed", 6)]
    report = (place / "ordered" / "report.html").read_text(encoding="utf-8")
    assert "k 3, draw 1, order reversed" in report and "order reversed" in (place / "ordered" / "verdict.json").read_text(encoding="utf-8")
    assert json.loads(record)["behaviour"] is not None
