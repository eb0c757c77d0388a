"""Learning rate chosen on dev: a few short probes, each from the same fresh adapter, all recorded.

A probe runs its own warm-up and decay over `probe_updates`, because the dev loss in the middle of a long schedule says little
about the rate that ends best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from luthier.core.types import TokenRow
from luthier.train.loop import Diverged, FitSettings, FitState, StepRecord, fit
from luthier.train.optim import Optimiser
from luthier.train.parallel import ALONE, World
from luthier.train.watchdog import UNWATCHED, Watchdog


@dataclass(frozen=True, slots=True, kw_only=True)
class LrProbe:
    """One learning rate tried. `dev_loss` None: it diverged (and is never chosen)."""

    lr: float
    dev_loss: float | None
    updates: int
    seconds: float


def probe_learning_rate(
    model: nn.Module,
    optimiser: Optimiser,
    train: Sequence[TokenRow],
    dev: Sequence[TokenRow],
    settings: FitSettings,
    lr: float,
    *,
    probe_updates: int,
    on_step: Callable[[StepRecord, FitState], None],
    should_stop: Callable[[], bool],
    world: World = ALONE,
    watch: Watchdog = UNWATCHED,
) -> LrProbe:
    """Train `probe_updates` updates at `lr`; weights and moments are put back afterwards, for the next probe or the run itself.

    Raises RunError when memory does not suffice or another rank is gone; a run that diverges is a result, not an error.
    """
    start = optimiser.copy_result()
    probe = replace(
        settings,
        lr=lr,
        total_updates=probe_updates,
        warmup_updates=max(1, probe_updates // 10),
        eval_every=probe_updates,
        patience=0,
        save_every=0,
    )
    started = time.perf_counter()
    try:
        state = fit(
            model,
            optimiser,
            train,
            dev,
            probe,
            checkpoints=None,
            key="",
            on_step=on_step,
            should_stop=should_stop,
            world=world,
            watch=watch,
        )
    except Diverged:  # that is what a probe is for
        return LrProbe(lr=lr, dev_loss=None, updates=probe_updates, seconds=time.perf_counter() - started)
    finally:
        optimiser.forget()
        optimiser.put_back(start)
    return LrProbe(lr=lr, dev_loss=state.best_dev_loss, updates=state.step, seconds=state.train_seconds)


def best_learning_rate(probes: Sequence[LrProbe]) -> float | None:
    """The rate with the lowest dev loss; None if every probe diverged."""
    finite = [p for p in probes if p.dev_loss is not None]
    return min(finite, key=lambda p: (p.dev_loss, p.lr)).lr if finite else None
