"""A neutral yardstick: LitGPT's LoRA fine-tuning (litgpt.finetune.lora) on a task file of benchmarks/work.py; one JSON line at the end.

    python litgpt_lora.py TASK.json

Runs in a virtual environment of its own (requirements-litgpt.txt). The rows come from the file through a data module, as LitGPT means
it; order, starting adapter (on the same linear layers) and schedule are LitGPT's own: cosine, one update of warm-up (it cannot do
without), and no clipping. Time is LitGPT's own `iter_time` of each update.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule, get_sft_collate_fn
from litgpt.finetune import lora
from litgpt.prompts import Default
from measured import finish, peak_rss_gb
from torch.utils.data import DataLoader, Dataset

# the folder of the model -> LitGPT's name of it
NAMES = {"smollm2-135m": "SmolLM2-135M-Instruct", "gemma-3-270m": "Gemma-3-270m"}
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-true"}


class Encoded(Dataset):
    """Rows of the task file; remembers the peak of memory when a row was last asked for."""

    def __init__(self, rows: list[dict[str, list[int]]]) -> None:
        self.rows, self.peak_gb = rows, 0.0
        self.data = [{"instruction": "Hello"}]  # LitGPT shows an answer to it after the training

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.peak_gb = peak_rss_gb()
        row = self.rows[index]
        counts = {"raw": len(row["input_ids"]), "raw_plus_prompt_template": len(row["input_ids"])}
        return {"input_ids": torch.tensor(row["input_ids"]), "labels": torch.tensor(row["labels"]), "token_counts": counts}


class Rows(DataModule):
    """The data module."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__()
        self.task, self.tokens, self.prompt_style = task, [], Default()
        self.train_dataset, self.test_dataset = Encoded(task["rows"]), Encoded(task["held_out"])
        self.pad = get_sft_collate_fn(max_seq_length=task["max_length"], pad_id=task["pad_id"])

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None, **_: Any) -> None:
        del tokenizer, batch_size, max_seq_length  # all are the task's

    def _counted(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        self.tokens.append(sum(len(sample["input_ids"]) for sample in samples))
        return self.pad(samples)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=self.task["batch"], shuffle=True, collate_fn=self._counted)

    def val_dataloader(self) -> DataLoader:
        """All rows at once, so that the mean is over tokens."""
        return DataLoader(self.test_dataset, batch_size=len(self.test_dataset), collate_fn=self.pad)


def converted(task: dict[str, Any], folder: Path) -> Path:
    """The model in LitGPT's format, made by its own command."""
    model = Path(task["model"])
    target = folder / NAMES[model.name]
    target.mkdir()
    for file in model.iterdir():
        (target / file.name).symlink_to(file)
    command = [str(Path(sys.executable).with_name("litgpt")), "convert_to_litgpt", str(target), "--dtype", task["dtype"]]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return target


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        task = json.load(file)
    torch.set_num_threads(task["threads"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, data = converted(task, folder), Rows(task)
        adapters = {"lora_r": task["lora_r"], "lora_alpha": task["lora_alpha"], "lora_dropout": 0.0}
        adapters |= dict.fromkeys(("lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp"), True)
        flags = [f"--{key}={json.dumps(value)}" for key, value in adapters.items()]
        sys.argv[1:] = ["finetune_lora", str(checkpoint), *flags]  # LitGPT reads the command line once more when it saves
        lora.setup(
            checkpoint, folder / "out", precision=PRECISIONS[task["dtype"]], data=data, **adapters,
            train=TrainArgs(
                save_interval=None, log_interval=1, global_batch_size=task["batch"], micro_batch_size=task["batch"], lr_warmup_steps=1,
                epochs=1, max_seq_length=task["max_length"],
            ),
            eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1),
            optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": task["lr"], "weight_decay": 0.0}},
        )  # fmt: skip
        found = next((folder / "out").rglob("metrics.csv"))
        with found.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    updates = [line for line in lines if line.get("loss")]
    held_out = next(float(line["val_loss"]) for line in reversed(lines) if line.get("val_loss"))
    finish(
        task,
        [float(line["loss"]) for line in updates],
        [float(line["iter_time"]) for line in updates],
        data.tokens[: len(updates)],  # it fetches one more batch than it computes
        held_out=lambda: held_out,
        packages=("litgpt", "lightning"),
        peak_gb=data.test_dataset.peak_gb,
    )


if __name__ == "__main__":
    main()
