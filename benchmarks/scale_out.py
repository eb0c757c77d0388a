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
TOKENS_PER_GPU = 16_384  # of one update: 8 rows of 2,048, computed at once: every piece gathers all weights anew
DISK_BYTES_PER_S = 2e9  # one NVMe disk, on the host of rank 0
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
    vocab: int

    @property
    def layer_params(self) -> float:
        return (self.params - 2 * self.root_params) / self.layers

    @property
    def root_params(self) -> float:
        """Embeddings; the output matrix is as large."""
        return self.vocab * self.hidden

    @property
    def activation_bytes(self) -> float:
        """bf16, recomputed: the input of every layer, and all that one layer keeps."""
        within = 10 * self.hidden + 3 * self.feed_forward
        return 2 * TOKENS_PER_GPU * (self.layers * self.hidden + within)

    @property
    def adapter_params(self) -> float:
        """LoRA on all linear layers: r * (in + out) of each."""
        h, f, kv = self.hidden, self.feed_forward, self.kv_width
        return LORA_R * self.layers * (2 * (h + h) + 2 * (h + kv) + 3 * (h + f))


MODELS = (Model("8B", 8.0e9, 32, 4096, 14336, 1024, 128_256), Model("70B", 70.6e9, 80, 8192, 28672, 1024, 128_256))


def bandwidth(gpus: int) -> float:
    return LINK_EFFICIENCY * (NVLINK_BYTES_PER_S if gpus <= NODE_GPUS else NETWORK_BYTES_PER_S)


MASTER, MOMENTS, BEST = 4, 8, {True: 2, False: 4}  # bytes of a trained weight; the best so far as it is stored: a model's in bf16
METHODS = ("LoRA, whole model on each GPU", "LoRA, sharded (FSDP2)", "all weights, whole on each GPU", "all weights, sharded (FSDP2)")


def memory_bytes(model: Model, gpus: int, *, is_full: bool, is_sharded: bool) -> float:
    """Of one GPU: what it holds, and what is whole for a moment."""
    shards = gpus if is_sharded else 1
    trained = 2 + MASTER + 4 + MOMENTS + BEST[is_full]  # bf16 and the fp32 gradient beside them
    held = (trained * model.params if is_full else 2 * model.params + trained * model.adapter_params) / shards
    gathered = 2 * (2 * model.layer_params + 2 * model.root_params) if is_sharded else 0.0  # this layer and the next, and the root unit
    gradients = 2 * 2 * model.root_params + 4 * model.root_params + 2 * model.layer_params if is_full else 0.0
    return held + gathered + gradients + model.activation_bytes


def row(model: Model, method: str, gpus: int) -> str:
    share = (gpus - 1) / gpus
    is_full, is_sharded = method.startswith("all"), "FSDP2" in method
    trained = model.params if is_full else model.adapter_params
    # Forward, forward again for what was not kept, backward to the inputs, and for trained weights to these.
    flop = (8 if is_full else 6) * model.params * TOKENS_PER_GPU
    # bf16 gathered forward and backward, fp32 gradients reduced and scattered; or one all-reduce of one flat fp32 gradient.
    sent = share * (2 * 2 * model.params + 4 * trained if is_sharded else 2 * 4 * trained)
    memory = memory_bytes(model, gpus, is_full=is_full, is_sharded=is_sharded)
    compute_s = flop / (PEAK_FLOP_PER_S * EFFICIENCY)
    link_s = sent / bandwidth(gpus)
    # FSDP2 gathers the next layer while this one computes; the flat all-reduce starts when the last piece is done.
    step_s = max(compute_s, link_s) if is_sharded else compute_s + link_s
    hours = JOB_TOKENS / (TOKENS_PER_GPU * gpus) * step_s / 3600
    saved = (MASTER + MOMENTS + BEST[is_full]) * trained
    fits = "" if memory < 0.8 * GPU_GIB * GIB else ", does not fit"
    return (
        f"| {model.name} | {method} | {gpus} | {compute_s:.2f} | {sent / 1e9:.2f} | {link_s:.3f} | {step_s:.2f} | "
        f"{compute_s / step_s:.0%} | {memory / GIB:.0f}{fits} | {saved / DISK_BYTES_PER_S:,.0f} | {hours * 60:.0f} | "
        f"{hours * gpus * USD_PER_GPU_HOUR:,.0f} |"
    )


def table() -> str:
    columns = [
        "model",
        "method",
        "GPUs",
        "computing s",
        "sent GB",
        "link s",
        "update s",
        "computing share",
        "GiB a GPU",
        "checkpoint s",
        "minutes",
        "USD",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join(lines + [row(model, method, gpus) for model in MODELS for method in METHODS for gpus in (8, 64, 512)])


def main() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "scale-out.md"
    before, rest = page.read_text(encoding="utf-8").split("<!-- table -->")
    page.write_text(f"{before}<!-- table -->\n{table()}\n<!-- /table -->{rest.split('<!-- /table -->')[1]}", encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
