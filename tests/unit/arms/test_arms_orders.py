"""Other orders of the same solved examples: each once, each with its name, the same for the same seed."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from luthier.arms.orders import shot_orders
from luthier.core.types import Example


def _row(n: int, response: str = "a", text: str = "") -> Example:
    return Example(id=f"{n:03d}", path="t", line=n, kind="instruct", input=text or f"word{n}", response=response)


def _orders(shots: list[Example], rows: list[Example] | None = None, *, number: int = 5, seed: int = 0, stream: str = "s"):
    return shot_orders(
        shots, shots if rows is None else rows, number=number, group=lambda row: row.response, query=lambda row: row.input, seed=seed,
        stream=stream,
    )  # fmt: skip


@given(num_shots=st.integers(1, 7), number=st.integers(0, 12), seed=st.integers(0, 9))
def test_every_order_is_another_and_holds_the_same_shots(num_shots: int, number: int, seed: int) -> None:
    shots = [_row(n, "ab"[n % 2]) for n in range(num_shots)]
    found = _orders(shots, number=number, seed=seed)
    assert len(found) == min(number, math.factorial(num_shots) - 1)
    assert len({name for name, _ in found}) == len({order for _, order in found}) == len(found)
    for _, order in found:
        assert sorted(order, key=lambda row: row.id) == shots and list(order) != shots
    assert found == _orders(shots, number=12, seed=seed)[:number]  # what was chosen can be made again


def test_what_stands_last_is_named() -> None:
    shots = [_row(0, "often", "green apple"), _row(1, "rare", "red car"), _row(2, "seldom", "blue sea")]
    rows = [*shots, *(_row(10 + n, "often", "car of mine") for n in range(5)), _row(20, "seldom", "blue")]
    found = dict(_orders(shots, rows))
    assert [row.response for row in found["reversed"]] == ["seldom", "rare", "often"]
    assert [row.response for row in found["commonest answer last"]] == ["rare", "seldom", "often"]
    assert found["most typical last"][-1].input == "red car" and found["most typical last"][0].input == "green apple"
    assert list(found)[3:] == ["shuffle 1", "shuffle 2"]


def test_shuffles_have_a_stream_of_their_own() -> None:
    shots = [_row(n, str(n)) for n in range(6)]
    assert _orders(shots) == _orders(shots)
    assert _orders(shots) != _orders(shots, seed=1)
    assert _orders(shots) != _orders(shots, stream="t")
