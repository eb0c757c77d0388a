"""How often the interval of a predicted gain holds the truth; shared by the fast and the slow tier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from luthier.stats.learning import fit_learning_curve


@dataclass(frozen=True)
class Outcome:
    covered: float  # of all runs
    covered_when_said: float  # of the runs whose last step showed a gain: only these are told
    said: float
    worth_covered: float


def learning_coverage(
    a: float, b: float, c: float, *, num_rows: int, num_items: int, seed_sd: float, runs: int, prompt_error: float = 0.25, size: int = 1
) -> Outcome:
    """True error c + a n^-b, the same items at all sizes (correlation 0.8), `size` near-copies to a cluster, training noise `seed_sd`."""
    generator = np.random.default_rng(20260103)
    sizes = [num_rows // 8, num_rows // 4, num_rows // 2, num_rows]
    clusters = [str(i // size) for i in range(num_items)]
    truth = a * num_rows**-b - a * (2 * num_rows) ** -b
    worth = (a / (prompt_error - c)) ** (1 / b)
    hits = said = said_hits = worth_hits = 0

    def shared() -> np.ndarray:
        return np.repeat(generator.normal(size=num_items // size), size)

    for run in range(runs):
        items = shared()

        def right(error: float, items: np.ndarray = items) -> np.ndarray:
            return (np.sqrt(0.8) * items + np.sqrt(0.2) * shared() > ndtri(error)).astype(float)

        scores = [right(float(np.clip(c + a * n**-b + generator.normal(0, seed_sd), 0.005, 0.995))) for n in sizes]
        fit = fit_learning_curve(scores, clusters, sizes, reference=right(prompt_error), seed_sd=seed_sd, seed=run, num_draws=500)
        _, low, high = fit.gain(2 * num_rows)
        holds = low <= truth <= high
        found = fit.worth()
        assert found is not None
        hits, said, said_hits = hits + holds, said + fit.is_rising, said_hits + (holds and fit.is_rising)
        worth_hits += found[1] <= worth <= found[2]
    return Outcome(hits / runs, said_hits / max(1, said), said / runs, worth_hits / runs)
