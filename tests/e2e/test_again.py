"""The recipe trained again: from another seed, on parts of the rows, on shuffled labels. The real command on a tiny model."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.e2e.test_run import _command, _content, _env, _go, _rows
from tests.fixtures.tiny_model import make_tiny_model

from luthier.core.errors import InputError
from luthier.core.types import TokenRow
from luthier.pipeline.again import nested_rows, refuse_short_curve
from luthier.pipeline.settings import load_settings

MORE = ["--learning-curve", "--train-seeds", "2"]
SKIP = ["--set", "arms.skip=[instructed,few-shot,few-shot retrieved,tuned + retrieval]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("again")
    make_tiny_model(root / "model")
    rows = _rows(150, seed=1)
    labels = [row["category"] for row in rows]
    random.Random("test/shuffled labels").shuffle(labels)
    shuffled = [{**row, "category": label} for row, label in zip(rows, labels, strict=True)]
    for name, made in (("train", rows), ("test", _rows(60, seed=2)), ("shuffled", shuffled)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def finished(place: Path) -> dict:
    done = _go([*_command(place, "plain"), *SKIP])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def added(place: Path, finished: dict) -> dict:
    """Asked for after the run was finished: nothing is measured again, only what was missing is added."""
    before = _content(place / "plain")
    done = _go([*_command(place, "plain"), *SKIP, *MORE])
    assert done.returncode == 0, done.stderr
    after = _content(place / "plain")
    assert {name: after["answers"][name] for name in before["answers"]} == before["answers"]
    assert (after["hashes"], after["losses"]) == (before["hashes"], before["losses"])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _learning(run: Path) -> dict:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))["learning"]


def test_seeds_and_parts_are_added_to_a_finished_run(added: dict, place: Path) -> None:
    assert "tuned, seed 1" in [arm["name"] for arm in added["arms"]]
    assert [p["num_examples"] for p in added["learning_curve"]] == [135 // 8, 135 // 4, 135 // 2, 135]
    assert all(p["n"] == 60 for p in added["learning_curve"])
    assert any("more examples" in remark for remark in added["remarks"]) and any("As a recipe" in remark for remark in added["remarks"])
    learning = _learning(place / "plain")
    assert learning["is_declared"] is False and learning["predicted_seconds"] > 0
    assert not list((place / "plain" / "again").rglob("checkpoints"))
    page = (place / "plain" / "report.html").read_text(encoding="utf-8")
    assert "Would more examples help?" in page and "Where the tuned arm errs" in page and 'id="learning-title"' in page


def test_repeating_trains_nothing(added: dict, place: Path) -> None:
    weights = sorted((place / "plain" / "again").rglob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    assert len(weights) == 4
    done = _go([*_command(place, "plain"), *SKIP, *MORE])
    assert json.loads(done.stdout.strip().splitlines()[-1])["learning_curve"] == added["learning_curve"]
    assert [path.stat().st_mtime_ns for path in weights] == before


@pytest.mark.slow
def test_killed_and_repeated_is_the_same_curve(added: dict, place: Path) -> None:
    """Declared with the run, killed while it trains again: the same points as those added later, bit for bit."""
    command = [*_command(place, "killed"), *SKIP, *MORE]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_env())
    deadline = time.monotonic() + 120
    while not (place / "killed" / "again").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = _go(command)
    assert done.returncode == 0, done.stderr
    points = [[(i["item_id"], i["text"]) for i in p["arm"]["items"]] for p in _learning(place / "killed")["points"]]
    assert points == [[(i["item_id"], i["text"]) for i in p["arm"]["items"]] for p in _learning(place / "plain")["points"]]
    assert _learning(place / "killed")["is_declared"] is True


def test_too_few_rows_for_a_curve_are_refused() -> None:
    asked = load_settings(None, {"arms.learning_curve": True})
    with pytest.raises(InputError, match="64 training rows, there are 40"):
        refuse_short_curve(asked, 40)
    refuse_short_curve(asked, 64)
    refuse_short_curve(load_settings(None, {}), 2)


def test_parts_are_nested_and_a_function_of_the_seed() -> None:
    rows = [TokenRow(example_id=str(i), input_ids=(i,), is_label=(True,)) for i in range(100)]
    eighth, half = nested_rows(rows, 12, seed=3), nested_rows(rows, 50, seed=3)
    assert set(eighth) < set(half) and len(half) == 50
    assert eighth == nested_rows(rows, 12, seed=3) != nested_rows(rows, 12, seed=4)
    assert nested_rows(rows, 100, seed=3) == tuple(rows)


def test_training_on_shuffled_labels_never_beats_the_nearest_neighbour(finished: dict, place: Path) -> None:
    """Labels that say nothing teach the form of an answer and nothing more; if they taught more, test answers would have leaked."""
    command = [str(place / "shuffled.jsonl") if word == str(place / "train.jsonl") else word for word in _command(place, "shuffled")]
    done = _go([*command, *SKIP, "--epochs", "3"])
    assert done.returncode == 0, done.stderr
    scores = {arm["name"]: arm for arm in json.loads(done.stdout.strip().splitlines()[-1])["arms"]}
    clean = next(arm for arm in finished["arms"] if arm["name"] == "nearest neighbour")
    assert scores["tuned"]["high"] < clean["low"]
    verdict = json.loads((place / "shuffled" / "verdict.json").read_text(encoding="utf-8"))
    against = {c["b"]: c for c in verdict["secondary"] if c["a"] == verdict["best_tuned"] and c["b"] in ("nearest neighbour", "majority")}
    assert set(against) == {"nearest neighbour", "majority"}
    assert all(c["low95"] <= 0 for c in against.values())
