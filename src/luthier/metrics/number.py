"""Answers that come to a number: the last one counts, the way there does not."""

from __future__ import annotations

from luthier.data.final_number import final_number


def number_match(pred: str, gold: str) -> float | None:
    """1.0 if both come to the same number, 0.0 if the answer comes to another or to none; None if the reference has none."""
    wanted = final_number(gold)
    if wanted is None:
        return None
    return 1.0 if final_number(pred) == wanted else 0.0
