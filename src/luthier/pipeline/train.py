"""`luthier train`: fine-tune only; nothing is measured."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from luthier.core.console import Progress
from luthier.core.stop import stop_on_signals
from luthier.pipeline.data import write_data_files
from luthier.pipeline.prepare import prepare
from luthier.pipeline.settings import Settings
from luthier.pipeline.tune import TrainInputs, tune
from luthier.store.layout import open_run


def train(settings: Settings, progress: Progress) -> dict[str, object]:
    """Read, check, split, train. Returns lines for people and one JSON object; killed anywhere, the same call goes on."""
    with stop_on_signals() as should_stop, open_run(Path(settings.run_dir), settings) as folder:
        prepared = prepare(settings, folder, progress)
        write_data_files(folder, prepared.data)
        record = tune(settings, folder, TrainInputs.of(prepared, progress, should_stop))
        found: dict[str, object] = {
            "tokens_per_s": record.tokens_per_s,
            "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9,
            "losses": [step.loss for step in record.curve],
            "dev_losses": [[step.step, step.dev_loss] for step in record.curve if step.dev_loss is not None],
            "lr": record.lr,
            "epochs": record.epochs,
            "best_step": record.best_step,
            "stopped_early": record.stopped_early,
            "train_seconds": record.train_seconds,
            "search_seconds": record.search_seconds,
            "adapter": record.adapter,
            "run_dir": str(folder.root),
        }
        best = "not measured" if record.best_dev_loss is None else f"{record.best_dev_loss:.4f} at update {record.best_step}"
        speed = "not measured (too few updates)" if record.tokens_per_s is None else f"{record.tokens_per_s:,.0f} tokens/s"
        lines = [
            f"{record.method}; {record.num_rows:,} rows, {record.updates} of {record.total_updates} updates",
            f"learning rate {record.lr:g}, best dev loss {best}" + (", stopped early" if record.stopped_early else ""),
            f"{record.train_seconds:.0f} s, {speed}; {record.precision}",
            f"adapter: {record.adapter}",
        ]
        return {"lines": lines, "json": found}
