"""Cross-entropy summed over label tokens, without ever holding a [tokens, vocab] tensor.

Memory is one chunk of logits, at most `CHUNK_LOGITS * 6` bytes (plain: fp32, and once more in the number format of the weights), instead of
all of them three times over (logits, log-softmax, gradient): for Gemma's 262,144 words 0.2 instead of 3.2 GB per 1,024 label tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.kernels import fused, wide

CHUNK_TOKENS = 256
CHUNK_LOGITS = 2**25  # 128 tokens of 262,144 words: a product of fewer rows would wait for the weights


def chunk_tokens(vocab: int) -> int:
    """How many label tokens are computed at once."""
    return max(1, min(CHUNK_TOKENS, CHUNK_LOGITS // vocab))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is formed in the forward pass, chunk by chunk, while the chunk's logits are at hand.

    d(sum of -log softmax(h W^T)[target]) / dh = (softmax - onehot) W, and likewise for W; backward only scales them.
    """

    @staticmethod
    def forward(ctx: Any, h_NE: Tensor, weight_VE: Tensor, target_N: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=h_NE.device)
        grad_h = torch.empty_like(h_NE) if ctx.needs_input_grad[0] else None
        grad_w: Tensor | None = None
        needs_w: bool = ctx.needs_input_grad[1]
        size = chunk_tokens(weight_VE.shape[0])
        # one room for all chunks: the system hands out each new one of 64 MiB page by page
        logits_CV = h_NE.new_empty(min(size, h_NE.shape[0]), weight_VE.shape[0])
        for start in range(0, h_NE.shape[0], size):
            part = slice(start, start + size)
            needs = grad_h is not None or needs_w
            logits = wide.product([(h_NE[part], weight_VE.T)], out_TO=logits_CV[: h_NE[part].shape[0]])
            loss_N, d_logits = fused.cross_entropy(logits, target_N[part], with_gradient=needs)
            total += loss_N.sum()
            if d_logits is None:
                continue
            if grad_h is not None:
                wide.product([(d_logits, weight_VE)], out_TO=grad_h[part])
            if needs_w:  # chunks add up in fp32; where one is all, a [vocab, hidden] tensor of it would only take room
                part_w = wide.product([(d_logits.T, h_NE[part])])
                grad_w = part_w if grad_w is None else grad_w.float().add_(part_w)
        ctx.save_for_backward(grad_h, grad_w)
        ctx.weight_dtype = weight_VE.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_h, grad_w = ctx.saved_tensors
        return (
            None if grad_h is None else grad_h * grad_total.to(grad_h.dtype),
            None if grad_w is None else (grad_w * grad_total).to(ctx.weight_dtype),
            None,
        )


def chunked_cross_entropy(h_NE: Tensor, weight_VE: Tensor, target_N: Tensor) -> Tensor:
    """Sum over N label tokens of -log softmax(h W^T)[target], in fp32. Plain twin: `reference.cross_entropy`."""
    return _ChunkedCrossEntropy.apply(h_NE, weight_VE, target_N)  # pyright: ignore[reportReturnType]
