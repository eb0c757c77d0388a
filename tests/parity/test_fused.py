"""The compiled small operations against their plain twins and the formulas, in both number formats, on widths that fill no register."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from luthier.kernels import compiled, fused, reference

ERROR = {torch.float32: 1e-5, torch.bfloat16: 0.012}  # of the largest number; plain torch rounds to bf16 up to three times
WIDTHS = [5, 16, 17, 72, 130]
PLAIN = compiled.Library({}, {}, None, {}, "plain")

needs_compiler = pytest.mark.skipif(not compiled.library(), reason=f"no compiled functions here: {compiled.library().words}")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _both(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Compiled, then plain."""
    got = compute()
    with monkeypatch.context() as patch:
        patch.setattr(fused, "library", lambda: PLAIN)
        want = compute()
    return got, want


def _same(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, compute: Callable[[], tuple[Tensor, ...]]) -> None:
    """Equal to rounding, and an error of a little more would be seen."""
    got, want = _both(monkeypatch, compute)
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert _error(ours, theirs) <= ERROR[dtype]
        assert _error(ours * (1 + 3 * ERROR[dtype]), theirs) > ERROR[dtype]


def _error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


@needs_compiler
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int) -> None:
    x, weight, g, residual = (
        _numbers(*shape, seed=n, dtype=dtype) for n, shape in enumerate([(400, width), (width,), (400, width), (400, width)])
    )
    _same(monkeypatch, dtype, lambda: fused.rms_norm(x, weight, 1e-5))
    r = fused.rms_norm(x, weight, 1e-5)[1]
    _same(monkeypatch, dtype, lambda: (fused.rms_norm_backward(g, x, weight, r), fused.rms_norm_backward(g, x, weight, r, residual)))
    if dtype == torch.float32:
        x.requires_grad_()
        (want,) = torch.autograd.grad(reference.rms_norm(x, weight, 1e-5), x, g)
        torch.testing.assert_close(fused.rms_norm_backward(g, x.detach(), weight, r), want, atol=2e-5, rtol=2e-4)


@needs_compiler
@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int) -> None:
    gate, up, g = (_numbers(300, width, seed=n, dtype=dtype) for n in range(3))
    _same(monkeypatch, dtype, lambda: (fused.swiglu(gate, up),))
    halves = torch.cat([gate, up], dim=1).split(width, dim=1)
    assert torch.equal(fused.swiglu(*halves), fused.swiglu(gate, up))
    _same(monkeypatch, dtype, lambda: fused.swiglu_backward(g.clone(), gate, up))
    if dtype == torch.float32:
        inputs = [gate.clone().requires_grad_(), up.clone().requires_grad_()]
        want = torch.autograd.grad(reference.swiglu(*inputs), inputs, g)
        for ours, theirs in zip(fused.swiglu_backward(g.clone(), gate, up), want, strict=False):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)


@needs_compiler
@pytest.mark.parametrize("size", [2, 6, 34, 64])
@pytest.mark.parametrize("back", [False, True])
def test_rotate(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: int, back: bool) -> None:
    x = _numbers(90, 7, size, dtype=dtype)
    angle = _numbers(90, 1, size // 2, seed=1)
    cos, sin = (torch.cat([f(angle)] * 2, dim=2).to(dtype) for f in (torch.cos, torch.sin))
    _same(monkeypatch, dtype, lambda: (fused.rotate(x, cos, sin, values=2, back=back),))
    there_and_back = fused.rotate(fused.rotate(x, cos, sin, values=2), cos, sin, values=2, back=True)
    torch.testing.assert_close(there_and_back, x, atol=1e-5 if dtype == torch.float32 else 6e-2, rtol=1e-2)
    assert torch.equal(fused.rotate(x, cos, sin, values=2)[:, 5:], x[:, 5:])


@needs_compiler
@pytest.mark.parametrize("width", [3, 16, 40, 131])
@pytest.mark.parametrize("mask", ["none", "own", "bias", "many"])
def test_softmax(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int, mask: str) -> None:
    scores, g = (_numbers(6, 9, width, seed=n, dtype=dtype) for n in range(2))
    hidden = torch.rand(6 if mask == "many" else 1, 9, width, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden[..., 0] = False
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, float("-inf")) if mask in ("bias", "many") else None
    own = 3 if mask == "own" else 0
    _same(monkeypatch, dtype, lambda: (fused.softmax_(scores.clone(), scale=0.3, bias_YC=bias, own=own),))
    w = fused.softmax_(scores.clone(), scale=0.3, bias_YC=bias, own=own)
    assert bool((w[0, 0, width - 2 :] == 0).all()) == (mask == "own" or (bias is not None and bool(hidden[0, 0, width - 2 :].all())))
    _same(monkeypatch, dtype, lambda: (fused.softmax_backward_(g.clone(), w, scale=0.3),))


@needs_compiler
@pytest.mark.parametrize("vocab", [5, 48, 1003])
def test_cross_entropy(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, vocab: int) -> None:
    logits = _numbers(33, vocab, dtype=dtype)
    target = torch.randint(vocab, (33,), generator=torch.Generator().manual_seed(1))
    whole = lambda: fused.cross_entropy(logits.clone(), target, with_gradient=True)  # noqa: E731
    loss, d_logits = whole()
    assert loss.dtype == torch.float32 and d_logits is not None and d_logits.dtype == dtype
    _same(monkeypatch, torch.float32, lambda: (whole()[0],))
    _same(monkeypatch, dtype, lambda: (whole()[1],))  # pyright: ignore[reportReturnType]
    torch.testing.assert_close(loss.sum(), reference.cross_entropy(logits.float(), torch.eye(vocab), target), atol=1e-3, rtol=1e-5)
    assert fused.cross_entropy(logits.clone(), target, with_gradient=False)[1] is None


@needs_compiler
def test_flat_vector_and_gather(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    sizes = [7, 48, 1, 333, 20_000]
    parts = [_numbers(size, seed=n, dtype=dtype) for n, size in enumerate(sizes)]

    def added() -> tuple[Tensor, ...]:
        flat = _numbers(sum(sizes), seed=9)
        fused.add_to_flat(flat, [parts[0], None, *parts[2:]], sizes)
        copies = [torch.empty_like(part) for part in parts]
        fused.copy_from_flat(copies, flat)
        return flat, *copies

    for ours, theirs in zip(*_both(monkeypatch, added), strict=True):
        assert torch.equal(ours, theirs)
    x, index = _numbers(50, 24, dtype=dtype), torch.tensor([3, 3, 49, 0, 7])
    assert torch.equal(fused.gather_rows(x, index), x[index])


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(dtype: torch.dtype, bad: float) -> None:
    """Nothing non-finite reaches the weights, because it is seen: in the loss, and in the norm of the gradient."""
    x = _numbers(4, 40, dtype=dtype)
    x[2, 33] = bad
    others = torch.tensor([0, 1, 3])
    results = [
        fused.rms_norm(x, torch.ones(40, dtype=dtype), 1e-5)[0],
        fused.rms_norm_backward(x, x.nan_to_num(0.0, 0.0), torch.ones(40, dtype=dtype), torch.ones(4, 1)),
        fused.swiglu(x, x),
        fused.softmax_(x.clone(), scale=1.0),
        fused.softmax_backward_(x.clone(), torch.full_like(x, 0.025), scale=1.0),
        fused.cross_entropy(x.clone(), torch.tensor([1, 2, 3, 4]), with_gradient=False)[0],
    ]
    for out in results:
        assert not torch.isfinite(out[2]).all() and torch.isfinite(out[others]).all()


@needs_compiler
def test_a_row_depends_on_neither_threads_nor_other_rows(dtype: torch.dtype) -> None:
    x, weight = _numbers(500, 96, dtype=dtype), _numbers(96, seed=1, dtype=dtype)
    whole = (fused.rms_norm(x, weight, 1e-5)[0], fused.swiglu(x, x), fused.softmax_(x.clone(), scale=0.5))
    torch.set_num_threads(1)
    parts = (fused.rms_norm(x[7:9], weight, 1e-5)[0], fused.swiglu(x[7:9], x[7:9]), fused.softmax_(x[7:9].clone(), scale=0.5))
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one[7:9], other)


def _words(tmp_path: Path, **environment: str) -> str:
    code = "from luthier.kernels.compiled import library; print(library().words)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"LUTHIER_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin", **environment}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@needs_compiler
def test_compiled_once_and_kept(tmp_path: Path) -> None:
    assert _words(tmp_path).startswith("compiled by")
    (made,) = (tmp_path / "kernels").iterdir()
    before = made.stat().st_mtime_ns
    assert _words(tmp_path).startswith("compiled by")
    assert made.stat().st_mtime_ns == before


def test_without_a_compiler_or_where_asked_plain_torch_says_so(tmp_path: Path) -> None:
    assert "no C++ compiler" in _words(tmp_path, PATH=str(tmp_path))
    assert "as LUTHIER_KERNELS asks" in _words(tmp_path, LUTHIER_KERNELS="plain")
    assert "'plian', not one of plain, no-amx, no-avx512, no-avx2" in _words(tmp_path, LUTHIER_KERNELS="plian")
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "c++").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (broken / "c++").chmod(0o755)
    assert "could not make" in _words(tmp_path, PATH=str(broken))
    assert not list((tmp_path / "kernels").iterdir())


def test_where_there_is_a_compiler_nothing_here_is_skipped() -> None:
    """A source that no longer compiles would else pass as a machine without a compiler."""
    found = compiled.library()
    compiler = next((path for name in compiled.COMPILERS if (path := shutil.which(name))), None)
    if compiler is None or sys.platform != "linux" or os.environ.get(compiled.SWITCH) == "plain":
        assert not found and found.words.startswith("plain torch")
        return
    assert found, found.words
    macros = subprocess.run(
        [compiler, "-march=native", *compiled.SWITCHED[os.environ.get(compiled.SWITCH, "")], "-dM", "-E", "-x", "c++", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    has = {name for name in ("AVX2", "FMA", "AVX512F", "AVX512BW", "AVX512VL", "AVX512BF16") if f"#define __{name}__ " in macros}
    is_wide = has >= {"AVX512F", "AVX512BW", "AVX512VL"}
    assert bool(found.tiles) == ("AVX512BF16" in has if is_wide else has >= {"AVX2", "FMA"})
