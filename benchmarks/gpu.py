"""On an NVIDIA GPU: training of the Llama-3.2-1B and Llama-3.1-8B shapes, here and in peers, in turn (A B C … A B C …).

    python benchmarks/gpu.py [--shape 1b 8b] [--work packed short prefix] [--method lora full] [--repeats 3] [--updates 10] [--models DIR]
    python benchmarks/gpu.py --dry-run        the same with a tiny shape and without peers, on whatever computes here; seconds on a CPU

Weights are random and made here (DIR keeps them: 2.5 and 16 GB), token ids are random: speed does not depend on what they mean. The work:

    packed    2,048-token rows, every token a label, 8 in an update
    short     72-token rows of which 7 are labels, 32 of them an instruction that all rows share, 128 in an update
    prefix    32 rows of 128 tokens behind 1,024 that all share, in an update; measured as a token tree and with the prefix in every row

Full fine-tuning of the 8B shape needs 16 bytes for each weight and is left out unless asked for (--method full --shape 8b).
PEER_PYTHON is the Python of an environment with a CUDA build of torch and any of trl, peft, unsloth, liger-kernel; what it can import is
measured (benchmarks/peers/gpu_peer.py), every variant in a row of its own; what it cannot is in the table with its error. LLaMA-Factory
takes text and no token ids; what it runs, transformers' Trainer with Liger, is one of the variants. Each run is a process of its own: two
updates to warm up and compile, then timed ones.

Reported: tokens of the rows a second; necessary floating-point work a second over the peak of bf16 products (8,192 cubed, measured in each
run); peak memory of tensors on the device; the losses. Writes results/gpu.json and the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from table import FASTEST, replace_table, shown
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from luthier.core.environment import describe_environment
from luthier.core.types import TokenRow
from luthier.kernels.device import choose_device, device_of, device_words, peak_device_gib, reset_peak_device_memory, wait_for
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.lora import LoraSettings
from luthier.models.surgery import use_fast_kernels
from luthier.models.trainable import Method, make_trainable
from luthier.tokens.tree import tree_batch
from luthier.train import step
from luthier.train.optim import make_optimiser

HERE = Path(__file__).resolve().parent
SHAPES: dict[str, dict[str, Any]] = {  # the published configurations
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 16, "vocab_size": 512, "tie_word_embeddings": True},
}  # fmt: skip
# rows in an update, tokens all rows share, tokens of each row behind them, labels of each row
WORKS = {"packed": (8, 0, 2048, 2047), "short": (128, 32, 40, 7), "prefix": (32, 1024, 128, 32)}
TINY_WORKS = {"packed": (2, 0, 64, 63), "short": (6, 8, 10, 3), "prefix": (4, 32, 8, 4)}
PEERS = (("trainer", ()), ("trainer", ("--liger",)), ("trl", ()), ("trl", ("--packing",)), ("unsloth", ("--packing",)))
WARM_UP = 2  # updates
LORA = LoraSettings(r=16, alpha=32, dropout=0.0)
LR = 1e-5


def make_model(folder: Path, shape: str) -> Path:
    """A folder with random weights and a tokenizer of a few words, made once."""
    path = folder / shape
    if not (path / "config.json").is_file():
        torch.manual_seed(0)
        config = LlamaConfig(
            **SHAPES[shape], max_position_embeddings=8192, rope_theta=500000.0, dtype=torch.bfloat16, eos_token_id=1, pad_token_id=1
        )
        with choose_device("auto"):
            model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(path)
        words = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "a": 2}, unk_token="<unk>"))
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<end>", pad_token="<end>").save_pretrained(path)
    return path


def make_rows(work: Sequence[int], vocab: int, updates: int) -> list[TokenRow]:
    count, shared, own, labels = work
    draw = random.Random(0)
    prefix = [draw.randrange(2, vocab) for _ in range(shared)]
    rows: list[TokenRow] = []
    for i in range(count * updates):
        ids = (*prefix, *(draw.randrange(2, vocab) for _ in range(own)))
        rows.append(TokenRow(example_id=str(i), input_ids=ids, is_label=(False,) * (len(ids) - labels) + (True,) * labels))
    return rows


def necessary_flop(rows: Sequence[TokenRow], sizes: dict[str, float], *, full: bool, share_prefix: bool, device: torch.device) -> float:
    """As benchmarks/utilisation.py says; where every weight is trained, its gradient is as much work as its product."""
    total = 0.0
    for piece in step.Pieces().of(rows, max_tokens=step.micro_tokens(device)):
        batch = tree_batch(piece, share_prefix=share_prefix)
        tokens, labels, prefix = batch.input_ids_T.numel(), batch.target_N.numel(), batch.tree.num_prefix
        pairs = prefix * (prefix + 1) / 2 + sum(n * prefix + n * (n + 1) / 2 for n in (len(row.input_ids) - prefix for row in piece))
        products = 6 * sizes["linear"] if full else 4 * sizes["linear"] + 6 * sizes["adapter"]
        total += products * tokens + (6 if full else 4) * sizes["head"] * labels + 12 * sizes["attention"] * pairs
    return total


def peak_flop_per_s(device: torch.device, *, repeats: int = 10) -> float:
    """Best of ten large products of random numbers, bf16 on a GPU (zeros are faster, and no measure)."""
    size = 8192 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if device.type == "cuda" else FASTEST
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        wait_for(device)
        started = time.perf_counter()
        a @ b
        wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def run_ours(task: dict[str, Any]) -> dict[str, Any]:
    """One measurement of this engine; `share_prefix` False puts the shared tokens into every row, as packing does."""
    device = choose_device("auto")
    full = task["method"] == "full"
    rows = [TokenRow(example_id=str(i), input_ids=tuple(r[0]), is_label=tuple(r[1])) for i, r in enumerate(task["rows"])]
    base = open_model(Path(task["model"]), dtype=torch.bfloat16, device=device)
    config = base.config
    sizes = {
        "linear": sum(m.weight.numel() for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"),
        "head": config.vocab_size * config.hidden_size,
        "attention": config.num_hidden_layers * config.num_attention_heads * config.head_dim,
    }  # fmt: skip
    trained = make_trainable(base, Method(name=task["method"], lora=None if full else LORA), seed=0)
    use_layout_attention(trained.causal)
    optimiser = make_optimiser(trained.model, weight_decay=0.0, compute_dtype=torch.bfloat16)
    use_fast_kernels(trained.model)
    sizes["adapter"] = optimiser.flat_M.numel()
    trained.model.train()
    plain = step.tree_batch
    if not task["share_prefix"]:
        step.tree_batch = lambda piece, **_: plain(piece, share_prefix=False)
    peak = peak_flop_per_s(device)
    reset_peak_device_memory(device)
    losses: list[float] = []
    batches = [rows[i : i + task["batch"]] for i in range(0, len(rows), task["batch"])]
    try:
        for number, batch in enumerate(batches):
            if number == WARM_UP:
                wait_for(device)
                started = time.perf_counter()
            losses.append(step.train_step(trained.model, optimiser, batch, pieces=step.Pieces(), lr=LR, max_grad_norm=1.0).loss)
        wait_for(device)
    finally:
        step.tree_batch = plain
    seconds = time.perf_counter() - started
    timed = batches[WARM_UP:]
    work = sum(necessary_flop(b, sizes, full=full, share_prefix=task["share_prefix"], device=device_of(trained.model)) for b in timed)
    return {
        "tokens_per_s": sum(len(row.input_ids) for batch in timed for row in batch) / seconds,
        "share_of_peak": work / seconds / peak,
        "peak_tflop_per_s": peak / 1e12,
        "peak_device_gib": peak_device_gib(device),
        "losses": losses,
    }


def run_process(command: list[str], task: Path) -> dict[str, Any]:
    """The JSON on the last line of a command's output; or why there is none."""
    done = subprocess.run([*command, str(task)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"failed": lines[-1].strip()[:300] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def contenders(work: str, *, peers: bool) -> dict[str, tuple[list[str] | None, bool]]:
    """Name -> command of a peer (None: this engine), and whether a shared prefix is computed once."""
    out: dict[str, tuple[list[str] | None, bool]] = {"luthier": (None, True)}
    if work == "prefix":
        out["luthier, prefix in every row"] = (None, False)
    python = os.environ.get("PEER_PYTHON")
    if peers and python:
        for name, flags in PEERS:
            out[" ".join([name, *flags])] = ([python, str(HERE / "peers" / "gpu_peer.py"), "--with", name, *flags], False)
    return out


def measure(plan: dict[str, Any], folder: Path, *, repeats: int, peers: bool, in_process: bool) -> dict[str, Any]:
    """All contenders in turn, on one task file each."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(repeats):
        for name, (command, share_prefix) in contenders(plan["work"], peers=peers).items():
            task = {**plan, "share_prefix": share_prefix}
            path = folder / "task.json"
            path.write_text(json.dumps(task), encoding="utf-8")
            ours = [sys.executable, __file__, "--one"]
            run = run_ours(task) if command is None and in_process else run_process(command or ours, path)
            found.setdefault(name, []).append(run)
            print(plan["shape"], plan["work"], plan["method"], "|", name, "|", _short(run), flush=True)
    return {**{key: plan[key] for key in ("shape", "work", "method", "batch", "updates")}, "runs": found}


def _short(run: dict[str, Any]) -> str:
    if "failed" in run:
        return str(run["failed"])
    memory = "memory is the process's" if run["peak_device_gib"] is None else f"{run['peak_device_gib']:.2f} GiB"
    return f"{run['tokens_per_s']:,.0f} tokens/s, {memory}"


def table(report: dict[str, Any]) -> list[str]:
    lines = ["| shape | work | method | contender | tokens/s | share of the bf16 peak | peak GiB | first and last loss |", "|---" * 8 + "|"]
    for row in report["found"]:
        for name, runs in row["runs"].items():
            losses = next((run["losses"] for run in runs if run.get("losses")), [])
            ends = f"{losses[0]:.3f}, {losses[-1]:.3f}" if losses else "–"
            cells = [row["shape"], row["work"], row["method"], name, shown(runs, "tokens_per_s", ",.0f")]
            cells += [shown(runs, "share_of_peak", ".2f"), shown(runs, "peak_device_gib", ".2f"), ends]
            lines.append("| " + " | ".join(cells) + " |")
    peaks = [
        run["peak_tflop_per_s"] for row in report["found"] for runs in row["runs"].values() for run in runs if "peak_tflop_per_s" in run
    ]
    about = "; ".join(f"{k}: {v}" for k, v in report["environment"].items())
    return [*lines, "", f"bf16 products: median {statistics.median(peaks):,.1f} TFLOP/s. {about}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="*", choices=[*SHAPES], default=["1b", "8b"])
    parser.add_argument("--work", nargs="*", choices=[*WORKS], default=[*WORKS])
    parser.add_argument("--method", nargs="*", choices=["lora", "full"], help="default: both, full not for 8b")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10, help="timed ones")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "luthier-gpu-models")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape, no peers, no table")
    parser.add_argument("--one", type=Path, metavar="TASK", help="one measurement of this engine, as this script calls itself")
    options = parser.parse_args()
    if options.one:
        print("\n" + json.dumps(run_ours(json.loads(options.one.read_text(encoding="utf-8")))))
        return
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no NVIDIA GPU that torch can use; --dry-run checks this script without one")
    if options.dry_run and options.out == HERE / "results" / "gpu.json":
        parser.error("--dry-run measures nothing worth keeping: give it another --out")
    shapes, works = (["tiny"], TINY_WORKS) if options.dry_run else (options.shape, WORKS)
    repeats, updates = (1, 1) if options.dry_run else (options.repeats, options.updates)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for shape in shapes:
            model = make_model(Path(name) if options.dry_run else options.models, shape)
            for work in options.work:
                rows = make_rows(works[work], SHAPES[shape]["vocab_size"], updates + WARM_UP)
                for method in options.method or (["lora"] if shape == "8b" else ["lora", "full"]):
                    plan = {
                        "shape": shape, "work": work, "method": method, "batch": works[work][0], "updates": updates, "model": str(model),
                        "lr": LR, "warm_up": WARM_UP, "rows": [[row.input_ids, row.is_label] for row in rows],
                    }  # fmt: skip
                    found.append(measure(plan, Path(name), repeats=repeats, peers=not options.dry_run, in_process=options.dry_run))
    wanted = ("python", "platform", "torch", "transformers", "peft", "git_revision")
    environment = {k: v for k, v in describe_environment().items() if k in wanted}
    environment |= {"device": device_words(choose_device("auto")), "cuda": str(torch.version.cuda)}
    report = {"environment": environment, "warm_up": WARM_UP, "found": found}
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = table(report)
    print("\n".join(lines))
    if not options.dry_run:
        replace_table("gpu", lines)


if __name__ == "__main__":
    main()
