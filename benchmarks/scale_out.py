"""What 8, 64 and 512 GPUs would do to a training of 8B and 70B parameters, on paper, and the table in docs/scale-out.md.

    python benchmarks/scale_out.py

Nothing here was measured. Every assumption is a constant below; change one and run it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
PEAK_FLOP_PER_S = 989e12  # H100 SXM, dense bf16, data sheet
EFFICIENCY = 0.5  # of that peak in matrix products: what good trainers reach on this size
GPU_GIB = 80
NODE_GPUS = 8
NVLINK_BYTES_PER_S = 450e9  # each way within a node
NETWORK_BYTES_PER_S = 50e9  # each way for one GPU between nodes: 400 Gbit/s
LINK_EFFICIENCY = 0.7
TOKENS_PER_GPU = 16_384  # of one update: 8 rows of 2,048
USD_PER_GPU_HOUR = 2.5
JOB_TOKENS = 100e6
LORA_R = 16


@dataclass(frozen=True)
class Model:
    name: str
    params: float
    layers: int
    hidden: int
    feed_forward: int
    kv_width: int

    @property
    def adapter_params(self) -> float:
        """LoRA on all linear layers: r * (in + out) of each."""
        h, f, kv = self.hidden, self.feed_forward, self.kv_width
        return LORA_R * self.layers * (2 * (h + h) + 2 * (h + kv) + 3 * (h + f))


MODELS = (Model("8B", 8.0e9, 32, 4096, 14336, 1024), Model("70B", 70.6e9, 80, 8192, 28672, 1024))


def bandwidth(gpus: int) -> float:
    return LINK_EFFICIENCY * (NVLINK_BYTES_PER_S if gpus <= NODE_GPUS else NETWORK_BYTES_PER_S)


def row(model: Model, method: str, gpus: int) -> str:
    share = (gpus - 1) / gpus
    if method == "LoRA, whole model on each GPU":
        flop = 4 * model.params * TOKENS_PER_GPU  # forward, and backward to the inputs; frozen weights need no gradient of their own
        sent = 2 * share * model.adapter_params * 4  # one all-reduce of one flat fp32 gradient for each update
        memory = model.params * 2 + model.adapter_params * (2 + 4 + 4 + 8)  # bf16 weights; adapter, master, gradient, two moments
        exposed = 1.0  # it starts when the last micro-batch is done
    else:
        flop = 6 * model.params * TOKENS_PER_GPU
        sent = 3 * share * model.params * 2  # bf16: gathered forward and backward, gradients reduced and scattered
        memory = model.params * (2 + 4 + 4 + 8) / gpus + 2 * model.params / model.layers * 2
        exposed = 0.0  # FSDP2 gathers the next layer while this one computes: only what is longer than the computing is waited for
    compute_s = flop / (PEAK_FLOP_PER_S * EFFICIENCY)
    link_s = sent / bandwidth(gpus)
    step_s = compute_s + link_s if exposed else max(compute_s, link_s)
    hours = JOB_TOKENS / (TOKENS_PER_GPU * gpus) * step_s / 3600
    fits = "" if memory < 0.8 * GPU_GIB * GIB else ", does not fit"
    return (
        f"| {model.name} | {method} | {gpus} | {compute_s:.2f} | {sent / 1e9:.2f} | {link_s:.3f} | {step_s:.2f} | "
        f"{compute_s / step_s:.0%} | {memory / GIB:.0f}{fits} | {hours * 60:.0f} | {hours * gpus * USD_PER_GPU_HOUR:,.0f} |"
    )


def table() -> str:
    lines = [
        "| model | method | GPUs | computing s | sent GB | link s | update s | computing share | GiB a GPU | minutes | USD |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    methods = ("LoRA, whole model on each GPU", "all weights, sharded (FSDP2)")
    return "\n".join(lines + [row(model, method, gpus) for model in MODELS for method in methods for gpus in (8, 64, 512)])


def main() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "scale-out.md"
    before, rest = page.read_text(encoding="utf-8").split("<!-- table -->")
    page.write_text(f"{before}<!-- table -->\n{table()}\n<!-- /table -->{rest.split('<!-- /table -->')[1]}", encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
