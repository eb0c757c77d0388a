"""The last line of every peer's script, so that all of them measure alike. No imports but the standard library's and torch."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from typing import Any

WARM_UP = 2  # updates


def peak_rss_gb() -> float:
    """Of this process since it began; unlike ru_maxrss it does not count what the process that started it had."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024 / 1e9


def finish(
    task: dict[str, Any],
    losses: Sequence[float],
    seconds: Sequence[float],
    tokens: Sequence[int],
    *,
    held_out: Callable[[], float | None],
    packages: Sequence[str],
    peak_gb: float | None = None,
) -> None:
    """Print the JSON line. `tokens` are those of the rows of each update, without padding."""
    assert len(losses) == len(seconds) == len(tokens), (len(losses), len(seconds), len(tokens))
    steady = sum(seconds[WARM_UP:])
    found = {
        "tokens_per_s": sum(tokens[WARM_UP:]) / steady if steady else None,
        "peak_rss_gb": peak_gb or peak_rss_gb(),  # before the held-out rows are looked at
        "losses": list(losses),
        "tokens": list(tokens),
        "held_out_loss": held_out(),
        "train_seconds": sum(seconds),
        "threads": task["threads"],
        "dtype": task["dtype"],
        "versions": {name: importlib.metadata.version(name) for name in ("torch", *packages)},
    }
    print("\n" + json.dumps(found))
