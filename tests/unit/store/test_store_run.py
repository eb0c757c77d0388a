from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from luthier.core.errors import RunError
from luthier.core.types import Generation
from luthier.store.cache import GenerationCache
from luthier.store.index import rebuild_index
from luthier.store.journal import append, read
from luthier.store.layout import RunFolder, clear, hold_to, open_run
from luthier.store.manifest import different, read_manifest
from luthier.store.stages import finish_stage, stage_is_done


@dataclass(frozen=True)
class Fake:
    """Settings as a run folder sees them."""

    facts: Mapping[str, object] = field(default_factory=lambda: {"train.lora_r": 16, "data.paths[0]": "sha256 aa", "seed": 0})
    free: Mapping[str, object] = field(default_factory=lambda: {"threads": None, "train.save_every": 50})
    fresh: bool = False

    def identity(self) -> Mapping[str, object]:
        return self.facts

    def benign(self) -> Mapping[str, object]:
        return self.free

    def to_yaml(self) -> str:
        return "seed: 0\n"


def events(folder: RunFolder) -> list[str]:
    return [record["event"] for record in read(folder.journal_events)]


def compute(folder: RunFolder) -> None:
    """From here on the folder is bound to its settings."""
    append(folder.journal_generations, {"x": 1})


def test_opening_makes_a_run_and_opening_again_resumes_it(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "run"
    with open_run(root, Fake()) as folder:
        assert folder == RunFolder(root)
        assert folder.manifest.is_file() and folder.config.read_text(encoding="utf-8") == "seed: 0\n"
        assert json.loads(folder.owner.read_text(encoding="utf-8")) == {"pid": os.getpid()}
    assert not folder.owner.exists()
    with open_run(root, Fake()):
        pass
    assert events(folder) == ["created", "resumed"]


SEMANTIC = {
    "data row": ("data.paths[0]", "sha256 bb"),
    "base model": ("model.sha256", "ff"),
    "LoRA r": ("train.lora_r", 8),
    "LR": ("train.lr", 1e-4),
    "length": ("model.max_length", 512),
    "seed": ("seed", 1),
    "dtype": ("model.dtype", "float32"),
    "template": ("model.template", "cc"),
    "metric": ("decide.metric", "exact"),
}


@pytest.mark.parametrize("key", SEMANTIC)
def test_a_change_of_meaning_is_refused_with_the_difference(tmp_path: Path, key: str) -> None:
    facts = {name: "before" for name, _ in SEMANTIC.values()}
    with open_run(tmp_path / "r", Fake(facts)) as folder:
        compute(folder)
        before = folder.manifest.read_bytes()
    name, value = SEMANTIC[key]
    with pytest.raises(RunError) as caught, open_run(tmp_path / "r", Fake({**facts, name: value})):
        pass
    assert f'{name}: was "before", now {json.dumps(value)}' in caught.value.message
    assert "--run-dir NEW" in caught.value.fix and "--fresh" in caught.value.fix
    assert folder.manifest.read_bytes() == before
    with open_run(tmp_path / "r", Fake(facts)):  # and the lock was let go
        pass


def test_a_benign_change_is_taken_and_written_down(tmp_path: Path) -> None:
    with open_run(tmp_path / "r", Fake()) as folder:
        compute(folder)
    with open_run(tmp_path / "r", Fake(free={"threads": 2, "train.save_every": 50})) as folder:
        pass
    changed = [record for record in read(folder.journal_events) if record["event"] == "changed"]
    assert [record["changes"] for record in changed] == [["threads: was null, now 2"]]
    assert read_manifest(folder.manifest).benign["threads"] == 2


def test_facts_learnt_later_are_held_to_as_well(tmp_path: Path) -> None:
    with open_run(tmp_path / "r", Fake()) as folder:
        hold_to(folder, {"model.sha256": "aa"})
        hold_to(folder, {"model.sha256": "aa"})
        compute(folder)
    with open_run(tmp_path / "r", Fake()) as folder, pytest.raises(RunError, match=r'model\.sha256: was "aa", now "bb"'):
        hold_to(folder, {"model.sha256": "bb"})


def test_a_call_that_was_refused_before_it_computed_binds_nobody(tmp_path: Path) -> None:
    with pytest.raises(RunError), open_run(tmp_path / "r", Fake({"data.input": "txt"})) as folder:
        raise RunError("no such column", where="q.csv", fix="--input text")
    with open_run(tmp_path / "r", Fake({"data.input": "text"})) as folder:
        assert read_manifest(folder.manifest).identity == {"data.input": "text"}


def test_fresh_starts_over_but_leaves_what_is_not_ours(tmp_path: Path) -> None:
    with open_run(tmp_path / "r", Fake()) as folder:
        append(folder.journal_generations, {"x": 1})
        (folder.adapter).mkdir()
        folder.results.write_text("{}", encoding="utf-8")
        (folder.root / "my notes.txt").write_text("keep", encoding="utf-8")
    with open_run(tmp_path / "r", Fake({"train.lora_r": 8}, fresh=True)) as folder:
        assert not folder.results.exists() and not folder.adapter.exists() and not folder.journal_generations.exists()
        assert events(folder) == ["created"]
    assert (tmp_path / "r" / "my notes.txt").read_text(encoding="utf-8") == "keep"


def test_fresh_mends_a_damaged_manifest(tmp_path: Path) -> None:
    with open_run(tmp_path / "r", Fake()) as folder:
        folder.manifest.write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match="damaged") as caught, open_run(tmp_path / "r", Fake()):
        pass
    assert "--fresh" in caught.value.fix
    with open_run(tmp_path / "r", Fake(fresh=True)):
        pass


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_other_things_is_never_touched(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(RunError, match=r"adapter, thesis\.tex and is not a run"), open_run(tmp_path, Fake(fresh=fresh)):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "thesis.tex"]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="this is a file"), open_run(tmp_path / "f", Fake()):
        pass


def test_killed_between_lock_and_manifest_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "owner.json").write_text('{"pid": 1}', encoding="utf-8")
    (tmp_path / ".tmp-manifest.json-1-aa").touch()
    with open_run(tmp_path, Fake()) as folder:
        assert not list(tmp_path.glob(".tmp-*"))
    assert events(folder) == ["created"]


HOLD = """
import sys, pathlib, time
sys.path.insert(0, sys.argv[2])
from test_store_run import Fake
from luthier.store.layout import open_run
with open_run(pathlib.Path(sys.argv[1]), Fake()):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_elsewhere(root: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), str(Path(__file__).parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def test_a_second_process_is_refused_within_a_second_and_told_who_works_there(tmp_path: Path) -> None:
    with hold_elsewhere(tmp_path / "r") as holder:
        start = time.monotonic()
        with pytest.raises(RunError) as caught, open_run(tmp_path / "r", Fake()):
            pass
        assert time.monotonic() - start <= 1.0
        assert f"process {holder.pid} is working on this run" in caught.value.message and f"kill {holder.pid}" in caught.value.fix
        holder.communicate("")
    with open_run(tmp_path / "r", Fake()):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with hold_elsewhere(tmp_path / "r") as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with open_run(tmp_path / "r", Fake()) as folder:
            pass
        last = list(read(folder.journal_events))[-1]
        assert last["event"] == "resumed" and last["taken_over_from_pid"] == holder.pid


def test_a_read_only_place_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(RunError, match="Permission denied"), open_run(tmp_path / "r", Fake()):
        pass


def test_stage_is_done_only_with_the_same_inputs_and_unchanged_files(tmp_path: Path) -> None:
    with open_run(tmp_path / "r", Fake()) as folder:
        folder.check.write_text("found", encoding="utf-8")
        assert not stage_is_done(folder, "check", "d1")
        finish_stage(folder, "check", "d1", [folder.check])
        assert stage_is_done(folder, "check", "d1") and not stage_is_done(folder, "check", "d2")
        folder.check.write_text("fOund", encoding="utf-8")  # same size, one bit
        assert not stage_is_done(folder, "check", "d1")
        folder.check.unlink()
        assert not stage_is_done(folder, "check", "d1")
        with pytest.raises(ValueError, match="subpath"):
            finish_stage(folder, "check", "d1", [tmp_path / "elsewhere"])


def test_doing_a_stage_again_undoes_the_later_ones(tmp_path: Path) -> None:
    with open_run(tmp_path / "r", Fake()) as folder:
        for name in ("check", "split", "train"):
            finish_stage(folder, name, "d1", [])
        finish_stage(folder, "split", "d2", [])
        assert stage_is_done(folder, "check", "d1") and stage_is_done(folder, "split", "d2") and not stage_is_done(folder, "train", "d1")


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd"])
def test_a_manifest_cannot_point_outside_the_run(tmp_path: Path, path: str) -> None:
    with open_run(tmp_path / "r", Fake()) as folder:
        (tmp_path / "outside").write_text("", encoding="utf-8")
        finish_stage(folder, "check", "d", [])
        manifest = json.loads(folder.manifest.read_text(encoding="utf-8"))
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        manifest["stages"]["check"]["outputs"] = [{"path": path, "size": 0, "sha256": empty}]
        folder.manifest.write_text(json.dumps(manifest), encoding="utf-8")
        assert not stage_is_done(folder, "check", "d")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 50_000,
        '{"schema": 1, "identity": 3, "benign": {}, "stages": {}}',
        '{"schema": 1, "identity": {}, "benign": {}, "stages": {"a": 1}}',
    ],
)
def test_a_damaged_manifest_is_a_typed_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match="damaged"):
        read_manifest(tmp_path / "manifest.json")


def test_a_manifest_of_another_version_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": 99}', encoding="utf-8")
    with pytest.raises(RunError, match="another version"):
        read_manifest(tmp_path / "manifest.json")


def test_long_values_are_cut_to_where_they_differ() -> None:
    [line] = different({"k": "a" * 300 + "X" + "b" * 300}, {"k": "a" * 300 + "Y" + "b" * 300})
    assert "X" in line and "Y" in line and len(line) < 160


def test_clear_without_anything_there(tmp_path: Path) -> None:
    clear(RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_index_answers_questions_and_can_be_thrown_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    numbers = {"latency_s": 0.5, "num_prompt_tokens": 3, "num_cached_tokens": 0, "num_new_tokens": 1}
    item = {"item_id": "i1", "cluster": "c", "text": "'; drop table items; --", "gold": "yes", "note": "", **numbers}
    item["values"] = {"exact": 0.0, "rouge_l": None}
    arm = {"name": "zero-shot", "family": "prompt", "model": "m", "description": "", "dev_score": 0.5, "failed": None, "items": [item]}
    folder.results.write_text(json.dumps({"arms": [arm], "item_inputs": {"i1": "really?"}}), encoding="utf-8")
    GenerationCache(folder.journal_generations).put(
        "k", Generation(item_id="i1", text="t", finish="stop", num_prompt_tokens=3, num_cached_tokens=0, num_new_tokens=1, latency_s=0.1)
    )
    append(folder.journal_steps, {"step": 1, "loss": 0.5})
    for _ in range(2):
        with sqlite3.connect(rebuild_index(folder)) as base:
            assert base.execute("select arm, value from scores where metric = 'exact'").fetchall() == [("zero-shot", 0.0)]
            assert base.execute("select input, answer from items").fetchall() == [("really?", "'; drop table items; --")]
            assert base.execute("select count(*) from generations").fetchone() == (1,)
            assert base.execute("select json_extract(record, '$.loss') from steps").fetchone() == (0.5,)
        base.close()
        folder.index.unlink()
    assert not list(tmp_path.glob(".tmp-*"))


def test_index_of_a_run_without_results_and_of_a_damaged_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert rebuild_index(folder).is_file()
    folder.results.write_text('{"arms": [{}]}', encoding="utf-8")
    with pytest.raises(RunError, match="cannot be indexed"):
        rebuild_index(folder)
    assert not list(tmp_path.glob(".tmp-*"))
