"""A neutral yardstick on a GPU: transformers' Trainer (with Liger or without), TRL or Unsloth on a task file of benchmarks/gpu.py.

    python gpu_peer.py --with trainer|trl|unsloth [--liger] [--packing] TASK.json

Runs in an environment of its own (PEER_PYTHON). bf16 weights, AdamW fused, LoRA r=16 on all linear layers in the peer's own way. Time is
from the beginning to the end of an update, the device waited for; the first updates are warm-up. Prints one JSON object, the last line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="peer", choices=["trainer", "trl", "unsloth"], required=True)
    parser.add_argument("--liger", action="store_true")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("task")
    options = parser.parse_args()
    with open(options.task, encoding="utf-8") as file:
        task = json.load(file)
    if options.peer == "unsloth":
        import unsloth  # noqa: F401  # before transformers, as it asks
    import torch
    import transformers

    rows = [{"input_ids": ids, "labels": [i if keep else -100 for i, keep in zip(ids, mask, strict=True)]} for ids, mask in task["rows"]]
    on_gpu = torch.cuda.is_available()
    model, tokenizer = open_model(options.peer, task)
    seconds: list[float] = []
    losses: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - self.started)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {
            "output_dir": folder, "per_device_train_batch_size": task["batch"], "num_train_epochs": 1, "learning_rate": task["lr"],
            "max_grad_norm": 1.0, "lr_scheduler_type": "constant", "weight_decay": 0.0, "report_to": [], "save_strategy": "no",
            "logging_steps": 1, "disable_tqdm": True, "optim": "adamw_torch_fused", "use_liger_kernel": options.liger, "bf16": False,
            "use_cpu": not on_gpu,
        }  # fmt: skip
        trainer = make_trainer(options, given, model, tokenizer, rows, task)
        trainer.add_callback(Clock())
        trainer.train()
    per_update = sum(len(row["input_ids"]) for row in rows) / max(1, len(seconds))
    steady = seconds[task["warm_up"] :]
    print(
        "\n"
        + json.dumps(
            {
                "tokens_per_s": per_update * len(steady) / sum(steady) if steady else None,
                "peak_device_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
                "losses": losses,
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            }
        )
    )


def open_model(peer: str, task: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    import transformers

    full = task["method"] == "full"
    if peer == "unsloth":
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            task["model"], max_seq_length=8192, dtype=torch.bfloat16, load_in_4bit=False, full_finetuning=full
        )
        if not full:
            model = FastLanguageModel.get_peft_model(
                model, r=16, lora_alpha=32, lora_dropout=0, target_modules=TARGETS, use_gradient_checkpointing=False
            )
        return model, tokenizer
    model = transformers.AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.bfloat16, attn_implementation="sdpa")
    if not full:
        import peft

        lora = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    return model, transformers.AutoTokenizer.from_pretrained(task["model"])


def make_trainer(options: Any, given: dict[str, Any], model: Any, tokenizer: Any, rows: list[dict[str, Any]], task: dict[str, Any]) -> Any:
    import transformers

    longest = max(len(row["input_ids"]) for row in rows)
    if options.peer == "trainer":
        collate = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True)
        arguments = transformers.TrainingArguments(**given)
        return transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)  # type: ignore[arg-type]
    import trl
    from datasets import Dataset

    packed: dict[str, Any] = {}
    if options.packing:  # as many rows of an update as fit into one sequence; the number of updates stays about the same
        packed = {"packing": True, "per_device_train_batch_size": 1}
        longest = longest * task["batch"]
    config = trl.SFTConfig(**{**given, **packed, "max_length": longest, "loss_type": "chunked_nll"})
    return trl.SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


if __name__ == "__main__":
    main()
