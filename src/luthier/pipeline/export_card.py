"""The model card of a hub folder: the run's card, with nothing in it that names this machine."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from luthier.core.exports import ExportRecord
from luthier.export.readme import AboutExport, render_readme, use_lines
from luthier.pipeline.decide import decision_rule, verdict_of
from luthier.pipeline.report import report_model
from luthier.pipeline.tested import Tested
from luthier.report.card import Shipped, render_card
from luthier.report.model import ReportModel


def hub_card(tested: Tested, record: ExportRecord) -> str:
    """Markdown with front matter, for exactly these files."""
    verdict = verdict_of(tested.settings, tested.record)
    model = report_model(tested.record, verdict, decision_rule(tested.settings, tested.record), tested.settings)
    library = "peft" if record.storage == "adapter" else "transformers"
    use = use_lines(_about(tested, record, tested.name))
    shipped = Shipped(library=library, use=tuple(use), licence=tested.licence, notice=tested.licence_notice)
    return render_card(_published(model, tested, record), shipped)


def export_readme(tested: Tested, record: ExportRecord, name: str) -> str:
    """The README of every other kind of export."""
    return render_readme(_about(tested, record, name), record.parity)


def _about(tested: Tested, record: ExportRecord, name: str) -> AboutExport:
    return AboutExport(
        kind=record.kind,
        storage=record.storage,
        name=name,
        base_model=tested.base_name,
        licence=tested.licence,
        notice=tested.licence_notice,
        rank=tested.rank,
        system=tested.system,
        instruction=tested.instruction,
        num_labels=len(tested.conditions.choices),
    )


def _published(model: ReportModel, tested: Tested, record: ExportRecord) -> ReportModel:
    """Folders of this machine become the names of what lies in them."""
    weights = tested.record.train.weights if tested.record.train else ""
    training = {key: value.replace(weights, Path(weights).name) if weights else value for key, value in model.training.items()}
    return replace(
        model,
        base_model=tested.base_name,
        rows=tuple(replace(row, model=_named(row.model)) for row in model.rows),
        training=training,
        run_command=shlex.join(_named_word(word) for word in shlex.split(model.run_command)),
        exports=(record,),
    )


def _named_word(word: str) -> str:
    """A word of a command; of a path, alone or behind `--flag=` or `key=`, its last part."""
    before, equals, path = word.rpartition("=")
    return f"{before}{equals}{Path(path).name}" if Path(path).is_absolute() else word


def _named(model: str) -> str:
    name, comma, rest = model.partition(", ")
    return f"{Path(name).name if Path(name).is_absolute() else name}{comma}{rest}"
