"""One update however it is cut up, one loss however it is computed, one adapter whoever wrote it; and each tolerance sees an error.

Through the real command or the functions it calls, on a tiny model, in fp32. Two and four ranks: tests/e2e/test_parallel.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.fixtures.workplace import make_workplace
from tests.invariant.test_training import _grads, _model, _rows
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.cli.main import main
from luthier.kernels import reference
from luthier.models.load import open_model
from luthier.models.lora import load_adapter
from luthier.models.surgery import use_fast_kernels
from luthier.train import step
from luthier.train.objectives.sft import LossSum
from luthier.train.optim import make_optimiser
from luthier.train.step import Pieces, train_step

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    return place / "model"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The object on the last line of stdout of one command."""

    def run(*words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["luthier", *words, "--json"])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert left.value.code in (0, None), err
        return json.loads(out.strip().splitlines()[-1])

    return run


def _train(command: Command, place: Path, name: str, *more: str) -> dict[str, Any]:
    named = ("--instruction", "Name the kind.", "--input", "text", "--output", "category", "--model", str(place / "model"))
    how = ("--epochs", "1", "--batch", "8", "--lr", "5e-3", "--threads", "1", "--set", "model.dtype=float32")
    return command("train", str(place / "train.jsonl"), *named, *how, "--run-dir", str(place / name), *more)


@pytest.fixture
def whole(command: Command, place: Path) -> dict[str, Any]:
    """8 rows at once; the second call of a module finds the run done."""
    return _train(command, place, "whole", "--set", "train.micro_batch=8")


# ---------------------------------------------------------------- batch 8x1 = 4x2 = 1x8


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_how_a_batch_is_cut_changes_no_update(command: Command, place: Path, whole: dict[str, Any], micro_batch: int) -> None:
    cut = _train(command, place, f"cut-{micro_batch}", "--set", f"train.micro_batch={micro_batch}")
    assert len(cut["losses"]) == len(whole["losses"]) == 14
    assert cut["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert cut["losses"] != whole["losses"]  # it was computed otherwise
    _same_adapter(cut, whole)
    other = _train(command, place, "other", "--seed", "0", "--set", "train.weight_decay=0.1")
    with pytest.raises(AssertionError):  # the tolerance can fail
        _same_adapter(other, whole)


def _same_adapter(got: dict[str, Any], want: dict[str, Any]) -> None:
    """A fifth of one update's step: AdamW makes a whole step of a gradient that is nothing but rounding."""
    ours, theirs = load_file(got["adapter"]), load_file(want["adapter"])
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-3, rtol=0)


def _update(folder: Path, size: int) -> tuple[float, dict[str, torch.Tensor]]:
    model = _model(folder)
    optimiser = make_optimiser(model, weight_decay=0.0, compute_dtype=torch.float32)
    result = train_step(model, optimiser, _rows(8), pieces=Pieces(micro_batch=size), lr=1e-2, max_grad_norm=1.0)
    return result.loss, {name: master.detach().clone() for name, master in optimiser.masters.items()}


def test_a_mean_of_means_would_be_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual mistake: each piece divided by its own number of labels."""
    loss, masters = _update(folder, 8)
    num_labels = sum(sum(row.is_label[1:]) for row in _rows(8))
    plain = step.sft_loss

    def mean(model: nn.Module, batch: Any, **options: Any) -> LossSum:
        found = plain(model, batch, **options)
        return LossSum(found.sum * (num_labels / 4 / found.weight), found.weight, found.logs)

    monkeypatch.setattr(step, "sft_loss", mean)
    wrong_loss, wrong_masters = _update(folder, 2)
    assert wrong_loss != pytest.approx(loss, rel=1e-5)
    with pytest.raises(AssertionError):
        for name, want in masters.items():
            torch.testing.assert_close(wrong_masters[name], want, atol=2e-4, rtol=1e-3)


# ---------------------------------------------------------------- one loss and every gradient


def _same_gradients(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """In the size of each gradient: a part in ten thousand of its largest number."""
    assert set(got) == set(want) and len(want) == 28
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-4 * float(tensor.abs().max()), rtol=0)


def test_prefix_tree_packed_rows_and_rows_alone_have_the_same_gradients(folder: Path) -> None:
    model, rows = _model(folder), _rows(6)
    alone = [_grads(model, [row], share_prefix=False) for row in rows]
    want = {name: torch.stack([grads[name] for _, grads in alone]).sum(0) for name in alone[0][1]}
    for share_prefix in (True, False):
        loss, grads = _grads(model, rows, share_prefix=share_prefix)
        assert loss == pytest.approx(sum(loss for loss, _ in alone), rel=1e-6)
        _same_gradients(grads, want)
    other = [replace(rows[0], input_ids=(*rows[0].input_ids[:-2], 77, 2)), *rows[1:]]
    with pytest.raises(AssertionError):  # one token of one row is another
        _same_gradients(_grads(model, other, share_prefix=True)[1], want)


def _transformers_own(folder: Path, model: nn.Module, rows: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """Full logits, peft's layers, transformers' attention and loss, one row at a time."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    peer = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    peer.load_state_dict(model.state_dict())
    total = 0.0
    for row in rows:
        labels = torch.tensor([[t if wanted else -100 for t, wanted in zip(row.input_ids, row.is_label, strict=True)]])
        loss = peer(input_ids=torch.tensor([row.input_ids]), labels=labels).loss * row.num_labels
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in peer.named_parameters() if p.grad is not None}


def test_chunked_loss_and_lora_function_equal_full_logits_and_peft(folder: Path) -> None:
    model, rows = _model(folder), _rows(6)
    want_loss, want = _transformers_own(folder, model, rows)
    with_peft_layers = _grads(model, rows, share_prefix=True)
    assert use_fast_kernels(model)["lora_linear"] == 14
    with_our_function = _grads(model, rows, share_prefix=True)
    for loss, grads in (with_peft_layers, with_our_function):
        assert loss == pytest.approx(want_loss, rel=1e-6)
        _same_gradients(grads, want)
    assert any(not torch.equal(with_our_function[1][name], with_peft_layers[1][name]) for name in want)  # it is another way to compute
    other = _model(folder)
    other.get_submodule("base_model.model.model.layers.0.mlp.up_proj").scaling["default"] *= 1.001
    use_fast_kernels(other)
    with pytest.raises(AssertionError):  # one layer's scale is off by a thousandth
        _same_gradients(_grads(other, rows, share_prefix=True)[1], want)


NO_KERNELS = ("__init__", "reference", "tree_layout", "layer_parts", "compiled", "device")  # the rest of kernels/


def test_every_kernel_has_its_slow_twin_and_a_parity_test() -> None:
    """A file in kernels/ names its twin, the twin is in reference.py, and the parity tests call both."""
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "parity").glob("test_*.py"))
    kernels = [p for p in sorted((ROOT / "src/luthier/kernels").glob("*.py")) if p.stem not in NO_KERNELS]
    assert len(kernels) >= 6
    for path in kernels:
        text = path.read_text(encoding="utf-8")
        twins = [name for name in vars(reference) if f"`reference.{name}`" in text]
        assert twins, f"{path.name} names no twin: `reference.NAME`"
        assert any(f"reference.{name}" in tests for name in twins), path.name
        assert path.stem in tests, f"{path.name} is in no parity test"


# ---------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained and saved by peft and torch alone, on some of the layers, as another program would."""
    torch.manual_seed(4)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules=targets, lora_dropout=0.1, task_type="CAUSAL_LM"))
    ids = torch.tensor([[1, 40, 41, 42, 43, 60, 61, 2]])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(8):
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    path = tmp_path_factory.mktemp("elsewhere") / "adapter"
    model.save_pretrained(path)
    return path


def test_an_adapter_of_peft_s_opens_here_with_equal_logits(folder: Path, elsewhere: Path) -> None:
    ids = torch.tensor([[1, 50, 51, 52]])
    ours = load_adapter(open_model(folder, dtype=torch.float32), elsewhere)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), str(elsewhere)).eval()
    bare = open_model(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-6, rtol=1e-6)
        with pytest.raises(AssertionError):  # without it they differ
            torch.testing.assert_close(bare(ids).logits, theirs(ids).logits, atol=1e-2, rtol=1e-2)


def _greedy(model: nn.Module, folder: Path, prompt: str) -> str:
    """transformers' own generation."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=2)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def test_the_command_talks_to_adapters_from_here_and_elsewhere_as_peft_does(
    command: Command, place: Path, elsewhere: Path, whole: dict[str, Any]
) -> None:
    folder, here = place / "model", Path(whole["adapter"]).parent
    answers: set[str] = set()
    for adapter in (elsewhere, here):
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), str(adapter)).eval()
        want = _greedy(theirs, folder, "where is my card")
        words = ("chat", str(adapter), "--model", str(folder), "-p", "where is my card", "--max-new-tokens", "12", "--no-log")
        got = command(*words, "--compare", "base")["turns"][0]["answers"]
        assert got["tuned"] == want
        answers |= {got["tuned"], got["base"]}
    assert len(answers) == 3  # and the adapters are really used


def test_an_adapter_knows_its_base_and_says_when_it_is_not_there(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Command
) -> None:
    found = command("chat", str(elsewhere), "-p", "hello", "--max-new-tokens", "2", "--no-log")  # peft recorded the folder of its base
    assert found["turns"][0]["answers"]["tuned"] is not None
    config = json.loads((elsewhere / "adapter_config.json").read_text(encoding="utf-8"))
    for name, said in (("acme/unknown-7b", "'acme/unknown-7b' is not on this machine"), (None, "does not say which base model")):
        lost = tmp_path / str(name).replace("/", "-")
        lost.mkdir()
        (lost / "adapter_model.safetensors").write_bytes((elsewhere / "adapter_model.safetensors").read_bytes())
        (lost / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["luthier", "chat", str(lost), "-p", "hello"])
        with pytest.raises(SystemExit) as left:
            main()
        err = capsys.readouterr().err
        assert left.value.code == 2 and said in err and f"luthier chat {lost} --model" in err
