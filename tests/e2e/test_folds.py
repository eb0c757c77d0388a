"""Cross-fitting: every row a test row once, by a model that has not seen it. Folds as data, then the real command on a tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.e2e.test_run import LUTHIER, _env, _go, _rows
from tests.fixtures.tiny_model import make_tiny_model
from tests.unit.data_check.make_rows import pairs, row, rows, sentences
from tests.unit.verdict.made_arms import arm, contest, rule

from luthier.core.errors import ConfigError, InputError
from luthier.core.tried import Tried
from luthier.data.duplicates import find_duplicates
from luthier.pipeline.folds import fold_splits, pool, read_whole
from luthier.pipeline.settings import load_settings
from luthier.verdict.rules import decide

TEXTS = sentences(60, name="folds")


def test_each_row_is_tested_once_and_never_by_a_model_that_saw_it_or_its_twin() -> None:
    made = [row(text, f"label {i % 3}") for i, text in enumerate(TEXTS)]
    given = rows([*made, *(replace(made[i], input=f"{made[i].input.upper()} !") for i in range(6))])
    clusters = find_duplicates(given).clusters
    splits = fold_splits(given, clusters, folds=5, seed=0, dev_rows=6)
    tested = [item.id for split in splits for item in split.test]
    assert sorted(tested) == sorted(item.id for item in given)
    for split in splits:
        assert 11 <= len(split.test) <= 16
        assert {item.response for item in split.test} == {"label 0", "label 1", "label 2"}
        seen = {clusters[item.id] for item in (*split.train, *split.dev)}
        assert not seen & {clusters[item.id] for item in split.test}
    shuffled = fold_splits(given[::-1], clusters, folds=5, seed=0, dev_rows=6)
    assert [[item.id for item in split.test] for split in shuffled] == [[item.id for item in split.test] for split in splits]
    assert fold_splits(given, clusters, folds=5, seed=1, dev_rows=6)[0].test != splits[0].test


def test_too_few_rows_or_groups_are_refused() -> None:
    few = pairs(*((text, "yes") for text in TEXTS[:20]))
    with pytest.raises(InputError, match="20 rows for 5 folds") as caught:
        fold_splits(few, {}, folds=5, seed=0, dev_rows=None)
    assert "--folds 3" in caught.value.fix
    with pytest.raises(InputError, match="too few for 3 folds"):
        fold_splits(few, {item.id: f"c{i % 4}" for i, item in enumerate(few)}, folds=3, seed=0, dev_rows=None)


def test_settings_that_make_no_sense_with_folds_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"instruction": "i", "input": text, "output": "yes"}) + "\n" for text in TEXTS), encoding="utf-8")
    for key, value in (("data.test_rows", 10), ("arms.train_seeds", 3), ("data.test", str(data))):
        settings = load_settings(None, {"data.paths": [str(data)], "data.folds": 5, key: value})
        with pytest.raises(ConfigError) as caught:
            read_whole(settings)
        assert caught.value.where == key


def test_a_curve_without_rows_in_each_fold_is_refused_before_anything_computes(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"instruction": "i", "input": text, "output": "yes"}) + "\n" for text in TEXTS), encoding="utf-8")
    settings = load_settings(None, {"data.paths": [str(data)], "data.folds": 3, "arms.learning_curve": True})
    with pytest.raises(InputError, match=r"a learning curve needs 64 training rows, there are 3\d in the smallest fold") as caught:
        read_whole(settings)
    assert "more --folds" in caught.value.fix


def test_pooled_arms_hold_every_item_and_every_choice() -> None:
    first = arm("few-shot", [1.0, 0.0], family="prompt", dev=0.4, params={"k": "2", "order": "last"})
    second = arm("few-shot", [1.0], family="prompt", dev=0.8, params={"k": "4", "order": "last"})
    tried = Tried(params={"k": "2"}, dev_n=3, dev_score=0.4, num_prompt_tokens=9, num_new_tokens=3, seconds=1.0)
    [whole] = pool([[replace(first, tried=(tried,))], [replace(second, tried=(tried,))]])
    assert [dict(one.params) for one in whole.tried] == [{"fold": "1", "k": "2"}, {"fold": "2", "k": "2"}]
    assert len(whole.items) == 3 and whole.dev_score == pytest.approx(0.6) and whole.dev_n == 200
    assert whole.params == {"k": "2 | 4 (by fold)", "order": "last"}
    [broken] = pool([[first], [arm("few-shot", [], family="prompt", failed="out of memory")]])
    assert broken.failed == "fold 2: out of memory" and broken.items == ()


def test_a_cross_fitted_verdict_is_leaning_at_most_and_says_so() -> None:
    arms = contest(400, 100, 200, 20)
    assert decide(arms, rule()).strength == "strong"
    found = decide(arms, rule(num_folds=5))
    assert (found.code, found.strength) == ("fine_tune_better", "leaning")
    assert "cross-fitting over 5 trainings" in found.sentence
    assert not any("--train-seeds" in remark for remark in found.remarks)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folds")
    make_tiny_model(root / "model")
    (root / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in _rows(108, seed=1)), encoding="utf-8")
    return root


def _command(place: Path, run_dir: str) -> list[str]:
    return [
        *LUTHIER, "run", str(place / "rows.jsonl"), "--folds", "3", "--instruction", "Name the kind.", "--input", "text", "--output",
        "category", "--model", str(place / "model"), "--run-dir", str(place / run_dir), "--epochs", "1", "--lr", "1e-3", "--dev-rows", "6",
        "--set", "arms.shots=[1]", "--set", "arms.dev_items=6", "--set", "arms.latency_items=1", "--set", "model.dtype=float32",
        "--set", "arms.skip=[instructed,few-shot,tuned + retrieval]", "--threads", "1", "--json",
    ]  # fmt: skip


def _answers(run: Path) -> dict:
    record = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return {arm["name"]: [(item["item_id"], item["text"]) for item in arm["items"]] for arm in record["arms"]}


def test_the_command_tests_all_rows_and_goes_on_where_it_was_cut_off(place: Path) -> None:
    done = _go(_command(place, "whole"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["strength"] in ("leaning", "none")
    record = json.loads((place / "whole" / "results.json").read_text(encoding="utf-8"))
    assert record["num_folds"] == 3 and record["data"]["num_test"] == 108
    assert all(arm["n"] == 108 for arm in result["arms"])
    trained = [json.loads(path.read_text())["weights_sha256"] for path in (place / "whole").glob("folds/*/train/train.json")]
    assert len({*trained, record["train"]["weights_sha256"]}) == 4
    assert "cross-fitting" in (place / "whole" / "report.html").read_text(encoding="utf-8")

    process = subprocess.Popen(_command(place, "cut"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_env())
    time.sleep(8)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    done = _go(_command(place, "cut"))
    assert done.returncode == 0, done.stderr
    assert _answers(place / "cut") == _answers(place / "whole")

    before = _answers(place / "whole")
    done = _go([*_command(place, "whole"), "--learning-curve"])
    assert done.returncode == 0, done.stderr
    record = json.loads((place / "whole" / "results.json").read_text(encoding="utf-8"))
    assert _answers(place / "whole") == before  # nothing was measured again
    curve = record["learning"]
    assert [point["num_rows"] for point in curve["points"]] == [8, 16, 33] and curve["full_rows"] == 66 and not curve["is_declared"]
    everyone = {item["item_id"] for item in record["arms"][0]["items"]}
    assert all({item["item_id"] for item in point["arm"]["items"]} == everyone for point in curve["points"])
    assert len(list((place / "whole").glob("folds/*/again/*/train/train.json"))) == 9
    assert [point["num_examples"] for point in json.loads(done.stdout.strip().splitlines()[-1])["learning_curve"]] == [8, 16, 33, 66]
    report = (place / "whole" / "report.html").read_text(encoding="utf-8")
    assert "Each point is 3 trainings, one a fold" in report and "the model handed over was trained on 102" in report
    assert "--train-seeds 3 does" not in report
