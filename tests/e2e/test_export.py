"""`luthier export` on a finished run of the tiny model: every kind by the real command, and every broken export caught by the gate."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tests.e2e.test_run import LUTHIER, _command, _env, _go, _rows
from tests.fixtures.fake_llama import make_fake_llama
from tests.fixtures.tiny_model import make_tiny_model
from tests.unit.test_untrusted import ollama_values

from luthier.core.console import quiet
from luthier.core.errors import ConfigError, ModelError, RunError
from luthier.export import gguf_file
from luthier.export.folders import open_merged
from luthier.export.gguf_vocab import read_vocabulary
from luthier.generate import llama_file
from luthier.pipeline import artefact, export
from luthier.pipeline.export import ExportRequest

VARIABLE = llama_file.VARIABLE  # where llama.cpp is, as a second reader
TITLE = "tr'ain{{ .System }}.jsonl"  # ends up in names, README and GGUF


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    make_tiny_model(root / "model")
    rows, test = _rows(150, seed=1), _rows(40, seed=2)
    (root / TITLE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test), encoding="utf-8")
    skip = "arms.skip=[instructed,few-shot,few-shot retrieved,tuned + retrieval]"
    command = [word.replace("train.jsonl", TITLE) for word in _command(root, "run")]
    done = _go([*command, "--set", skip, "--set", "arms.constrained=false"])
    assert done.returncode == 0, done.stderr
    return root / "run"


def _export(run: Path, kind: str, out: Path, storage: str = "", items: int | None = 12) -> dict[str, Any]:
    request = ExportRequest(run=run, kind=artefact.check_kind(kind), out=out, storage=storage, max_items=items)
    outcome = export.export(request, quiet)
    return {**outcome["json"], "lines": outcome["lines"], "is_refused": outcome["is_refused"]}  # type: ignore[dict-item]


KINDS = [("adapter", ""), ("merged", ""), ("gguf", "F16"), ("ollama", "Q8_0"), ("hub-folder", "merged")]


@pytest.mark.parametrize(("kind", "storage"), KINDS)
def test_each_kind_by_the_real_command(kind: str, storage: str, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--type", storage] if storage else []
    done = _go([*LUTHIER, "export", str(run), "--to", kind, "--out", str(out), *more, "--json", "--parity-items", "0"])
    assert done.returncode == 0, done.stderr
    assert "de-quantizing" not in done.stderr and "it/s" not in done.stderr  # no bars of other programs
    found = json.loads(done.stdout.strip().splitlines()[-1])
    parity = found["parity"]
    assert parity["n"] == parity["num_locked"] == 40 and parity["passed"] and not parity["failures"]
    assert parity["num_exact"] + parity["num_ties"] + parity["num_different"] == 40
    assert parity["exact_agreement"] == parity["num_exact"] / 40 > 0.8
    assert parity["tested"]["n"] == parity["artefact"]["n"] == parity["difference"]["n"] == 40
    assert parity["num_as_recorded"] == 40  # this run was measured in fp32
    assert all(parity["checks"].values()) and parity["tolerance"]["mean_kl"] >= parity["mean_kl"]
    names = {path.name for path in out.iterdir()}
    assert names == set(found["files"]) | {"luthier-export.json"}
    wanted = {
        "adapter": {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"},
        "merged": {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"},
        "ollama": {"Modelfile"},
    }.get(kind, set())
    assert wanted | {"README.md"} <= names
    for text in ("README.md", "luthier-export.json", "config.json", "adapter_config.json", "tokenizer_config.json"):
        if text in names:  # nothing of this machine leaves it
            assert str(run.parent) not in (out / text).read_text(encoding="utf-8"), text
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="exports"' in page and f"{kind}, {found['type']}" in page


def _vocabulary(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def change(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(artefact, "read_vocabulary", lambda *a, **k: dataclasses.replace(read_vocabulary(*a, **k), **changes))

    return change


def _written(change: Callable[[Path], None]) -> Callable[[pytest.MonkeyPatch], None]:
    def tamper(patch: pytest.MonkeyPatch) -> None:
        def write(tested: Any, kind: Any, storage: str, out: Path) -> artefact.Artefact:
            done = artefact.write_artefact(tested, kind, storage, out)
            change(out)
            return done

        patch.setattr(export, "write_artefact", write)

    return tamper


def _replace(name: str, old: str, new: str | Callable[[re.Match[str]], str]) -> Callable[[pytest.MonkeyPatch], None]:
    def change(out: Path) -> None:
        text = (out / name).read_text(encoding="utf-8")
        assert re.search(old, text), text[:300]
        (out / name).write_text(re.sub(old, new, text), encoding="utf-8")

    return _written(change)


def _zero_one_weight(out: Path) -> None:
    state = load_file(out / "model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"] *= 0.9
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})


def _no_adapter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(artefact, "open_merged", lambda path, adapter: open_merged(path, None))


def _rows_as_they_are(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gguf_file, "interleave_heads", lambda weight, num_heads: weight)


def _other_rope(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gguf_file.GGUFWriter, "add_rope_freq_base", lambda self, value: self.add_float32("llama.rope.freq_base", 2 * value))


OTHER_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
OTHER_EOS = '"eos_token": "<|endoftext|>"'
FP32_NOISE = 1e-7  # mean KL of the same weights read in fp32 by two programs
BROKEN = {
    "q and k in the wrong order": ("gguf", "F16", _rows_as_they_are, "KL"),
    "another rope base": ("gguf", "F32", _other_rope, "KL"),
    "adapter not merged, gguf": ("gguf", "Q8_0", _no_adapter, "KL"),
    "adapter not merged, merged": ("merged", "", _no_adapter, "KL"),
    "one matrix a tenth too small": ("merged", "", _written(_zero_one_weight), "KL"),
    "no EOS in the GGUF": ("gguf", "F16", _vocabulary(eos_id=0), "does not stop|another token"),
    "another template in the GGUF": ("gguf", "F16", _vocabulary(chat_template=OTHER_TEMPLATE), "chat template"),
    "no template in the GGUF": ("gguf", "F16", _vocabulary(chat_template=None), "chat template"),
    "another pre-tokeniser": ("gguf", "F16", _vocabulary(pre="smollm"), "other tokens"),
    "a BOS too many": ("gguf", "F16", _vocabulary(add_bos=True), "another token"),
    "another template in the folder": (
        "merged", "", _replace("chat_template.jinja", r"(?s)\A.*\Z", lambda _: OTHER_TEMPLATE), "chat template"
    ),
    "EOS of the folder is another": (
        "merged", "", _replace("tokenizer_config.json", '"eos_token": "[^"]*"', '"eos_token": "<|endoftext|>"'), "another token"
    ),
    "adapter of twice the strength": ("adapter", "", _replace("adapter_config.json", '"lora_alpha": [0-9.]+', '"lora_alpha": 128'), "KL"),
    "no stop in the Modelfile": ("ollama", "Q8_0", _replace("Modelfile", "PARAMETER stop .*\n", ""), "Modelfile"),
    "other words in the Modelfile": ("ollama", "Q8_0", _replace("Modelfile", "assistant", "assistent"), "Modelfile"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_export_is_caught_and_leaves_nothing(name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, storage, spoil, why = BROKEN[name]
    spoil(monkeypatch)
    found = _export(run, kind, tmp_path / "out", storage, items=8)
    assert found["is_refused"] and found["exit_code"] == 2 and not found["parity"]["passed"]
    assert re.search(why, "; ".join(found["parity"]["failures"])), found["parity"]["failures"]
    assert list(tmp_path.iterdir()) == []
    assert any("not exported" in line for line in found["lines"])


def test_different_answers_are_named_with_both_texts(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _rows_as_they_are(monkeypatch)
    found = _export(run, "gguf", tmp_path / "out", "F16")
    different = found["parity"]["different"]
    assert different and found["parity"]["exact_agreement"] < 1
    said = "\n".join(found["lines"])
    assert different[0]["item_id"] in said and "tested:" in said and "exported:" in said
    listed = json.loads((run / "exports.json").read_text(encoding="utf-8"))
    assert any(one["parity"]["failures"] for one in listed)
    assert "✗ failed" in (run / "report.html").read_text(encoding="utf-8")


def test_gguf_holds_more_than_bf16_of_the_same_weights(run: Path, tmp_path: Path) -> None:
    """The order of losses is that of the bits: a gate whose numbers did not follow it would measure nothing."""
    kl = [_export(run, "gguf", tmp_path / t, t, items=6)["parity"]["mean_kl"] for t in ("F32", "F16", "BF16", "Q8_0", "Q4_0")]
    assert kl[0] < FP32_NOISE and kl[1] < FP32_NOISE, kl  # which of the two is nearer is rounding of the sums: 5e-9 and 0 on one machine
    assert max(kl[:2]) < kl[2] < kl[3] < kl[4], kl


def test_only_an_earlier_export_of_the_same_kind_is_replaced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _export(run, "adapter", out, items=4)
    _export(run, "adapter", out, items=4)
    with pytest.raises(RunError, match="an export of kind adapter"):
        _export(run, "merged", out, items=4)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match=r"notes\.txt"):
        _export(run, "adapter", out, items=4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="something that is no export"):
        _export(run, "adapter", tmp_path / "full", items=4)
    (tmp_path / "empty").mkdir()
    assert not _export(run, "adapter", tmp_path / "empty", items=4)["is_refused"]


def test_full_disk_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf_file.GGUFWriter, "write_tensors_to_file", full)
        with pytest.raises(RunError, match="No space left"):
            _export(run, "gguf", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
        with pytest.raises(RunError, match="needed for the export"):
            _export(run, "gguf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_killed_export_leaves_no_half_and_the_next_one_clears_up(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*LUTHIER, "export", str(run), "--to", "merged", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_env())
    for _ in range(600):
        if list(tmp_path.glob(".tmp-*/config.json")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not out.exists()
    assert not _export(run, "merged", out, items=4)["is_refused"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_card_of_a_hub_folder_says_what_was_measured_and_no_path(run: Path, tmp_path: Path) -> None:
    _export(run, "hub-folder", tmp_path / "out", "adapter", items=6)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    matter = yaml.safe_load(card.split("---\n")[1])
    assert matter["base_model"] == "model" and matter["library_name"] == "peft"
    assert matter["model-index"][0]["name"] == TITLE
    assert "## Parity of the exported files" in card and str(run.parent) not in card and "/" + run.parent.name not in card


def test_modelfile_holds_the_runs_own_template(run: Path, tmp_path: Path) -> None:
    _export(run, "ollama", tmp_path / "out", "Q8_0", items=4)
    commands = ollama_values((tmp_path / "out" / "Modelfile").read_text(encoding="utf-8"))
    assert [name for name, _ in commands] == ["from", "template", "parameter", "parameter", "parameter", "parameter"]
    assert commands[0][1].startswith("./tr-ain-.system-model-q8-0") or (tmp_path / "out" / commands[0][1][2:]).is_file()


def test_requests_that_cannot_be_met_are_refused_by_name(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can read Q4_K_M but not write it"):
        _export(run, "gguf", tmp_path / "out", "Q4_K_M")
    with pytest.raises(ConfigError, match=r"expected one of adapter, merged, gguf"):
        _export(run, "ggfu", tmp_path / "out")
    with pytest.raises(ConfigError, match="no types to choose"):
        _export(run, "adapter", tmp_path / "out", "F16")
    with pytest.raises(RunError, match="no such run"):
        _export(tmp_path / "nothing", "merged", tmp_path / "out")
    weights = run / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(RunError, match="measured were"):
            _export(run, "merged", tmp_path / "out")
    finally:
        weights.write_bytes(before)
    assert list(tmp_path.iterdir()) == []


def test_a_sound_file_passes_both_readers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, make_fake_llama(tmp_path / "llama"))
    found = _export(run, "gguf", tmp_path / "out", "F16", items=6)
    second = found["parity"]["llama_cpp"]
    assert not found["is_refused"] and second["num_exact"] + second["num_ties"] == 6 and all(second["checks"].values())
    assert second["program"] == "llama.cpp by llama-cpp-python 0.0-fake" and 0 <= second["mean_kl"] < 1e-5
    assert second["artefact"]["n"] == second["difference"]["n"] == 6 and second["num_tokens"] == found["parity"]["num_tokens"]
    assert any("read by llama.cpp by llama-cpp-python 0.0-fake too" in line for line in found["lines"])
    assert "the same file in llama.cpp" in (run / "report.html").read_text(encoding="utf-8")
    assert "The same by llama.cpp" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    manifest = (tmp_path / "out" / "luthier-export.json").read_text(encoding="utf-8")
    assert json.loads(manifest)["parity"]["llama_cpp"]["num_exact"] == second["num_exact"] and '"different"' not in manifest


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("louder", "in llama.cpp: mean KL divergence"),
        ("no end", "in llama.cpp: the artefact does not stop"),
        ("other tokens", "in llama.cpp: the tokenizer cuts the items"),
    ],
)
def test_what_only_llama_cpp_finds_refuses_the_export(
    fault: str, why: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, make_fake_llama(tmp_path / "llama", fault))
    found = _export(run, "ollama", tmp_path / "out", "F16", items=4)
    assert found["is_refused"] and found["exit_code"] == 2 and any(why in failure for failure in found["parity"]["failures"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("abort", "llama.cpp: ended with signal 6: GGML_ASSERT"),
        ("abort later", "llama.cpp: ended with signal 6"),
        ("refuse", "llama.cpp does not open the file"),
        ("hang", "llama.cpp: did not answer within 2 s"),
    ],
)
def test_a_llama_cpp_that_ends_or_hangs_refuses_the_export_and_harms_nothing(
    fault: str, why: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, make_fake_llama(tmp_path / "llama", fault))
    if fault == "hang":
        monkeypatch.setattr(llama_file, "WALL_S", 2.0)
    with pytest.raises(ModelError, match=why) as error:
        _export(run, "gguf", tmp_path / "out", "F16", items=4)
    assert f"{VARIABLE}=none" in error.value.fix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]


def test_llama_cpp_answers_in_chat_from_an_export_and_says_when_it_is_none_that_passed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, make_fake_llama(tmp_path / "llama"))
    _export(run, "gguf", tmp_path / "out", "F32", items=4)
    [gguf] = (tmp_path / "out").glob("*.gguf")
    words = [*LUTHIER, "chat", str(run), "-p", "where is my money", "--max-new-tokens", "8", "--no-log", "--json"]
    answers: list[dict[str, str]] = []
    remarks: list[str] = []
    (tmp_path / "changed.gguf").write_bytes(gguf.read_bytes() + b"\0")
    _export(run, "gguf", tmp_path / "again", "F32", items=4)  # what was handed over before is remembered
    for more in ([], ["--gguf", str(gguf)], ["--gguf", str(tmp_path / "changed.gguf"), "--compare", "base"]):
        done = _go([*words, *more])
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout.splitlines()[-1])["turns"][0]["answers"])
        remarks.append(done.stderr)
    assert answers[0] == answers[1] and answers[2]["tuned"] == answers[0]["tuned"] and set(answers[2]) == {"tuned", "base"}
    told = "changed.gguf is no export of"
    assert [told in remark for remark in remarks] == [False, False, True] and "passed its gate" not in remarks[1]


def test_it_can_be_left_out_and_must_be_a_program(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "none")
    assert _export(run, "gguf", tmp_path / "out", "F16", items=4)["parity"]["llama_cpp"] is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="a Python that has llama-cpp-python"):
        _export(run, "gguf", tmp_path / "out", "F16", items=4)
