"""No memory left, under a limit as `ulimit -v` sets it: matrix A7. Compiled functions alone, and the real command."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.test_parallel import _env
from tests.fixtures.workplace import make_workplace

from luthier.kernels import compiled

LARGE = bool(os.environ.get("LUTHIER_LARGE"))
ROOMS_KIB = (0, 100, 300, 1000, 2000, 4000, 8000, 16000)
# Method, the update at whose beginning the limit falls (1: of the forecast, 6: the second of the training), KiB that may be had beyond it
LIMITS = [("lora", 1, 100), ("lora", 6, 2000), ("full", 1, 2000), ("full", 6, 100)]
if LARGE:
    LIMITS = [(method, nth, room_kib) for method in ("lora", "full") for nth in (1, 6) for room_kib in ROOMS_KIB]
ENV = {"MALLOC_ARENA_MAX": "1", "OMP_WAIT_POLICY": "passive"}  # a thread's own arena is memory that no limit counts a second time

# Each function is called where nothing of 32 KiB can be had any more, must say so, and compute the same as ever once there is memory.
KERNELS = """
import ctypes, resource
import torch
from luthier.kernels.compiled import library

torch.set_num_threads(2)
library_, libc = library(), ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
made = torch.Generator().manual_seed(0)
def bf16(*shape): return torch.randn(*shape, generator=made).bfloat16()
N, V = 64, 100_000
logits, target, loss = bf16(N, V), torch.arange(N), torch.zeros(N)
narrow_x, narrow_w, narrow_out = bf16(64, 1 << 15), bf16(16, 1 << 15), torch.zeros(64, 16).bfloat16()
u, g, outer_out = bf16(1 << 15, 16), bf16(1 << 15, 64), torch.zeros(16, 64).bfloat16()
wide_x, wide_w, wide_out = bf16(256, 4608), bf16(512, 4608), torch.zeros(256, 512).bfloat16()
T, H, K, D = 2048, 4, 2, 64
heads, grads, attended = bf16(T, H + 2 * K, D), bf16(T, H, D), torch.zeros(T, H, D).bfloat16()
d_heads, segments = torch.zeros(T, H + 2 * K, D).bfloat16(), torch.tensor([[0, T]])
C = 1 << 15
store, new, slot = bf16(2, C, K, D), bf16(H + 2 * K, D), torch.tensor([C - 1])
step_out, log_sums = torch.zeros(H, D).bfloat16(), torch.zeros(H)
class Part(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("x_stride", ctypes.c_int64), ("K", ctypes.c_int64), ("w", ctypes.c_void_p),
                ("k_stride", ctypes.c_int64), ("o_stride", ctypes.c_int64)]
part = Part(wide_x.data_ptr(), 4608, 4608, wide_w.data_ptr(), 1, 4608)
scores = logits.clone()
tree = (heads.data_ptr(), segments.data_ptr(), 1, 0, H, K, D, 0.1)
CALLS = {  # name -> arguments but for the threads, and what is written
    "cross_entropy": ((scores.data_ptr(), target.data_ptr(), loss.data_ptr(), N, V, 1), (scores, loss)),
    "softmax": ((scores.data_ptr(), None, N, V, 1, 0, 1.0), (scores,)),
    "narrow": ((narrow_x.data_ptr(), 1 << 15, 64, 1 << 15, narrow_w.data_ptr(), 1, 1 << 15, 16, 1.0, narrow_out.data_ptr(), 16),
               (narrow_out,)),
    "outer": ((u.data_ptr(), 16, None, 16, g.data_ptr(), 64, 1 << 15, 64, None, outer_out.data_ptr(), 64, 1), (outer_out,)),
    "wide": ((ctypes.addressof(part), 1, 256, 512, None, None, 0, wide_out.data_ptr(), 512), (wide_out,)),
    "tree_attention": ((*tree, attended.data_ptr()), (attended,)),
    "tree_attention_backward": ((*tree, grads.data_ptr(), d_heads.data_ptr()), (d_heads,)),
    "step_attention": ((new[0].data_ptr(), new[H].data_ptr(), new[H + K].data_ptr(), (H + 2 * K) * D, store[0].data_ptr(),
                        store[1].data_ptr(), slot.data_ptr(), 1, C, H, K, D, 0.1, step_out.data_ptr(), log_sums.data_ptr()),
                       (step_out, log_sums)),
}
CALLS = {name: call for name, call in CALLS.items() if name in library_.bf16 or name in library_.tiles}
def call(name, threads):
    scores.copy_(logits)
    (library_.bf16 | library_.tiles)[name](*CALLS[name][0], threads)
(torch.ones(1 << 20) * 2).sum()  # threads begin
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), -1))
held, small = [], []
for size, kept in ((1 << 20, held), (1 << 17, held), (1 << 14, small)):
    while at := libc.malloc(ctypes.c_size_t(size)):
        kept.append(at)
for at in small[::4]:  # holes, for what Python needs
    libc.free(ctypes.c_void_p(at))
short = {}
for name in CALLS:
    for threads in (1, 2):
        try:
            call(name, threads)
        except MemoryError:
            short[name] = short.get(name, 0) + 1
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
for name, (_, written) in CALLS.items():
    call(name, 2)
    first = [tensor.clone() for tensor in written]
    call(name, 1)
    assert all(torch.equal(a, b) and a.isfinite().all() and a.any() for a, b in zip(first, written)), name
print(sorted(CALLS), sorted(short), set(short.values()))
assert set(CALLS) == set(short) and set(short.values()) == {2}
"""

# argv: KiB that may be had beyond what is there when the nth update begins, n, then the command
LIMITED = """
import resource, sys
room, nth, sys.argv[1:] = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
from luthier.train import loop
train_step, calls = loop.train_step, [0]
def limited(*arguments, **named):
    calls[0] += 1
    if calls[0] == nth:
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (room << 10), -1))
    return train_step(*arguments, **named)
loop.train_step = limited
from luthier.cli.main import main
main()
"""


@pytest.mark.skipif(not compiled.library() or sys.platform != "linux", reason=f"no compiled functions here: {compiled.library().words}")
def test_a_compiled_function_without_memory_says_so_and_is_as_good_as_before() -> None:
    done = subprocess.run([sys.executable, "-c", KERNELS], capture_output=True, text=True, env={**_env(), **ENV}, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-2000:])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows so long that an update of 32 at once keeps many times what the model weighs."""
    root = make_workplace(tmp_path_factory.mktemp("memory"))
    (root / "limited.py").write_text(LIMITED, encoding="utf-8")
    rng, words = random.Random("0/memory"), ("order", "card", "refund", "late", "please", "change", "charged", "twice")
    rows = [{"text": f"{i} {' '.join(rng.choices(words, k=50))}", "category": " ".join(rng.choices(words, k=20))} for i in range(120)]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def _run(place: Path, name: str, room_kib: int, nth: int, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(place / "limited.py"), str(room_kib), str(nth), "train", str(place / "train.jsonl"), "--input", "text",
        "--output", "category", "--model", str(place / "model"), "--run-dir", str(place / name), "--epochs", "1", "--batch", "32", "--lr",
        "0.005", "--threads", "2", "--set", "model.dtype=bfloat16", "--set", "train.micro_batch=32", "--json", *more,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env={**_env(), **ENV}, timeout=300, check=False)


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, list[float]]:
    """Losses without a limit, by method."""
    out: dict[str, list[float]] = {}
    for method in ("lora", "full"):
        done = _run(place, method, 0, 0, "--method", method)
        assert done.returncode == 0, done.stderr
        out[method] = json.loads(done.stdout.splitlines()[-1])["losses"]
    return out


@pytest.mark.timeout(1200)  # the first one waits for `whole`
@pytest.mark.parametrize(("method", "nth", "room_kib"), LIMITS)
def test_under_a_limit_pieces_halve_or_it_ends_with_one_clear_error(
    place: Path, whole: dict[str, list[float]], method: str, nth: int, room_kib: int
) -> None:
    """Never by a signal or as "a bug"; what is computed in smaller pieces is the same update, to the rounding of bf16."""
    done = _run(place, f"{method}-{nth}-{room_kib}", room_kib, nth, "--method", method)
    result = json.loads(done.stdout.splitlines()[-1])
    if done.returncode == 0:
        assert result["losses"] == pytest.approx(whole[method], rel=2e-3)
    else:
        assert done.returncode == 2 and "not enough memory" in result["error"]["message"], done.stderr[-2000:]
