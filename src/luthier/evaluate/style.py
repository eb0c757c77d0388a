"""Does an answer sound like the training answers: a classifier that tells these from what the base model writes unasked for a style.

Trained on training answers against the base model's zero-shot answers to training inputs, and judged on test items, which neither has
seen: where it cannot tell wanted answers from the base model's (AUC below 0.8), there is no style to measure and nothing is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.arms.classic import Classifier, FloatArray, fit_classifier

STRENGTH = 10.0  # the floor's middle one
MIN_TEXTS = 20  # of each kind
MIN_AUC = 0.8  # evaluation.md, section 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StyleJudge:
    """A trained classifier. `auc`: how often a wanted test answer looks more like a training answer than a zero-shot one does."""

    classifier: Classifier
    auc: float
    num_references: int
    num_zero_shot: int

    @property
    def is_usable(self) -> bool:
        """Whether the two ways of writing can be told apart."""
        return self.auc >= MIN_AUC

    def matches(self, text: str) -> float:
        """1.0 if the text looks more like a training answer than like the base model's."""
        return float(_margins(self.classifier, [text])[0] > 0)


def train_judge(
    references: Sequence[str], zero_shot: Sequence[str], *, held_out: Sequence[str], held_out_zero_shot: Sequence[str]
) -> StyleJudge:
    """Train on as many of each kind as the rarer one has (at least `MIN_TEXTS`), and judge it on held-out texts of both."""
    n = min(len(references), len(zero_shot))
    if n < MIN_TEXTS or not held_out or not held_out_zero_shot:
        raise ValueError(f"{n} texts of each kind")
    texts = [*references[:n], *zero_shot[:n]]
    classifier = fit_classifier(texts, ["reference"] * n + ["base"] * n, strength=STRENGTH, terms="chars")
    wanted, base = _margins(classifier, held_out), _margins(classifier, held_out_zero_shot)
    return StyleJudge(classifier=classifier, auc=area_under_curve(wanted, base), num_references=n, num_zero_shot=n)


def area_under_curve(higher_N: FloatArray, lower_M: FloatArray) -> float:
    """Share of the pairs in which the first kind scores higher, ties half (Mann and Whitney 1947)."""
    gaps_NM = higher_N[:, None] - lower_M[None, :]
    return float(np.mean((gaps_NM > 0) + 0.5 * (gaps_NM == 0)))


def _margins(classifier: Classifier, texts: Sequence[str]) -> FloatArray:
    """Log-odds of "reference" against "base"; labels stand in order of their names."""
    logits_N2 = classifier.logits(texts)
    return logits_N2[:, classifier.labels.index("reference")] - logits_N2[:, classifier.labels.index("base")]
