"""What an artefact must keep to, and whether it did. Numbers only; they are measured in `parity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.core.types import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Limits of one way of storing weights, on fp32 computations of both sides.

    With `same_answers` each different answer must be a tie; without it quality on the locked items decides.
    """

    mean_kl: float  # nats a token
    logit: float | None  # largest difference of any logit
    tie_gap: float  # logits
    same_answers: bool

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
        tie = f"a tie (the tested model sees each of its tokens within {self.tie_gap:g} logits of its best)"
        parts.append(
            f"every answer the same, or {tie}"
            if self.same_answers
            else "answers may differ, but the score must not be shown to be worse, nor be lower by more than the margin"
        )
        return "; ".join(parts)


# Set above what sound exports of SmolLM2-135M showed (docs/export.md has the numbers). bf16 keeps 8 bits of a weight: what a small
# adapter adds is of the size of its rounding.
_EXACT = Tolerance(mean_kl=1e-5, logit=0.02, tie_gap=0.01, same_answers=True)
_HALF = Tolerance(mean_kl=0.001, logit=None, tie_gap=0.05, same_answers=True)


def _rounded(mean_kl: float) -> Tolerance:
    return Tolerance(mean_kl=mean_kl, logit=None, tie_gap=0.05, same_answers=False)


TOLERANCES: Mapping[str, Tolerance] = {
    "adapter": _EXACT, "float32": _EXACT, "F32": _EXACT, "float16": _HALF, "F16": _HALF, "bfloat16": _rounded(0.03), "BF16": _rounded(0.03),
    "Q8_0": _rounded(0.05), "Q5_1": _rounded(0.1), "Q5_0": _rounded(0.1), "Q4_1": _rounded(0.2), "Q4_0": _rounded(0.2),
}  # fmt: skip


def in_llama(tolerance: Tolerance) -> Tolerance:
    """The same limits for llama.cpp, which rounds activations as it rounds weights: to fp16 at best."""
    return Tolerance(mean_kl=max(tolerance.mean_kl, _HALF.mean_kl), logit=None, tie_gap=0.05, same_answers=tolerance.same_answers)


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
    "spelling": "its tokens spell another text than in the test",
    "modelfile": "the Modelfile does not read back as what was meant",
}


def judge(found: Found, tolerance: Tolerance) -> tuple[str, ...]:
    """Why the artefact must not ship; empty if it may."""
    failures = [CHECK_WORDS[name] for name, holds in found.checks.items() if not holds]
    if not found.mean_kl <= tolerance.mean_kl:  # also catches NaN
        failures.append(f"mean KL divergence {found.mean_kl:.3g} nats a token, at most {tolerance.mean_kl:g} is allowed")
    if tolerance.logit is not None and not found.max_logit_difference <= tolerance.logit:
        failures.append(f"a logit is off by {found.max_logit_difference:.3g}, at most {tolerance.logit:g} is allowed")
    if tolerance.same_answers and found.num_different:
        failures.append(f"{found.num_different} answers differ by more than rounding")
    if not tolerance.same_answers:
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
