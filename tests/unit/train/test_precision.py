"""Which number format `auto` takes, from what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.kernels import compiled
from luthier.train import precision


@pytest.mark.parametrize(
    ("bf16", "fp32", "has_tiles", "chosen"),
    [
        (420.0, 190.0, True, "bfloat16"),
        (140.0, 160.0, True, "bfloat16"),  # half of the memory at nearly the speed
        (90.0, 160.0, True, "float32"),
        (140.0, 160.0, False, "float32"),
        (0.75, 160.0, False, "float32"),
        (300.0, 160.0, False, "bfloat16"),
    ],
)
def test_bf16_is_taken_where_its_products_are_worth_it(
    bf16: float, fp32: float, has_tiles: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = {"wide": print} if has_tiles else {}
    monkeypatch.setattr(precision, "library", lambda: replace(compiled.library(), tiles=tiles))
    monkeypatch.setattr(precision, "_measured", lambda _: (bf16, fp32))
    found = precision.choose_precision("auto")
    assert found.name == chosen and f"bf16 {bf16:.0f}, fp32 {fp32:.0f} GFLOP/s" in found.reason
    assert precision.choose_precision("auto", settled="float32").name == "float32"  # a run stays with what it began with


def test_what_is_measured_is_the_product_that_the_engine_makes() -> None:
    """torch's bf16 products are a hundred times as slow without AVX-512, and say nothing of the tiles."""
    bf16, fp32 = precision._measured(precision.CPU)
    assert fp32 > 0 and (not compiled.library().tiles or bf16 > 0.2 * fp32)
