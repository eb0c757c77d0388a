"""Everything that can be refused is refused here, before a model computes: data read and split, model looked at, rows encoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from luthier.core.console import Progress
from luthier.core.types import Finding, TokenRow
from luthier.models.catalogue import resolve
from luthier.models.load import ModelInfo, inspect_folder
from luthier.models.tokenizer import open_tokenizer
from luthier.pipeline.data import PreparedData, prepare_data, refuse_other_objectives
from luthier.pipeline.settings import Settings
from luthier.tokens.encode import encode_examples
from luthier.tokens.template import open_chat
from luthier.train.precision import Precision, choose_precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Data and model, ready for training and measuring."""

    data: PreparedData
    model_path: Path
    info: ModelInfo
    precision: Precision
    train_rows: tuple[TokenRow, ...]
    dev_rows: tuple[TokenRow, ...]
    max_new_tokens: int
    findings: tuple[Finding, ...]  # of encoding: rows cut or left out


def prepare(settings: Settings, progress: Progress) -> Prepared:
    """Read, check, split, open the tokenizer, encode. Everything that can be refused is refused before a model computes."""
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    progress("check", 0, 1, "reading")
    data = prepare_data(settings)
    refuse_other_objectives(data.split.train)
    progress("check", 1, 1, f"{len(data.split.train)} train, {len(data.split.dev)} dev, {len(data.split.test)} test")
    model_path = resolve(settings.model.name)
    info = inspect_folder(model_path)
    encoder = open_chat(open_tokenizer(model_path))
    max_length = min(settings.model.max_length, info.context)
    encoded = encode_examples(encoder, data.split.train, max_length=max_length, allow_truncation=settings.model.allow_truncation)
    dev = encode_examples(encoder, data.split.dev, max_length=max_length, allow_truncation=True)
    longest_answers = sorted(row.num_labels for row in encoded.rows)
    typical = longest_answers[int(0.99 * (len(longest_answers) - 1))]
    return Prepared(
        data=data,
        model_path=model_path,
        info=info,
        precision=choose_precision(settings.model.dtype),
        train_rows=encoded.rows,
        dev_rows=dev.rows,
        max_new_tokens=settings.arms.max_new_tokens or typical + max(8, typical // 4),
        findings=(*encoded.findings, *(replace(f, message=f"dev: {f.message}") for f in dev.findings)),
    )
