"""How close to the machine's limit a training is: necessary floating-point work a second, over the measured peak of bf16 products.

    python benchmarks/utilisation.py [--data DIR] [--batch 8] [--updates 12] [--profile NAME]

Necessary work of an update, LoRA on frozen weights, for T computed tokens (a shared prefix once) and N label tokens:
4 * linear weights * T (forward, and backward to the inputs), 6 * adapter weights * T, 4 * vocabulary * hidden * N (output layer),
12 * heads * head size * query-key pairs (attention, three times 4). Nothing that is computed twice counts twice. Products of
2,048 x 2,048 are timed between the updates, so that both see the same machine; the best of them is the peak. Where neighbours take
half of the machine for seconds, an update does not reach what the best product did in another second: `share_of_neighbours` holds each
update against the faster of the two products beside it. Writes
results/utilisation.json, by processor.

With --profile, where the time of an update of the last batch size goes, by kind of operation, under that name in
results/where_time_goes.json and in the table of README.md. The profiler itself slows small operations down; compiled functions are
timed around their calls. Another revision is measured with PYTHONPATH set to its src.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from table import FASTEST, machine

from luthier.core.environment import describe_environment
from luthier.core.types import Example, TokenRow
from luthier.kernels.compiled import library
from luthier.models.backbone import use_layout_attention
from luthier.models.catalogue import resolve
from luthier.models.load import open_model
from luthier.models.lora import LoraSettings, add_lora
from luthier.models.surgery import use_fast_kernels
from luthier.models.tokenizer import open_tokenizer
from luthier.tokens.template import open_chat
from luthier.tokens.tree import tree_batch
from luthier.train.loop import settled_objects
from luthier.train.optim import make_optimiser
from luthier.train.order import epoch_batches
from luthier.train.step import MICRO_TOKENS, Pieces, train_step

HERE = Path(__file__).resolve().parent
INSTRUCTION = "Classify the intent of this banking customer query. Answer with the intent name only."


def encode_rows(data: Path, model_path: Path, count: int) -> list[TokenRow]:
    with (data / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    encoder = open_chat(open_tokenizer(model_path))
    return [
        encoder.encode_example(
            Example(
                id=str(i), path="train.csv", line=i, kind="instruct", instruction=INSTRUCTION, input=row["text"], response=row["category"]
            )
        )
        for i, row in enumerate(rows[:count])
    ]


def necessary_flop(rows: list[TokenRow], *, linear: int, adapter: int, vocab_x_hidden: int, layers: int, heads_x_size: int) -> float:
    total = 0.0
    for piece in Pieces().of(rows, max_tokens=MICRO_TOKENS):
        batch = tree_batch(piece)
        tokens, labels = batch.input_ids_T.numel(), batch.target_N.numel()
        prefix = batch.tree.num_prefix
        leaves = [len(row.input_ids) - prefix for row in piece]
        pairs = prefix * (prefix + 1) / 2 + sum(n * prefix + n * (n + 1) / 2 for n in leaves)
        total += (4 * linear + 6 * adapter) * tokens + 4 * vocab_x_hidden * labels + 12 * heads_x_size * layers * pairs
    return total


def gemm_s(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ b
    return time.perf_counter() - start


# kind -> names of torch's operations; the rest is "other": Python, autograd, views, sums
COMPILED: dict[str, tuple[str, ...]] = {
    "compiled: a layer": ("adapted_layer", "adapted_layer_backward"),
    "compiled: a layer without its attention": ("adapted_in", "adapted_out", "adapted_in_backward", "adapted_out_backward"),
    "compiled: attention": ("tree_attention", "tree_attention_backward"),
    "compiled: single products": ("wide", "few", "narrow", "outer"),
    "compiled: small operations": (),  # all others
}
KINDS: dict[str, tuple[str, ...]] = {
    "large products": (),  # by size, see `kind_of`
    "small products (adapters)": (),
    "products of attention": ("aten::bmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data"),
    "copies, gathers, scatters": ("aten::copy_", "aten::index_select", "aten::index_add_", "aten::cat", "aten::gather", "aten::fill_"),
    "elementwise": (
        "aten::mul", "aten::mul_", "aten::add", "aten::add_", "aten::sub_", "aten::silu", "aten::silu_backward", "aten::addcmul_",
        "aten::linalg_vector_norm", "aten::sum", "aten::neg", "aten::exp_", "aten::div_", "aten::rsqrt_",
    ),
}  # fmt: skip
SMALL = 64  # a product with a side no longer than this is an adapter's,
VOCABULARY = 10_000  # but for the output layer's, where labels may be few


def kind_of(name: str, shapes: list[list[int]]) -> str:
    if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
        sides = [side for shape in shapes if len(shape) == 2 for side in shape]
        return "small products (adapters)" if min(sides) < SMALL and max(sides) < VOCABULARY else "large products"
    return next((kind for kind, names in KINDS.items() if name in names), "other")


def time_compiled(ms: Counter[str], calls: Counter[str]) -> None:
    """From now on, add up what each kind of compiled function takes."""

    def timed(name: str, function: Callable[..., None]) -> Callable[..., None]:
        kind = next((kind for kind, names in COMPILED.items() if name in names), list(COMPILED)[-1])

        def call(*given: object) -> None:
            start = time.perf_counter()
            function(*given)
            ms[kind] += (time.perf_counter() - start) * 1e3
            calls[kind] += 1

        return call

    found = library()
    for functions in (found.bf16, found.f32, found.tiles):
        cast("dict[str, Callable[..., None]]", functions).update({name: timed(name, function) for name, function in functions.items()})


def profile(update: Callable[[], object], times: int = 3) -> dict[str, Any]:
    """Milliseconds and calls of one update by kind of operation, means of `times` updates."""
    compiled_ms, compiled_calls = Counter[str](), Counter[str]()
    time_compiled(compiled_ms, compiled_calls)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(times):
            update()
    ms: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        kind = kind_of(event.key, event.input_shapes)
        ms[kind] += event.self_cpu_time_total / 1e3 / times
        calls[kind] += event.count / times if event.key.startswith("aten::") else 0
    ms["other"] -= sum(compiled_ms.values()) / times  # the profiler counts them to the operation that calls them
    for kind in COMPILED:
        ms[kind], calls[kind] = compiled_ms[kind] / times, compiled_calls[kind] / times
    return {kind: {"ms": round(ms[kind], 1), "calls": round(calls[kind])} for kind in (*COMPILED, *KINDS, "other")}


def write_profiles(profiles: dict[str, Any]) -> None:
    lines = ["| milliseconds (calls) of an update | " + " | ".join(profiles) + " |", "|---" * (1 + len(profiles)) + "|"]
    for kind in (*COMPILED, *KINDS, "other"):
        parts = (found["kinds"].get(kind) for found in profiles.values())
        cells = ("" if part is None else f"{part['ms']:.0f} ({part['calls']:,})" for part in parts)
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    totals = (f"{sum(part['ms'] for part in found['kinds'].values()):.0f}" for found in profiles.values())
    lines.append("| all, under the profiler | " + " | ".join(totals) + " |")
    lines += ["", "; ".join(f"{name}: batch {found['batch']}, {found['git_revision']}" for name, found in profiles.items()) + "."]
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split("<!-- time -->")
    readme.write_text("\n".join([before + "<!-- time -->", *lines, "<!-- /time -->"]) + rest.split("<!-- /time -->")[1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "banking77")
    parser.add_argument("--batch", type=int, nargs="*", default=[8, 16])
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--profile", metavar="NAME")
    options = parser.parse_args()
    path = resolve("smollm2-135m")
    base = open_model(path, dtype=torch.bfloat16)
    linear = sum(m.weight.numel() for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head")
    config = base.config
    model = add_lora(base, LoraSettings(r=16, alpha=32, dropout=0.0), seed=0)
    use_layout_attention(model.get_base_model())
    optimiser = make_optimiser(model, weight_decay=0.0, compute_dtype=torch.bfloat16)
    use_fast_kernels(model)
    model.train()
    sizes = {
        "linear": linear, "adapter": optimiser.flat_M.numel(), "vocab_x_hidden": config.vocab_size * config.hidden_size,
        "layers": config.num_hidden_layers, "heads_x_size": config.hidden_size,
    }  # fmt: skip
    found = []
    a, b = torch.ones(2048, 2048, dtype=FASTEST), torch.ones(2048, 2048, dtype=FASTEST)
    for size in options.batch:
        rows = encode_rows(options.data, path, size * (options.updates + 2))
        rates, beside, row_tokens_per_s, products = [], [], [], [gemm_s(a, b) for _ in range(5)]
        with settled_objects():
            for number, indices in enumerate(epoch_batches([len(r.input_ids) for r in rows], batch=size, seed=0, epoch=0)):
                batch = [rows[i] for i in indices]
                start = time.perf_counter()
                train_step(model, optimiser, batch, pieces=Pieces(), lr=2e-4, max_grad_norm=1.0)
                seconds = time.perf_counter() - start
                products.append(gemm_s(a, b))
                if number >= 2:
                    rates.append(necessary_flop(batch, **sizes) / seconds / 1e9)
                    beside.append(rates[-1] / (2 * 2048**3 / min(products[-2:]) / 1e9))
                    row_tokens_per_s.append(sum(len(r.input_ids) for r in batch) / seconds)
        peak = 2 * 2048**3 / min(products) / 1e9
        shares = sorted(rate / peak for rate in rates)
        found.append(
            {
                "batch": size, "n_updates": len(rates), "peak_gflop_per_s": round(peak), "product_median_gflop_per_s":
                round(2 * 2048**3 / statistics.median(products) / 1e9), "achieved_gflop_per_s": round(statistics.median(rates)),
                "share_median": round(statistics.median(shares), 3), "share_least": round(shares[0], 3), "share_most": round(shares[-1], 3),
                "share_of_neighbours": round(statistics.median(beside), 3),
                "tokens_per_s": round(statistics.median(row_tokens_per_s)),
            }
        )  # fmt: skip
        print(found[-1], flush=True)
    environment = describe_environment()
    if options.profile:
        path = HERE / "results" / "where_time_goes.json"
        profiles = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kinds = profile(lambda: train_step(model, optimiser, batch, pieces=Pieces(), lr=2e-4, max_grad_norm=1.0))
        profiles[options.profile] = {"batch": options.batch[-1], "git_revision": environment["git_revision"], "kinds": kinds}
        path.write_text(json.dumps(profiles, indent=1) + "\n", encoding="utf-8")
        write_profiles(profiles)
        return
    wanted = ("python", "cpu", "cpu_flags", "cores", "torch", "transformers", "git_revision")
    path = HERE / "results" / "utilisation.json"
    reports = json.loads(path.read_text(encoding="utf-8"))
    reports[machine(environment)] = {"environment": {k: v for k, v in environment.items() if k in wanted}, "found": found}
    path.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
