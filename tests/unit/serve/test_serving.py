"""From a run, an adapter or a model to names, and to the command for vLLM. No weights are opened."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from luthier.cli import serve as cli
from luthier.core.errors import ConfigError, LuthierError, MissingExtraError, ModelError, RunError
from luthier.core.types import Message
from luthier.pipeline.serve import find_serving, vllm_command
from luthier.serve.offers import Offer, check_offers, find_offer
from luthier.serve.problems import Problem


def _adapter(path: Path, **more: object) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 32, **more}), encoding="utf-8")
    (path / "adapter_model.safetensors").write_bytes(b"")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as far as serving looks: settings, training rows, an adapter."""
    (tmp_path / "model").mkdir()
    root = tmp_path / "intents"
    _adapter(root / "adapter")
    (root / "config.yaml").write_text(f"model:\n  name: {tmp_path / 'model'}\n  dtype: float32\n", encoding="utf-8")
    _rows(root, [("", "Classify.")] * 3)
    return root


def _rows(root: Path, shared: list[tuple[str, str]]) -> None:
    (root / "split").mkdir(exist_ok=True)
    rows = [json.dumps({"system": system, "instruction": instruction}) for system, instruction in shared]
    (root / "split" / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")


def test_a_run_is_served_by_its_name_with_its_prompt_and_its_base(run: Path) -> None:
    found = find_serving(str(run), adapters=[], base=None)
    assert [(o.name, o.voice, o.is_prompted, o.parent) for o in found.offers] == [
        ("intents", "intents", False, "model"),
        ("intents-prompted", "intents", True, "model"),
        ("model", "", False, None),
    ]
    assert found.adapters == {"intents": run / "adapter"} and found.precision.name == "float32"


def test_without_a_shared_prompt_there_is_no_prompted_name(run: Path) -> None:
    _rows(run, [("", "Classify."), ("", "Sort.")])
    assert [offer.name for offer in find_serving(str(run), adapters=[], base=None).offers] == ["intents", "model"]


def test_a_run_called_like_its_base(run: Path) -> None:
    (run / "config.yaml").write_text("model:\n  name: somewhere\n", encoding="utf-8")
    (run.parent / "model").rename(run.parent / "base")
    run = run.rename(run.parent / "base" / "base")
    (run / "config.yaml").write_text(f"model:\n  name: {run.parent}\n  dtype: float32\n", encoding="utf-8")
    assert [offer.name for offer in find_serving(str(run), adapters=[], base=None).offers] == ["base", "base-prompted", "base-base"]


def test_more_adapters(run: Path, tmp_path: Path) -> None:
    other = _adapter(tmp_path / "other")
    found = find_serving(str(run), adapters=[f"b={other}", f"again={run}"], base=None)
    assert [offer.name for offer in found.offers] == ["intents", "intents-prompted", "b", "again", "model"]
    assert found.adapters["again"] == run / "adapter"
    for wrong in (["b"], ["=x"], ["b="], [f"b={other}", f"b={other}"], [f"b c={other}"]):
        with pytest.raises(ConfigError):
            find_serving(str(run), adapters=wrong, base=None)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        find_serving(str(run), adapters=[f"b={tmp_path / 'model'}"], base=None)


def test_what_cannot_be_served(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run"):
        find_serving(str(tmp_path / "nothing"), adapters=[], base=None)
    with pytest.raises(ConfigError, match="no adapter"):
        find_serving(str(run), adapters=[], base="x")
    with pytest.raises(LuthierError):
        find_serving("nobody-knows-this-model", adapters=[], base=None)
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match="nothing was trained"):
        find_serving(str(run), adapters=[], base=None)


def test_the_command_for_vllm(run: Path, tmp_path: Path) -> None:
    big = _adapter(tmp_path / "it's big", r=8, rank_pattern={"a": 24})
    serving = find_serving(str(run), adapters=[f"big={big}"], base=None)
    text = vllm_command(serving, host="127.0.0.1", port=8000, key_env="MY_KEY")
    assert text.startswith('VLLM_API_KEY="$MY_KEY" vllm serve ')
    words = shlex.split(text)[1:]
    assert words == [
        "vllm", "serve", str(tmp_path / "model"), "--served-model-name", "model", "--dtype", "float32", "--enable-lora",
        "--max-loras", "2", "--max-lora-rank", "32", "--lora-modules", f"intents={run / 'adapter'}", f"big={big}",
        "--generation-config", "vllm", "--host", "127.0.0.1", "--port", "8000",
    ]  # fmt: skip
    for what, more in (("DoRA", {"use_dora": True}), ("rank 1024", {"r": 1024})):
        odd = _adapter(tmp_path / what, **more)
        with pytest.raises(ModelError, match=what) as error:
            vllm_command(find_serving(str(run), adapters=[f"odd={odd}"], base=None), host="127.0.0.1", port=8000, key_env=None)
        assert "luthier export" in error.value.fix
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}", encoding="utf-8")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    whole = find_serving(str(run), adapters=[], base=None)
    assert [(offer.name, offer.voice) for offer in whole.offers] == [("intents", ""), ("intents-prompted", "")]
    assert shlex.split(vllm_command(whole, host="::1", port=1, key_env=None))[2:5] == [str(run / "model"), "--served-model-name", "intents"]


def test_names() -> None:
    offers = [Offer(name=name, voice="", description="") for name in ("intents", "intents-prompted", "base")]
    check_offers(offers)
    assert find_offer(offers, "base") is offers[2]
    with pytest.raises(Problem, match="did you mean intents"):
        find_offer(offers, "intent")
    for bad in ("", "a b", "a\n", "x" * 129, 'a"b', "é" * 0):
        with pytest.raises(ConfigError):
            check_offers([Offer(name=bad, voice="", description="")])
    with pytest.raises(ConfigError, match="two models"):
        check_offers([offers[0], offers[0]])


def test_a_name_without_a_prompt_changes_nothing() -> None:
    talk = (Message(role="system", content="s"), Message(role="user", content="u"), Message(role="assistant", content="a"))
    assert Offer(name="x", voice="", description="").conversation(talk) == talk


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        cli._require_extra()
    assert str(error.value) == "luthier serve: serving needs fastapi and uvicorn\n  fix: pip install 'luthier[serve]'"
