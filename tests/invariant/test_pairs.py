"""Every pair of training options: refused by name, or one update of the tiny model with a finite loss that moves its weights."""

from __future__ import annotations

import math
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.fixtures.tiny_model import make_tiny_model
from tests.invariant.test_methods import ROWS, _inputs, _settings

from luthier.core.errors import ConfigError
from luthier.pipeline.plan import begin, make_plan
from luthier.pipeline.setting_groups import TrainSettings
from luthier.train.loop import FitState, attempt_update
from luthier.train.parallel import ALONE

CHOICES: dict[str, tuple[Any, ...]] = {
    **{key: get_args(TrainSettings.model_fields[key].annotation) for key in ("method", "optimiser", "schedule", "lora_init")},
    "lora_rslora": (False, True), "lora_dropout": (0.0, 0.2), "checkpoint_activations": (False, True), "neftune_alpha": (0.0, 5.0),
    "micro_batch": (None, 2), "weight_decay": (0.0, 0.1), "precision": ("float32", "bfloat16"),
}  # fmt: skip
Option = tuple[str, Any]
PAIRS = [
    pair
    for one, other in combinations(CHOICES, 2)
    for pair in product([(one, v) for v in CHOICES[one]], [(other, v) for v in CHOICES[other]])
]
REFUSED = {  # each names the key that does not fit
    ("method", "lora_init"): {("dora", "pissa"), ("freeze", "pissa"), ("full", "pissa")},
    ("method", "lora_rslora"): {("freeze", True), ("full", True)},
    ("method", "lora_dropout"): {("freeze", 0.2), ("full", 0.2)},
}


def _is_refused(first: Option, second: Option) -> bool:
    return (first[1], second[1]) in REFUSED.get((first[0], second[0]), ())


def _runs() -> list[dict[str, Any]]:
    """Few runs that hold every pair which is not refused: each takes, key by key, the value that adds most pairs not yet held."""
    left = {pair for pair in PAIRS if not _is_refused(*pair)}
    out: list[dict[str, Any]] = []
    while left:
        chosen: list[Option] = list(min(left, key=PAIRS.index))
        for key, values in CHOICES.items():
            if key in dict(chosen):
                continue
            fits = [(key, v) for v in values if not any(_refused_any(known, (key, v)) for known in chosen)]
            chosen.append(max(fits, key=lambda option: sum(_ordered(known, option) in left for known in chosen)))
        left -= {_ordered(*pair) for pair in combinations(chosen, 2)}
        out.append(dict(chosen))
    return out


def _ordered(first: Option, second: Option) -> tuple[Option, Option]:
    keys = list(CHOICES)
    return (first, second) if keys.index(first[0]) < keys.index(second[0]) else (second, first)


def _refused_any(first: Option, second: Option) -> bool:
    return _is_refused(*_ordered(first, second))


RUNS = _runs()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("pairs") / "tiny")


def test_a_pair_of_options_is_taken_or_refused_by_name() -> None:
    for pair in PAIRS:
        changes = {key: value for key, value in pair if key != "precision"}
        if not _is_refused(*pair):
            _settings(**changes)
            continue
        with pytest.raises(ConfigError) as caught:  # exit code 2: core/errors.py
            _settings(**changes)
        assert f"train.{pair[1][0]}" in str(caught.value) and caught.value.fix, pair


@pytest.mark.parametrize("run", RUNS, ids=range(len(RUNS)))
def test_every_pair_that_is_taken_trains(model_path: Path, run: dict[str, Any]) -> None:
    changes = {key: value for key, value in run.items() if key != "precision"}
    settings, inputs = _settings(**changes, warmup_ratio=0.0), _inputs(model_path, run["precision"])
    plan, optimiser = begin(make_plan(settings, inputs), ALONE)
    before = {name: master.detach().clone() for name, master in optimiser.masters.items()}
    plan.model.train()
    result = attempt_update(plan.model, optimiser, ROWS[:8], plan.fit, FitState(step=1), ALONE, lr=5e-3)
    assert math.isfinite(result.loss) and result.loss > 0 and math.isfinite(result.grad_norm) and result.grad_norm > 0
    moved = {name for name, master in optimiser.masters.items() if not torch.equal(before[name], master)}
    still = set(before) - moved
    # A starts where B is 0, so that its gradient is, too
    assert moved and all("lora_A" in name for name in still) and (not still or run["lora_init"] == "uniform")
    assert all(master.isfinite().all() for master in optimiser.masters.values())
    for name, param in optimiser.params.items():
        assert torch.equal(param, optimiser.masters[name].to(param.dtype)), name


def test_the_runs_hold_every_pair() -> None:
    held = {_ordered(*pair) for run in RUNS for pair in combinations(run.items(), 2)}
    assert {pair for pair in PAIRS if not _is_refused(*pair)} <= held and len(RUNS) < 40
