"""What is measured: kinds of work, their rows, our command for them, and the same work as one JSON file that every peer can read.

    python benchmarks/work.py TASK.json FOLDER SETTINGS.json    writes such a file (a process of its own: it holds a model for a while)

The file has the very tokens, labels, order of updates and starting adapter of `luthier train` with the same settings.
"""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from luthier.core.console import quiet
from luthier.models.catalogue import resolve
from luthier.pipeline.settings import load_settings

HERE = Path(__file__).resolve().parent
TRL_SCRIPT = HERE.parents[1] / "shared" / "bench" / "trl_sft.py"
TIMEOUT_S = 540
DEV_ROWS = 8
THREADS = 2
# Gemma's base model has no chat template, without which TRL takes no conversations: both sides get the turns of its chat models.
GEMMA_TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# work -> rows, batch, model, longest row, TRL's variants, full fine-tuning; limit_s where a peer needs longer than TIMEOUT_S for three
# steady updates; peers where others cannot run: whole logits of 8 rows of 512 tokens and 262,144 words are 4 GB, several times over
WORKS: dict[str, dict[str, Any]] = {
    "banking77": {"rows": 160, "batch": 8, "max_length": 512, "peer": [["--packing"], []]},
    "alpaca": {"rows": 48, "batch": 8, "max_length": 512, "peer": [["--packing"], []]},
    "gsm8k-8shot": {"rows": 24, "batch": 4, "max_length": 2048, "peer": [[]], "limit_s": 1800},
    "alpaca, gemma-3-270m": {
        "data": "alpaca",
        "model": "gemma-3-270m",
        "template": GEMMA_TURNS,
        "rows": 96,
        "batch": 8,
        "max_length": 512,
        "peer": [["--packing"]],
        "peers": ["trl"],
        "limit_s": 1800,
    },
    "banking77, all weights": {"data": "banking77", "rows": 80, "batch": 8, "max_length": 512, "peer": [["--full"]], "full": True},
}


def model_of(plan: dict[str, Any]) -> str:
    """The model's folder; with a template of the plan's, a folder of links to it and that template."""
    folder = resolve(plan.get("model", "smollm2-135m"))
    if "template" not in plan:
        return str(folder)
    linked = Path(tempfile.gettempdir()) / f"luthier-benchmark-{folder.name}"
    linked.mkdir(exist_ok=True)
    for file in (path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")):
        if not (linked / file.name).exists():
            (linked / file.name).symlink_to(file.resolve())
    (linked / "chat_template.jinja").write_text(plan["template"], encoding="utf-8")
    return str(linked)


def peer_rows(work: str) -> list[tuple[str, str]]:
    """(prompt, response) in TRL's order, from its script."""
    spec = importlib.util.spec_from_file_location("trl_sft", TRL_SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = module.rows_of(work)
    random.Random(0).shuffle(rows)
    return rows


def as_columns(prompt: str, response: str) -> dict[str, str]:
    """The same text, with what rows share (the block of solved examples) as instruction, as a user would write it."""
    shared, question, rest = prompt.rpartition("\n\nQuestion: ")
    if not question:
        return {"instruction": prompt, "input": "", "output": response}
    return {"instruction": shared, "input": f"Question: {rest}", "output": response}


def write_rows(work: str, plan: dict[str, Any], folder: Path) -> None:
    """train, dev and test rows as files of `luthier`."""
    rows = peer_rows(plan.get("data", work))
    parts = {"train": rows[: plan["rows"]], "dev": rows[plan["rows"] :][:DEV_ROWS], "test": rows[plan["rows"] + DEV_ROWS :][:DEV_ROWS]}
    for name, part in parts.items():
        lines = [json.dumps(as_columns(prompt, response)) + "\n" for prompt, response in part]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def settings_of(plan: dict[str, Any], folder: Path, dtype: str) -> dict[str, Any]:
    """Our settings by dotted key; no warm-up and one look at the dev loss, because the peers do no more."""
    return {
        "data.paths": [str(folder / "train.jsonl")], "data.dev": str(folder / "dev.jsonl"), "data.test": str(folder / "test.jsonl"),
        "model.name": model_of(plan), "model.dtype": dtype, "model.max_length": plan["max_length"], "model.allow_truncation": True,
        "train.method": "full" if plan.get("full") else "lora", "train.batch": plan["batch"], "train.epochs": 1.0, "train.lr": 2e-4,
        "train.warmup_ratio": 0.0, "train.eval_every": 0, "seed": 0, "threads": plan.get("threads", THREADS),
    }  # fmt: skip


def ours_command(settings: dict[str, Any], run_dir: Path) -> list[str]:
    sets = [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in settings.items() if key != "data.paths"]
    flags = [part for item in sets for part in ("--set", item)]
    return [sys.executable, "-m", "luthier", "train", *settings["data.paths"], *flags, "--run-dir", str(run_dir), "--fresh", "--json"]


def write_task(settings: dict[str, Any], folder: Path, path: Path) -> None:
    """The JSON file, and the starting adapter in `folder`/start in PEFT's format."""
    import torch

    from luthier.core.types import TokenRow
    from luthier.models.lora import save_adapter
    from luthier.pipeline.plan import TrainInputs, make_plan
    from luthier.pipeline.prepare import prepare
    from luthier.store.layout import open_run
    from luthier.train.order import epoch_batches
    from luthier.train.parallel import ALONE
    from luthier.train.watchdog import UNWATCHED

    def plain(row: TokenRow) -> dict[str, list[int]]:
        labels = [token if is_label else -100 for token, is_label in zip(row.input_ids, row.is_label, strict=True)]
        return {"input_ids": list(row.input_ids), "labels": labels}

    wanted = load_settings(None, settings)
    with open_run(folder / "task-run", wanted) as run:
        prepared = prepare(wanted, run, quiet)
    plan = make_plan(wanted, TrainInputs.of(prepared, quiet, lambda: False, ALONE, UNWATCHED))
    if plan.trained.method.makes_adapter:
        save_adapter(plan.trained.model, folder / "start", base_info=prepared.info)  # pyright: ignore[reportArgumentType]
    lengths = [len(row.input_ids) for row in prepared.train_rows]
    config: Any = plan.trained.causal.config
    task = {
        "model": settings["model.name"], "dtype": settings["model.dtype"], "threads": torch.get_num_threads(),
        "adapter": str(folder / "start") if plan.trained.method.makes_adapter else None, "lora_r": 16, "lora_alpha": 32,
        "lr": settings["train.lr"], "max_grad_norm": wanted.train.max_grad_norm, "batch": settings["train.batch"],
        "max_length": settings["model.max_length"], "pad_id": config.pad_token_id or 0,
        "order": epoch_batches(lengths, batch=wanted.train.batch, seed=wanted.seed, epoch=0),
        "rows": [plain(row) for row in prepared.train_rows], "held_out": [plain(row) for row in prepared.dev_rows],
    }  # fmt: skip
    path.write_text(json.dumps(task), encoding="utf-8")


def make_task(settings: dict[str, Any], folder: Path) -> Path:
    """`write_task` in a process of its own. Raises SystemExit with its error."""
    path, given = folder / "task.json", folder / "settings.json"
    given.write_text(json.dumps(settings), encoding="utf-8")
    found = run_json([sys.executable, str(HERE / "work.py"), str(path), str(folder), str(given)])
    if "failed" in found:
        sys.exit(f"the rows could not be encoded: {found['failed']}")
    return path


def run_json(command: list[str], *, limit_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The JSON object of a command's last line of output, with its wall time; {"failed": the last line of its error} if there is none."""
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished in {limit_s:.0f} s"}
    except OSError as error:
        return {"failed": f"{command[0]}: {error.strerror}"}
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"failed": lines[-1].strip()[:300] if lines else f"exit code {done.returncode}"}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "wall_s": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    write_task(json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")), Path(sys.argv[2]), Path(sys.argv[1]))
    print(json.dumps({"task": sys.argv[1]}))
