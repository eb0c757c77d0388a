"""What more training rows would bring: a power law through the errors at a few sizes, and how sure that is.

error(n) = c + a n^-b with a >= 0, c >= 0 and 0 < b <= 2, weighted by 1 / SE^2. For a given b it is linear in a and c, so b is looked
up on a grid and a, c follow in closed form: no optimiser that could stop in the wrong place, and thousands of bootstrap draws at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.core.seeds import seed_for
from luthier.stats.clusters import FloatArray, cluster_totals

NUM_DRAWS = 2_000
LEVEL = 0.90  # of predictions: they stand on few points, and 95 % would pretend to know the tails
EXPONENTS = np.geomspace(0.05, 2.0, 40)
MAX_FACTOR = 4  # nothing is predicted beyond so many times the rows there are
MAX_MISFIT = 3.84  # 95 % of chi^2 with 1 df: four points, three parameters
SEED_SD = 0.01  # spread between trainings that differ in their seed alone, where it was not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningFit:
    """A fitted learning curve. `laws_D3`: a, b, c of each bootstrap draw; `law_3`: of the measured errors themselves.

    `reference_D` is the error of the arm it is held against (a prompt), from the same draws of items.
    """

    sizes: tuple[int, ...]
    errors: tuple[float, ...]
    law_3: FloatArray
    laws_D3: FloatArray
    last_gain: tuple[float, float, float]  # of the largest size over the next smaller: value, low, high
    misfit: float  # weighted squared distance of the points from the law: chi^2 with 1 df where the law holds
    reference: float | None
    reference_D: FloatArray | None

    @property
    def is_rising(self) -> bool:
        """Whether the last step shows a gain. Where it does not, nothing beyond the data is said."""
        return self.last_gain[1] > 0

    @property
    def follows_law(self) -> bool:
        """Whether the points lie about the law. A model that has only begun to learn is above it: its errors fall faster and faster."""
        return self.misfit <= MAX_MISFIT

    def gain(self, num_rows: int) -> tuple[float, float, float]:
        """Score gained with `num_rows` instead of the largest size: value, low, high."""
        now = self.sizes[-1]
        found = _errors(self.laws_D3, now) - _errors(self.laws_D3, num_rows)
        return (float(_errors(self.law_3[None], now)[0] - _errors(self.law_3[None], num_rows)[0]), *_ends(found))

    def score(self, num_rows: float) -> tuple[float, float, float]:
        """Predicted score: value, low, high."""
        return (1 - float(_errors(self.law_3[None], num_rows)[0]), *_ends(1 - _errors(self.laws_D3, num_rows)))

    def worth(self) -> tuple[float, float, float] | None:
        """Rows at which the curve crosses the reference: value, low, high; 0: always above it, inf: never."""
        if self.reference is None or self.reference_D is None:
            return None
        value = float(_crossing(self.law_3[None], np.array([self.reference]))[0])
        crossings_D = np.sort(_crossing(self.laws_D3, self.reference_D))
        low, high = (float(crossings_D[round(level * (len(crossings_D) - 1))]) for level in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return value, low, high


def fit_learning_curve(
    scores: Sequence[Sequence[float]],
    clusters: Sequence[str],
    sizes: Sequence[int],
    *,
    reference: Sequence[float] | None = None,
    seed_sd: float = SEED_SD,
    seed: int,
    num_draws: int = NUM_DRAWS,
) -> LearningFit:
    """Fit scores[size][item], sizes rising; the same items at every size.

    Each bootstrap draw takes clusters of items with replacement, the same for all sizes and the reference, because they are paired, and
    adds to each size a training noise of `seed_sd`: each was trained once. Raises ValueError for fewer than three sizes.
    """
    if len(sizes) < 3 or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"sizes {list(sizes)}: expected three or more, rising")
    rows = [*scores, *([] if reference is None else [reference])]
    totals = [cluster_totals([1 - score for score in row], clusters) for row in rows]
    numerators_RC = np.stack([total.numerators for total in totals])
    sizes_C = totals[0].denominators
    generator = np.random.default_rng(seed_for(seed, "stats/learning"))
    num_clusters = len(sizes_C)
    drawn_DC = generator.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=num_draws)
    widened = np.sqrt(num_clusters / max(1, num_clusters - 1))  # a bootstrap spread is too small by that factor
    errors_R = numerators_RC.sum(axis=1) / sizes_C.sum()
    draws_DR = errors_R + widened * ((drawn_DC @ numerators_RC.T) / (drawn_DC @ sizes_C)[:, None] - errors_R)
    num_sizes = len(sizes)
    noise_DP = generator.normal(0, seed_sd, size=(num_draws, num_sizes))
    points_DP = draws_DR[:, :num_sizes] + noise_DP
    variance_P = draws_DR[:, :num_sizes].var(axis=0) + max(seed_sd, 1e-3) ** 2
    last_D = points_DP[:, -2] - points_DP[:, -1]
    law_3 = _fit(np.asarray(sizes, dtype=np.float64), errors_R[None, :num_sizes], 1 / variance_P)[0]
    expected_P = np.array([_errors(law_3[None], size)[0] for size in sizes])
    return LearningFit(
        sizes=tuple(sizes),
        errors=tuple(float(error) for error in errors_R[:num_sizes]),
        law_3=law_3,
        misfit=float(((errors_R[:num_sizes] - expected_P) ** 2 / variance_P).sum()),
        laws_D3=_fit(np.asarray(sizes, dtype=np.float64), points_DP, 1 / variance_P),
        last_gain=(float(errors_R[num_sizes - 2] - errors_R[num_sizes - 1]), *_ends(last_D)),
        reference=None if reference is None else float(errors_R[-1]),
        reference_D=None if reference is None else draws_DR[:, -1],
    )


def _fit(sizes_P: FloatArray, errors_DP: FloatArray, weights_P: FloatArray) -> FloatArray:
    """Weighted least squares of each row of errors, [D, 3]: a, b, c."""
    best_D = np.full(len(errors_DP), np.inf)
    laws_D3 = np.zeros((len(errors_DP), 3))
    total = weights_P.sum()
    mean_D = errors_DP @ weights_P / total
    for exponent in EXPONENTS:
        x_P = sizes_P**-exponent
        x_mean = float(x_P @ weights_P / total)
        spread = float(((x_P - x_mean) ** 2) @ weights_P)
        a_D = np.maximum(0.0, ((x_P - x_mean) * weights_P) @ (errors_DP - mean_D[:, None]).T / spread)
        c_D = mean_D - a_D * x_mean
        # An asymptote below 0 is impossible: then the law without one.
        through_D = errors_DP @ (weights_P * x_P) / float((x_P**2) @ weights_P)
        a_D, c_D = np.where(c_D < 0, np.maximum(0.0, through_D), a_D), np.maximum(0.0, c_D)
        residuals_DP = errors_DP - a_D[:, None] * x_P - c_D[:, None]
        loss_D = (residuals_DP**2) @ weights_P
        is_better_D = loss_D < best_D - 1e-12
        laws_D3[is_better_D] = np.stack([a_D, np.full_like(a_D, exponent), c_D], axis=1)[is_better_D]
        best_D = np.minimum(best_D, loss_D)
    return laws_D3


def _errors(laws_D3: FloatArray, num_rows: float) -> FloatArray:
    return laws_D3[:, 2] + laws_D3[:, 0] * num_rows ** -laws_D3[:, 1]


def _crossing(laws_D3: FloatArray, errors_D: FloatArray) -> FloatArray:
    """Rows at which each law reaches its error."""
    above_D = errors_D - laws_D3[:, 2]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found_D = (laws_D3[:, 0] / above_D) ** (1 / laws_D3[:, 1])
    return np.where(above_D <= 0, np.inf, np.where(laws_D3[:, 0] <= 0, 0.0, found_D))


def _ends(values_D: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(values_D, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
