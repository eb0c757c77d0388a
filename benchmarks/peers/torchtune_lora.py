"""A neutral yardstick: torchtune's recipe lora_finetune_single_device on a task file of benchmarks/work.py; one JSON line at the end.

    python torchtune_lora.py TASK.json

Runs in a virtual environment of its own (requirements-torchtune.txt). torchtune has no builder for SmolLM2: the model is its Llama 3.2
(tied embeddings) with SmolLM2's sizes and no scaling of positions. Rows, padding, schedule and logger are components of this file, as its
configuration allows; order and starting adapter (on the same linear layers) are torchtune's own. Time is between two log entries.
"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchtune
import yaml
from measured import finish
from omegaconf import OmegaConf
from torchtune.data import padded_collate_sft

RECIPE = Path(torchtune.__file__).parent.parent / "recipes" / "lora_finetune_single_device.py"
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
TOKENS: list[int] = []


class Padding:
    """All that the recipe asks of a tokenizer."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id


class Recorder:
    """A metric logger: the loss of each update and the time since the last."""

    def __init__(self) -> None:
        self.losses, self.seconds, self.last = [], [], time.perf_counter()

    def log_config(self, config: Any) -> None:
        del config

    def log_dict(self, payload: dict[str, Any], step: int) -> None:
        del step
        now = time.perf_counter()
        self.losses.append(float(payload["loss"]))
        self.seconds.append(now - self.last)
        self.last = now

    def close(self) -> None:
        pass


def rows(tokenizer: Padding, task: str) -> list[dict[str, list[int]]]:
    """The dataset."""
    del tokenizer
    with open(task, encoding="utf-8") as file:
        return [{"tokens": row["input_ids"], "labels": row["labels"]} for row in json.load(file)["rows"]]


def collate(samples: list[dict[str, list[int]]], padding_idx: int, ignore_idx: int) -> dict[str, torch.Tensor]:
    """torchtune's padding, counting the tokens of the rows."""
    TOKENS.append(sum(len(sample["tokens"]) for sample in samples))
    return padded_collate_sft(samples, padding_idx=padding_idx, ignore_idx=ignore_idx)


def linear(optimizer: torch.optim.Optimizer, num_training_steps: int, last_epoch: int) -> torch.optim.lr_scheduler.LRScheduler:
    """From the peak down to 0."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / num_training_steps), last_epoch=last_epoch)


def configuration(path: str, task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a user would write as YAML, after configs/llama3_2/1B_lora_single_device.yaml."""
    with open(Path(task["model"]) / "config.json", encoding="utf-8") as file:
        model = json.load(file)
    if model["model_type"] != "llama":
        sys.exit(f"torchtune 0.6.1 has no model of type {model['model_type']}")
    rope = model.get("rope_parameters") or model
    return {
        "output_dir": str(folder / "out"), "device": "cpu", "dtype": DTYPES[task["dtype"]], "seed": 0, "shuffle": True, "epochs": 1,
        "model": {
            "_component_": "torchtune.models.llama3_2.lora_llama3_2", "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True, "lora_rank": task["lora_r"], "lora_alpha": task["lora_alpha"], "lora_dropout": 0.0,
            "vocab_size": model["vocab_size"], "num_layers": model["num_hidden_layers"], "num_heads": model["num_attention_heads"],
            "num_kv_heads": model["num_key_value_heads"], "embed_dim": model["hidden_size"], "max_seq_len": task["max_length"],
            "intermediate_dim": model["intermediate_size"], "norm_eps": model["rms_norm_eps"], "rope_base": rope["rope_theta"],
            "scale_factor": 1, "tie_word_embeddings": model["tie_word_embeddings"],
        },
        "tokenizer": {"_component_": "torchtune_lora.Padding", "pad_id": task["pad_id"]},
        "dataset": {"_component_": "torchtune_lora.rows", "task": path}, "collate_fn": "torchtune_lora.collate",
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer", "checkpoint_dir": task["model"],
            "checkpoint_files": ["model.safetensors"], "output_dir": str(folder / "out"), "model_type": "LLAMA3_2",
        },
        "resume_from_checkpoint": False, "save_adapter_weights_only": True, "batch_size": task["batch"], "gradient_accumulation_steps": 1,
        "optimizer": {"_component_": "torch.optim.AdamW", "fused": True, "weight_decay": 0.0, "lr": task["lr"]},
        "lr_scheduler": {"_component_": "torchtune_lora.linear"}, "clip_grad_norm": task["max_grad_norm"],
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"}, "max_steps_per_epoch": None, "compile": False,
        "metric_logger": {"_component_": "torchtune_lora.Recorder"}, "log_every_n_steps": 1,
    }  # fmt: skip


@torch.no_grad()
def held_out_loss(model: Any, task: dict[str, Any]) -> float:
    """Mean over all label tokens."""
    model.eval()
    total, count = 0.0, 0
    for row in task["held_out"]:
        found = model(torch.tensor([row["input_ids"]]))
        logits = (torch.cat(found, dim=1) if isinstance(found, list) else found)[0, :-1].float()
        labels = torch.tensor(row["labels"][1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


def main() -> None:
    import torchtune_lora as parts  # the module that the recipe takes its components from, and not this script's own copy

    path = sys.argv[1]
    with open(path, encoding="utf-8") as file:
        task = json.load(file)
    torch.set_num_threads(task["threads"])
    with tempfile.TemporaryDirectory() as name:
        text = yaml.safe_dump(configuration(path, task, Path(name)))
        config = OmegaConf.create(text)
        recipe = runpy.run_path(str(RECIPE), run_name="recipe")["LoRAFinetuneRecipeSingleDevice"](cfg=config)
        recipe.setup(cfg=config)
        recipe.train()
        logged = recipe._metric_logger
        recipe.cleanup()
    finish(
        task, logged.losses, logged.seconds, parts.TOKENS, held_out=lambda: held_out_loss(recipe._model, task),
        packages=("torchtune", "torchao"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
