"""What an artefact must keep to, and whether it did. Numbers only; they are measured in `parity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.core.types import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Limits of one way of storing weights, on fp32 computations of both sides.

    `tie_gap` None: answers may differ, and quality on the locked items decides; else each different answer must be a tie.
    """

    mean_kl: float  # nats a token
    logit: float | None  # largest difference of any logit
    tie_gap: float | None  # logits

    def as_mapping(self) -> dict[str, float]:
        """The limits that there are, by name."""
        limits = {"mean_kl": self.mean_kl, "logit": self.logit, "tie_gap": self.tie_gap}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @property
    def words(self) -> str:
        """The limits in one sentence."""
        parts = [f"mean KL divergence at most {self.mean_kl:g} nats a token on the reference answers"]
        if self.logit is not None:
            parts.append(f"no logit off by more than {self.logit:g}")
        if self.tie_gap is not None:
            parts.append(f"every answer the same, or a tie: both tokens within {self.tie_gap:g} logits of the tested model's best")
        else:
            parts.append("answers may differ; the score must not be shown to be worse, nor be lower by more than the margin")
        return "; ".join(parts)


# Measured on SmolLM2-135M and Gemma-3-270M (docs/export.md has the numbers): about ten times what a sound export shows, and far
# below what the broken ones in the tests show.
SAME, ROUNDED = "same", "rounded"
_MEAN_KL: Mapping[str, float] = {
    SAME: 1e-5, "float32": 1e-5, "F32": 1e-5, "bfloat16": 0.01, "BF16": 0.01, "float16": 0.001, "F16": 0.001, "Q8_0": 0.02,
    "Q5_1": 0.2, "Q5_0": 0.2, "Q4_1": 0.5, "Q4_0": 0.5,
}  # fmt: skip
_UNROUNDED = (SAME, "float32", "F32")
_QUANTISED = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
TIE_UNROUNDED, TIE_ROUNDED = 0.01, 0.75


def tolerance_of(storage: str) -> Tolerance:
    """The limits for weights stored as `storage`; "adapter" changes nothing in the weights it was tested with."""
    storage = SAME if storage == "adapter" else storage
    is_exact = storage in _UNROUNDED
    return Tolerance(
        mean_kl=_MEAN_KL.get(storage, _MEAN_KL["bfloat16"]),
        logit=0.02 if is_exact else None,
        tie_gap=None if storage in _QUANTISED else TIE_UNROUNDED if is_exact else TIE_ROUNDED,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was measured, as far as the gate looks at it."""

    mean_kl: float
    max_logit_difference: float
    num_different: int  # answers that differ and are no ties
    difference: Estimate  # artefact minus tested
    margin: float  # the smallest difference that matters to the user
    checks: Mapping[str, bool]


CHECK_WORDS: Mapping[str, str] = {
    "special tokens": "BOS, EOS or padding is another token than in the tested model",
    "end of turn": "the artefact does not stop where the tested model was trained to stop",
    "chat template": "the chat template writes other text than the tested model's",
    "tokens": "the tokenizer cuts the items into other tokens than in the test",
    "modelfile": "the Modelfile does not read back as what was meant",
}


def judge(found: Found, tolerance: Tolerance) -> tuple[str, ...]:
    """Why the artefact must not ship; empty if it may."""
    failures = [CHECK_WORDS[name] for name, holds in found.checks.items() if not holds]
    if not found.mean_kl <= tolerance.mean_kl:  # also catches NaN
        failures.append(f"mean KL divergence {found.mean_kl:.3g} nats a token, at most {tolerance.mean_kl:g} is allowed")
    if tolerance.logit is not None and not found.max_logit_difference <= tolerance.logit:
        failures.append(f"a logit is off by {found.max_logit_difference:.3g}, at most {tolerance.logit:g} is allowed")
    if tolerance.tie_gap is not None and found.num_different:
        failures.append(f"{found.num_different} answers differ by more than rounding")
    if tolerance.tie_gap is None:
        failures += _worse(found.difference, found.margin)
    return tuple(failures)


def _worse(difference: Estimate, margin: float) -> Sequence[str]:
    if difference.value is None or difference.high is None or difference.low is None:
        return ()
    shown = f"{100 * difference.value:+.1f} points, 95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    if difference.high < 0:
        return (f"the artefact is shown to be worse than the tested model: {shown}",)
    if difference.value < -margin:
        return (f"the artefact scores lower by more than the margin of {100 * margin:g} points: {shown}",)
    return ()
