"""Continued pre-training: raw text in, through the real command; every token is trained and the loss falls."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.tiny_model import make_tiny_model

from luthier.cli.main import main
from luthier.core.types import Example
from luthier.models.tokenizer import open_tokenizer
from luthier.tokens.template import open_chat

WORDS = ("the loom", "a heddle", "warp and weft", "the reed", "is threaded", "is beaten", "before noon", "with care", "by hand", "twice")


def _text(n: int) -> str:
    rng = random.Random("0/text")
    return "\n\n".join(f"Page {i}: {' '.join(rng.choice(WORDS) for _ in range(6 + i % 9))}." for i in range(n)) + "\n"


def _train(
    path: Path, model: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    how = (*more, "--epochs", "4", "--batch", "8", "--lr", "5e-3", "--threads", "1", "--set", "model.dtype=float32", "--json")
    monkeypatch.setattr(sys, "argv", ["luthier", "train", str(path), "--model", str(model), "--run-dir", str(run_dir), *how])
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    assert left.value.code in (0, None), err
    return json.loads(out.strip().splitlines()[-1])


@pytest.mark.parametrize("bos_first", [False, True])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_raw_text_is_trained_on_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, bos_first: bool
) -> None:
    model = make_tiny_model(tmp_path / "model", bos_first=bos_first)
    path = tmp_path / f"pages.{kind}"
    pages = _text(120).strip().split("\n\n")
    path.write_text(_text(120) if kind == "txt" else "".join(json.dumps({"text": page}) + "\n" for page in pages), encoding="utf-8")
    found = _train(path, model, tmp_path / "run", monkeypatch, capsys)
    assert found["losses"][-1] < 0.6 * found["losses"][0]
    assert found["dev_losses"][-1][1] < 0.7 * found["losses"][0]  # pages it never saw are of the same language

    steps = [json.loads(line) for line in (tmp_path / "run" / "journal" / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = (tmp_path / "run" / "split" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [Example(**json.loads(line)) for line in lines]
    encoder = open_chat(open_tokenizer(model))
    num_tokens = sum(encoder.count_tokens(row.response) + 1 for row in rows)  # and the end of each
    first_epoch = steps[: -(-len(rows) // 8)]
    assert {row.response for row in rows} <= set(pages)
    # every token is a label but the very first, which nothing stands before; BOS stands there where the model has one
    assert sum(step["num_label_tokens"] for step in first_epoch) == num_tokens - (0 if bos_first else len(rows))
    assert sum(step["num_row_tokens"] for step in first_epoch) == num_tokens + (len(rows) if bos_first else 0)


def test_documents_longer_than_a_row_are_trained_on_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny_model(tmp_path / "model")
    pages = _text(120).strip().split("\n\n")
    documents = [" ".join(pages[i : i + 6]) for i in range(0, 120, 3)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    found = _train(tmp_path / "long.jsonl", model, tmp_path / "run", monkeypatch, capsys, "--max-length", "32")
    assert found["losses"][-1] < 0.6 * found["losses"][0]
    run = tmp_path / "run"
    steps = [json.loads(line) for line in (run / "journal" / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line)["response"] for line in (run / "split" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    encoder = open_chat(open_tokenizer(model))
    assert min(encoder.count_tokens(text) for text in rows) > 64
    per_epoch = len(steps) // 4
    assert sum(step["num_label_tokens"] for step in steps[:per_epoch]) == sum(encoder.count_tokens(text) for text in rows)
