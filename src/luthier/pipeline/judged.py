"""What a run's judge said, beside the labels a person gave. A function of files; no model, no torch.

Labels are the user's work. They lie in a file of their own, by a digest of the pair, so that they hold for the same answers in a run that
was started over; `--fresh` keeps them.
"""

from __future__ import annotations

import json
from typing import cast

from luthier.core.errors import RunError
from luthier.metrics.judge import Choice
from luthier.pipeline.record import RunRecord
from luthier.store.layout import RunFolder
from luthier.verdict.judge import JudgeReading, read_judge

_CHOICES: tuple[Choice, ...] = ("prompt", "tuned", "tie")


def read_labels(folder: RunFolder) -> dict[str, Choice]:
    """Pair id -> what the person said. Raises RunError where the file is damaged."""
    if not folder.judge_labels.is_file():
        return {}
    try:
        found = json.loads(folder.judge_labels.read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(choice in _CHOICES for choice in found.values()):
            return {str(pair): choice for pair, choice in cast("dict[str, Choice]", found).items()}
    except (OSError, ValueError, RecursionError, TypeError) as error:
        raise _damaged(folder) from error
    raise _damaged(folder)


def _damaged(folder: RunFolder) -> RunError:
    where = str(folder.judge_labels)
    return RunError("the labels of the judge's pairs are damaged", where=where, fix=f"delete it (rm {where}) and give your file again")


def reading_of(folder: RunFolder, record: RunRecord) -> JudgeReading | None:
    """What the judge says of this run, beside the labels there are; None without a judge."""
    if record.judge is None:
        return None
    arms = {arm.name: {item.item_id: len(item.text) for item in arm.items} for arm in record.arms}
    prompt, tuned = arms.get(record.judge.prompt, {}), arms.get(record.judge.tuned, {})
    lengths = {item: (chars, tuned[item]) for item, chars in prompt.items() if item in tuned}
    return read_judge(record.judge, read_labels(folder), lengths, seed=record.seed)


def judge_json(reading: JudgeReading) -> dict[str, object]:
    """The section for programs."""
    record, rate, kappa = reading.record, reading.win_rate, reading.kappa
    return {
        "judge": record.judge,
        "failed": record.failed,
        "a": record.tuned,
        "b": record.prompt,
        "win_rate": rate.value,
        "low": rate.low,
        "high": rate.high,
        "n": rate.n,
        "p_value": reading.p_value,
        "wins": reading.wins,
        "losses": reading.losses,
        "ties": reading.ties,
        "same_text": reading.num_same,
        "unreadable": reading.num_unreadable,
        "orders_differ": reading.orders_differ.value,
        "first_place": reading.first_place.value,
        "longer_won": reading.longer.value,
        "moved_by_attacks": reading.moved,
        "kappa": kappa.value,
        "kappa_low": kappa.low,
        "kappa_high": kappa.high,
        "num_labels": reading.num_labels,
        "is_calibrated": reading.is_calibrated,
        "doubts": list(reading.doubts),
    }
