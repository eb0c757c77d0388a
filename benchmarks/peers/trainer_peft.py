"""A neutral yardstick: transformers' Trainer with peft on a task file of benchmarks/work.py; one JSON line at the end.

    python trainer_peft.py TASK.json [--given-order | --group-by-length]

Runs in a virtual environment of its own (requirements-trl.txt). The adapter starts from the file's, in fp32 beside the weights (peft's
default). Time is from the beginning to the end of an update, without loading of data and logging, the first two updates left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import peft
import torch
import transformers
from measured import finish
from torch.utils.data import DataLoader


class Clock(transformers.TrainerCallback):
    """Seconds of each update."""

    def __init__(self) -> None:
        self.started, self.seconds = 0.0, []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)


class Recorded(transformers.Trainer):
    """Trainer that keeps the unrounded loss and the size of each update, and takes the batches it is given, if any."""

    batches: list[list[int]] | None = None

    def get_train_dataloader(self) -> DataLoader:
        if self.batches is None:
            return super().get_train_dataloader()
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        self.tokens.append(int(inputs["attention_mask"].sum()))
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(float(loss))
        return loss


def collate(task: dict[str, Any]) -> Any:
    def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        def pad(key: str, value: int) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=value)

        mask = [torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows]
        whole = torch.nn.utils.rnn.pad_sequence(mask, batch_first=True)
        return {"input_ids": pad("input_ids", task["pad_id"]), "labels": pad("labels", -100), "attention_mask": whole}

    return padded


@torch.no_grad()
def held_out_loss(model: Any, task: dict[str, Any]) -> float:
    """Mean over all label tokens."""
    model.eval()
    total, count = 0.0, 0
    for row in task["held_out"]:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(row["labels"][1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--given-order", action="store_true", help="the batches of the task file, else the Trainer's own")
    parser.add_argument("--group-by-length", action="store_true")
    options = parser.parse_args()
    with open(options.task, encoding="utf-8") as file:
        task = json.load(file)
    torch.set_num_threads(task["threads"])
    base = transformers.AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, task["dtype"]))
    model = base if task["adapter"] is None else peft.PeftModel.from_pretrained(base, task["adapter"], is_trainable=True)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=task["batch"], num_train_epochs=1, learning_rate=task["lr"],
            max_grad_norm=task["max_grad_norm"], lr_scheduler_type="linear", warmup_steps=0, weight_decay=0.0, use_cpu=True, report_to=[],
            save_strategy="no", logging_steps=1, disable_tqdm=True, seed=0, remove_unused_columns=False,
            train_sampling_strategy="group_by_length" if options.group_by_length else "random",
        )  # fmt: skip
        trainer = Recorded(model=model, args=args, train_dataset=task["rows"], data_collator=collate(task), callbacks=[clock])
        trainer.tokens, trainer.losses = [], []
        trainer.batches = task["order"] if options.given_order else None
        trainer.train()
    finish(
        task, trainer.losses, clock.seconds, trainer.tokens, held_out=lambda: held_out_loss(model, task), packages=("transformers", "peft")
    )


if __name__ == "__main__":
    main()
