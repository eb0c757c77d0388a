"""One new token a row over its own tokens: against the formula in fp32, rows of all lengths, and nothing behind their ends."""

from __future__ import annotations

import pytest
import torch
from tests.fixtures.products import numbers
from torch import Tensor

from luthier.kernels import compiled, reference
from luthier.kernels.step_attention import step_attention

needs_tiles = pytest.mark.skipif(not compiled.library().tiles, reason=f"no tiles here: {compiled.library().words}")


def _made(lengths: list[int], *, heads: int, kv: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Heads of the new tokens as a layer leaves them, store, and where the new tokens go; behind the rows' ends stands NaN."""
    columns = max(lengths) + 3
    store = torch.full((2, len(lengths) + 1, columns, kv, size), float("nan")).bfloat16()
    for r, length in enumerate(lengths):
        store[:, r, : length - 1] = numbers(2, length - 1, kv, size, seed=10 + r)
    slot = torch.tensor([r * columns + length - 1 for r, length in enumerate(lengths)])
    new = numbers(len(lengths), heads + 2 * kv, size, seed=1)
    return (*new.split([heads, kv, kv], dim=1), store, slot)


@needs_tiles
@pytest.mark.parametrize("lengths", [[1], [200], [7, 1, 33, 5], [150] * 20])
@pytest.mark.parametrize(("heads", "kv", "size"), [(9, 3, 64), (4, 4, 32), (6, 1, 96)])
def test_against_the_formula(lengths: list[int], heads: int, kv: int, size: int) -> None:
    q, k, v, store, slot = _made(lengths, heads=heads, kv=kv, size=size)
    made = step_attention(q, k, v, store[0], store[1], slot, scaling=0.3)
    assert made is not None
    for r, length in enumerate(lengths):
        assert torch.equal(store[0, r, length - 1], k[r]) and torch.equal(store[1, r, length - 1], v[r])
        assert store[:, r, length:].isnan().all()
        keys, values = (part[r, :length].float().repeat_interleave(heads // kv, dim=1).transpose(0, 1)[None] for part in store)
        want, want_lse = reference.attention_lse(q[r, None, :, None].float(), keys, values, scaling=0.3)
        torch.testing.assert_close(made[0][r].float(), want[0, :, 0], atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(made[1][r], want_lse[0, :, 0], atol=2e-3, rtol=1e-4)
        if 1 < length <= 7:
            with pytest.raises(AssertionError):  # one column too few is seen
                fewer = reference.attention_lse(q[r, None, :, None].float(), keys[:, :, :-1], values[:, :, :-1], scaling=0.3)
                torch.testing.assert_close(made[1][r], fewer[1][0, :, 0], atol=2e-3, rtol=1e-4)
    assert store[:, -1].isnan().all()  # no row of this batch


@needs_tiles
def test_the_result_does_not_depend_on_threads_or_on_other_rows() -> None:
    lengths = [300, 5, 80, 299]
    q, k, v, store, slot = _made(lengths, heads=9, kv=3, size=64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(step_attention(q, k, v, store[0], store[1], slot, scaling=0.125))
    finally:
        torch.set_num_threads(before)
    assert found[0] is not None and all(one is not None and torch.equal(one[0], found[0][0]) for one in found)
    alone = step_attention(q[1:2], k[1:2], v[1:2], store[0, 1:], store[1, 1:], torch.tensor([4]), scaling=0.125)
    assert alone is not None and torch.equal(alone[0][0], found[0][0][1])


def test_what_does_not_suit_is_left_to_others() -> None:
    for size, dtype in ((16, torch.bfloat16), (64, torch.float32)):
        q, k, v, store, slot = _made([3, 2], heads=4, kv=2, size=size)
        assert step_attention(q.to(dtype), k.to(dtype), v.to(dtype), *store.to(dtype), slot, scaling=0.3) is None
    q, k, v, store, slot = _made([3, 2], heads=4, kv=2, size=64)
    assert step_attention(q.contiguous(), k, v, store[0], store[1], slot, scaling=0.3) is None
