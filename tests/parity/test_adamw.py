"""One step of AdamW in one pass: the formula, torch's own, and what else it does to weights and gradient."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from luthier.kernels import compiled, reference
from luthier.kernels.adamw import Adam, adamw
from luthier.train import optim
from luthier.train.optim import make_optimiser

pytestmark = pytest.mark.skipif(not compiled.library(), reason=f"no compiled functions here: {compiled.library().words}")
SIZES = [7, 48, 1, 333, 20_000]
BETAS, EPS = (0.9, 0.999), 1e-8


def _numbers(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _formula(numbers: Sequence[Tensor], adam: Adam) -> tuple[Tensor, Tensor, Tensor]:
    weight, grad, mean, square = (vector.double() for vector in numbers)
    how = {"lr": adam.lr, "eps": adam.eps, "weight_decay": adam.weight_decay}
    return reference.adamw(weight, grad, mean, square, betas=adam.betas, update=adam.update, **how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("weight_decay", "update"), [(0.0, 1), (0.1, 2), (0.1, 5000)])
def test_a_step_is_the_formula(dtype: torch.dtype, weight_decay: float, update: int) -> None:
    weight, grad, mean, square = (_numbers(sum(SIZES), seed) for seed in range(4))
    square.square_()
    adam = Adam(lr=1e-2, betas=BETAS, eps=EPS, weight_decay=weight_decay, update=update)
    wanted = _formula((weight, grad * 0.25, mean, square), adam)
    parts = [torch.empty(size, dtype=dtype) for size in SIZES]
    assert adamw(parts, weight, grad, mean, square, scale=0.25, adam=adam)
    for ours, theirs in zip((weight, mean, square), wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(torch.cat(parts), weight.to(dtype)) and not grad.any()
    another = _formula((weight, grad, mean, square), adam)[0]
    assert not torch.allclose(weight.double(), another, rtol=1e-6, atol=1e-6)


def _trained(steps: int, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and optimiser state after some updates, and the norms of their gradients; with torch's steps where a patch is given."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(37, 19), nn.Linear(19, 5))
    optimiser = make_optimiser(model, weight_decay=0.05, compute_dtype=torch.bfloat16)
    if monkeypatch is not None:
        monkeypatch.setattr(optim, "adamw", lambda *_, **__: False)
    norms: list[float] = []
    for update in range(steps):
        for number, param in enumerate(model.parameters()):
            param.grad = _numbers(param.numel(), 10 * update + number).reshape(param.shape).to(torch.bfloat16)
        optimiser.accumulate()
        _, norm = optim.apply_update(optimiser, torch.zeros((), dtype=torch.float64), lr=1e-2, max_grad_norm=1.0, weight=7)
        norms.append(norm)
    return {**optimiser.state(), **{name: p.detach() for name, p in model.named_parameters()}}, norms


def test_many_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, norms = _trained(40)
    theirs, other_norms = _trained(40, monkeypatch)
    assert norms == other_norms and ours.keys() == theirs.keys()
    assert ours["optimiser.all.step"].item() == theirs["optimiser.all.step"].item() == 40
    for name, tensor in ours.items():
        loose = 0.01 if tensor.dtype == torch.bfloat16 else 2e-6
        torch.testing.assert_close(tensor, theirs[name], rtol=loose, atol=loose)
    assert not torch.allclose(ours["master.0.weight"], _trained(39)[0]["master.0.weight"], rtol=2e-6, atol=2e-6)


def test_what_it_cannot_compute_is_left_as_it_is() -> None:
    weight, grad, mean, square = (_numbers(16, seed).double() for seed in range(4))
    before = [tensor.clone() for tensor in (weight, grad, mean, square)]
    adam = Adam(lr=1.0, betas=BETAS, eps=EPS, weight_decay=0.0, update=1)
    assert not adamw([torch.empty(16)], weight, grad, mean, square, scale=1.0, adam=adam)
    assert all(torch.equal(a, b) for a, b in zip((weight, grad, mean, square), before, strict=True))
