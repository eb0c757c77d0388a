"""The model that a run measured, with the locked items it answered: what an export is held against."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from luthier import __version__
from luthier.arms.prompts import Candidate, shared_parts, zero_shot
from luthier.core.console import quiet
from luthier.core.errors import ModelError, RunError
from luthier.core.hashing import sha256_file
from luthier.core.seeds import rng
from luthier.core.types import ArmResult, Example, Split
from luthier.evaluate.run import Bench, answer
from luthier.export.parity import Conditions, ParityItem
from luthier.metrics.own import is_own, open_own_metric
from luthier.models.catalogue import find_entry, read_manifest, resolve
from luthier.models.folder import weight_files, weights_sha256
from luthier.models.load import ModelInfo, inspect_folder
from luthier.models.lora import CONFIG, WEIGHTS
from luthier.models.tokenizer import open_tokenizer
from luthier.pipeline.measure import MeasureInputs, make_bench
from luthier.pipeline.open import open_local
from luthier.pipeline.prepare import DTYPE_FACT
from luthier.pipeline.record import RunRecord, read_record
from luthier.pipeline.settings import Settings, load_settings
from luthier.store.layout import RunFolder, known_fact
from luthier.tokens.template import ChatEncoder, open_chat
from luthier.train.precision import choose_precision

ARM = "tuned"  # the arm whose prompts are those of the training
_EXAMPLES = TypeAdapter(Example)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A finished run, opened for export. `path` holds the weights: the base model's with `adapter` beside it, or the run's own."""

    folder: RunFolder
    settings: Settings
    record: RunRecord
    base: Path
    path: Path
    adapter: Path | None
    info: ModelInfo
    encoder: ChatEncoder
    bench: Bench
    dtype: str  # the tested answers were computed in
    examples: tuple[Example, ...]  # those compared, in the order of `items`
    items: tuple[ParityItem, ...]
    recorded: tuple[str, ...] | None  # the answers of the run's record, computed in `dtype`; None: the arm was left out
    num_locked: int
    system: str  # the system text all training rows share
    instruction: str  # the instruction all training rows share

    @property
    def conditions(self) -> Conditions:
        """How the tested answers were written."""
        return Conditions(
            max_new_tokens=self.bench.max_new_tokens, stop=self.bench.stop, choices=self.bench.choices, json_schema=self.bench.json_schema
        )

    @property
    def base_name(self) -> str:
        """The base model as others can find it: its id on the hub where it has one. Never a path of this machine."""
        name = str(read_manifest(self.base).get("name") or self.base.name)
        try:
            return find_entry(name).hub_id or name
        except ModelError:
            return name

    @property
    def licence(self) -> str:
        """Of the base model, where the catalogue knows it."""
        try:
            licence = find_entry(str(read_manifest(self.base).get("name") or "")).licence
        except ModelError:
            return ""
        return "" if licence == "see the hub" else licence

    @property
    def licence_notice(self) -> str:
        """What that licence wants said to everyone who gets the weights, where the catalogue knows it."""
        try:
            return find_entry(str(read_manifest(self.base).get("name") or "")).licence_notice
        except ModelError:
            return ""

    @property
    def name(self) -> str:
        """What the artefact is called: letters, digits, dots and dashes of data and model."""
        words = re.sub(r"[^a-z0-9.]+", "-", f"{Path(self.record.title).stem}-{self.base.name}".lower())
        return words.strip("-.")[:80] or "model"

    @property
    def rank(self) -> int | None:
        """Of the adapter, where there is one."""
        if self.adapter is None:
            return None
        found = json.loads((self.adapter / CONFIG).read_text(encoding="utf-8")).get("r")
        return found if isinstance(found, int) else None

    @property
    def now(self) -> str:
        """The time, ISO 8601."""
        return datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")

    @property
    def version(self) -> str:
        """Of this program."""
        return __version__


def open_tested_run(folder: RunFolder, *, max_items: int | None) -> Tested:
    """Open a finished run. Raises RunError if it is not finished or its weights are not those that were measured."""
    record, settings = read_record(folder.results), load_settings(folder.config, {})
    if record.train is None:
        raise RunError("nothing was tuned in this run", where=str(folder.root), fix="luthier run FILE")
    base = resolve(settings.model.name)
    info = inspect_folder(base)
    adapter = folder.adapter if (folder.adapter / WEIGHTS).is_file() else None
    path = base if adapter is not None else folder.model
    _refuse_other_weights(folder, record, info, adapter)
    split = _read_split(folder, record)
    bench = _bench(folder, settings, record, split)
    encoder = open_chat(open_tokenizer(path))
    arm = next((arm for arm in record.arms if arm.name == ARM and arm.failed is None and arm.items), None)
    chosen = _choose(split.test, arm, max_items, seed=record.seed)
    dtype = str(known_fact(folder, DTYPE_FACT) or "bfloat16")
    texts = _answers(path, adapter, bench, chosen)
    shared = shared_parts(split.train)
    return Tested(
        folder=folder,
        settings=settings,
        record=record,
        base=base,
        path=path,
        adapter=adapter,
        info=info if adapter is not None else inspect_folder(path),
        encoder=encoder,
        bench=bench,
        dtype=dtype,
        examples=chosen,
        items=tuple(_item(encoder, example, text) for example, text in zip(chosen, texts, strict=True)),
        recorded=_texts(arm, chosen),
        num_locked=len(split.test),
        system=shared.system or "",
        instruction=shared.instruction or "",
    )


def _refuse_other_weights(folder: RunFolder, record: RunRecord, info: ModelInfo, adapter: Path | None) -> None:
    """Whatever lies there now must be what was measured then."""
    assert record.train is not None
    fix = "repeat `luthier run` with --fresh, or put the file back"
    if adapter is None and not (folder.model / "config.json").is_file():
        raise RunError("the tuned weights are gone", where=str(folder.root), fix=fix)
    found = sha256_file(adapter / WEIGHTS) if adapter is not None else weights_sha256(folder.model, weight_files(folder.model))
    if found != record.train.weights_sha256:
        where = str(adapter or folder.model)
        raise RunError(f"the weights are {found[:12]}…, measured were {record.train.weights_sha256[:12]}…", where=where, fix=fix)
    known = known_fact(folder, "model.sha256")
    if known is not None and known != info.sha256:
        problem = f"the base model's weights are {info.sha256[:12]}…, measured were {str(known)[:12]}…"
        raise RunError(problem, where=str(info.path), fix="put the model back that the run was made with")


def _read_split(folder: RunFolder, record: RunRecord) -> Split:
    clusters = json.loads(folder.split.read_text(encoding="utf-8"))["clusters"]
    rows: dict[str, tuple[Example, ...]] = {}
    for name in ("train", "dev", "test"):
        with folder.split_file(name).open(encoding="utf-8") as lines:
            rows[name] = tuple(_EXAMPLES.validate_json(line) for line in lines)
    return Split(
        train=rows["train"],
        dev=rows["dev"],
        test=rows["test"],
        clusters=clusters,
        seed=record.seed,
        official_test=record.data.official_test,
        test_sha256=record.data.test_sha256,
    )


def _bench(folder: RunFolder, settings: Settings, record: RunRecord, split: Split) -> Bench:
    if is_own(record.metric) and (own := open_own_metric(record.metric)).sha256 != record.metric_sha256:
        problem = f"the score {own.name} has changed: {own.file} is {own.sha256[:12]}…, measured was {record.metric_sha256[:12]}…"
        raise RunError(problem, where=str(folder.root), fix=f"put {own.file} back as it was, or measure anew: luthier run … --run-dir NEW")
    inputs = MeasureInputs(
        split=split,
        profile=record.data.profile,
        max_new_tokens=record.max_new_tokens,
        metric=record.metric,
        chars_per_token=1.0,  # for prompts with shots, of which there are none here
        on_progress=quiet,
        should_stop=lambda: False,
    )
    return make_bench(settings, folder, inputs)


def _choose(test: Sequence[Example], arm: ArmResult | None, max_items: int | None, *, seed: int) -> tuple[Example, ...]:
    """The locked items to compare, in their order; fewer than all are drawn by seed."""
    answered = {item.item_id for item in arm.items} if arm is not None else {example.id for example in test}
    items = [example for example in test if example.id in answered]
    if not items:
        raise RunError("no locked item of this run has an answer", where="parity", fix="repeat `luthier run`")
    if max_items is not None and max_items < len(items):
        kept = set(rng(seed, "export/items").sample(range(len(items)), max_items))
        items = [example for number, example in enumerate(items) if number in kept]
    return tuple(items)


def _texts(arm: ArmResult | None, items: Sequence[Example]) -> tuple[str, ...] | None:
    """The answers of the record."""
    known = {item.item_id: item.text for item in arm.items} if arm is not None else {}
    return tuple(known[item.id] for item in items) if known else None


def _answers(path: Path, adapter: Path | None, bench: Bench, items: Sequence[Example]) -> list[str]:
    """The tested model's answers, computed in fp32 by the engine that measured it; kept in the run's cache.

    Those of the record may have been computed in bf16, where the last bit of a product depends on the batch's shape and half of the
    answers of an unsure model come out otherwise: they could not be told from a faulty export.
    """
    local = open_local(path, choose_precision("float32"), adapter=adapter)
    return [generation.text for generation in answer(Candidate(params={}, build=zero_shot), items, local, bench, ARM)]


def _item(encoder: ChatEncoder, example: Example, text: str) -> ParityItem:
    row = encoder.encode_example(example)
    return ParityItem(
        item_id=example.id,
        messages=zero_shot(example),
        reference_ids=tuple(row.input_ids),
        reference_labels=tuple(row.is_label),
        tested=text,
    )
