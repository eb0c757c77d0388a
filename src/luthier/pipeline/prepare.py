"""Everything that can be refused is refused here, before a model computes: data read and split, model looked at, rows encoded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from luthier.arms.catalogue import ARM_NAMES
from luthier.core.console import Progress
from luthier.core.errors import ConfigError, InputError
from luthier.core.hashing import digest, sha256_file
from luthier.core.types import Example, Finding, Split, TokenRow
from luthier.data.documents import Documents, read_documents
from luthier.data.instructions import read_instruction
from luthier.kernels.device import choose_device
from luthier.metrics.catalogue import check_metric, primary_metric
from luthier.metrics.own import KEY, OwnMetric, is_own, open_own_metric, try_own_metric
from luthier.models.catalogue import resolve
from luthier.models.load import ModelInfo, inspect_folder
from luthier.models.tokenizer import open_tokenizer
from luthier.pipeline.data import PreparedData, prepare_data, refuse_other_objectives
from luthier.pipeline.endpoint import endpoint_of
from luthier.pipeline.prices import token_prices
from luthier.pipeline.settings import Settings
from luthier.store.layout import RunFolder, hold_to, known_fact
from luthier.tokens.encode import REFUSE_OVER_LONG, encode_examples
from luthier.tokens.template import ChatEncoder, open_chat
from luthier.train.precision import Precision, choose_precision

DTYPE_FACT, DEVICE_FACT = "model.dtype.chosen", "model.device.chosen"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
SHOWN_PLACES = 20
SAMPLED_ROWS = 500
MAX_CHARS_PER_TOKEN = 3.0  # English has 4 to 5; the rest is room for what the template writes


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
    metric: str  # the score the verdict is about
    chars_per_token: float  # of the data, cautiously
    findings: tuple[Finding, ...]  # of encoding: rows cut or left out
    documents: Documents | None = None
    model_sizes: Mapping[str, int] = field(default_factory=dict[str, int])  # parameters, by the name the user gave
    own_metric: OwnMetric | None = None
    own_metric_note: str = ""  # what the right answers themselves score by it


def prepare(settings: Settings, folder: RunFolder, progress: Progress, data: PreparedData | None = None) -> Prepared:
    """Read, check, split, open the tokenizer, encode. Everything that can be refused is refused before a model computes.

    `data`: what was read and split already, in another way than a run usually does.
    """
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    progress("check", 0, 1, "reading")
    data = prepare_data(settings) if data is None else data
    refuse_other_objectives((*data.split.train, *data.split.dev, *data.split.test))
    progress("check", 1, 1, f"{len(data.split.train)} train, {len(data.split.dev)} dev, {len(data.split.test)} test")
    documents = None if settings.arms.documents is None else read_documents(settings.arms.documents)
    model_path = resolve(settings.model.name)
    info = inspect_folder(model_path)
    encoder = open_chat(open_tokenizer(model_path))
    max_length = min(settings.model.max_length, info.context)
    longer = (
        f"shorten these rows, or name a model that sees more than {max_length:,} tokens: --model" if max_length == info.context else None
    )
    truncate = settings.model.allow_truncation
    encoded = encode_examples(encoder, data.split.train, max_length=max_length, allow_truncation=truncate, longer=longer)
    dev = encode_examples(encoder, data.split.dev, max_length=max_length, allow_truncation=True, longer=longer)
    longest_answers = sorted(row.num_labels for row in encoded.rows)
    typical = longest_answers[math.ceil(0.99 * (len(longest_answers) - 1))]
    # long answers must not leave a model with a short window no room for the prompts
    max_new_tokens = settings.arms.max_new_tokens or min(typical + max(8, typical // 4), info.context // 2)
    profile = data.profile
    own, own_note = _own_metric(settings, data.split)
    named = settings.decide.metric
    metric = own.name if own else primary_metric(profile) if named is None else check_metric(named, profile)
    precision = precision_of(settings, folder)
    larger = _inspect_larger(settings, max_new_tokens)
    _inspect_endpoint(settings, max_new_tokens)
    _refuse_unknown_arms(settings.arms.skip)
    for file in settings.arms.instructions:
        read_instruction(Path(file))
    _hold_run_to(folder, info, larger, precision, documents, own, _wording(model_path, encoder))
    split, too_long = _measurable(encoder, data.split, info.context - max_new_tokens)
    cut = _cut_references(encoder, split.test, max_new_tokens)
    return Prepared(
        data=replace(data, split=split),
        model_path=model_path,
        info=info,
        precision=precision,
        train_rows=encoded.rows,
        dev_rows=dev.rows,
        max_new_tokens=max_new_tokens,
        metric=metric,
        chars_per_token=_chars_per_token(encoder, split.train),
        findings=(*encoded.findings, *(replace(f, message=f"dev: {f.message}") for f in dev.findings), *too_long, *cut),
        documents=documents,
        model_sizes={settings.model.name: info.num_params, **{name: one.num_params for name, one in larger.items()}},
        own_metric=own,
        own_metric_note=own_note,
    )


def _hold_run_to(
    folder: RunFolder,
    info: ModelInfo,
    larger: Mapping[str, ModelInfo],
    precision: Precision,
    documents: Documents | None,
    own: OwnMetric | None,
    wording: dict[str, str],
) -> None:
    """What the run is made of, besides its settings: it may not change between two calls."""
    facts = {"model.sha256": info.sha256, **{f"{Path(name).name}.sha256": one.sha256 for name, one in larger.items()}, **wording}
    hold_to(folder, {**facts, DTYPE_FACT: precision.name, DEVICE_FACT: precision.device.type})
    if documents is not None:
        hold_to(folder, {"arms.documents": f"sha256 {documents.digest}"})  # it could have changed since the settings were looked at
    if own is not None:
        hold_to(folder, {f"{KEY}.sha256": own.sha256})


def _wording(model_path: Path, encoder: ChatEncoder) -> dict[str, str]:
    """What text becomes for the model, and what the digest of its weights does not say: another template is another training."""
    files = {name: sha256_file(path) for name in TOKENIZER_FILES if (path := model_path / name).is_file()}
    return {"model.template.sha256": digest(encoder.tokenizer.chat_template), "model.tokenizer.sha256": digest(files)}


def _own_metric(settings: Settings, split: Split) -> tuple[OwnMetric | None, str]:
    """The user's own score, if one was named, tried on dev's right answers; and what these score."""
    name = settings.decide.metric
    if name is None or not is_own(name):
        return None, ""
    own = open_own_metric(name)
    found = try_own_metric(own, split.dev or split.train)
    tried = (
        "gives the right answers no score" if found is None else f"gives {found[1]} right answers {100 * found[0]:.1f} points on average"
    )
    where = "dev" if split.dev else "train"
    note = (
        f"The score is a function of your own, {own.name} in {Path(own.file).name}, SHA-256 {own.sha256}; what that file "
        f"imports is not in the digest. It ran unchecked, with all rights, and {tried} ({where}). "
        "Scores are recorded: verdict and report do not run it again."
    )
    return own, note


def precision_of(settings: Settings, folder: RunFolder) -> Precision:
    """Device and number format of a run: as set, as its first call found them, or measured now."""
    device = choose_device(settings.model.device, settled=known_fact(folder, DEVICE_FACT))
    return choose_precision(settings.model.dtype, device=device, settled=known_fact(folder, DTYPE_FACT))


def _inspect_larger(settings: Settings, max_new_tokens: int) -> dict[str, ModelInfo]:
    """Name -> what each larger model's folder holds. Raises for one that is not there, too small, or named like another."""
    found: dict[str, ModelInfo] = {}
    for given in settings.model.larger:
        path = resolve(given)
        name, info = Path(given).name, inspect_folder(path)
        open_chat(open_tokenizer(path))  # a template that cannot be used is refused here, not after the training
        if any(Path(other).name == name for other in found):
            fix = "copy or link one of them under another name"
            raise ConfigError(f"two larger models are called {name}, and their arms could not be told apart", where="model.larger", fix=fix)
        if info.context <= max_new_tokens:
            problem = f"{name} sees {info.context:,} tokens, and an answer may take {max_new_tokens:,}"
            raise ConfigError(problem, where="model.larger", fix="leave it out, or --set arms.max_new_tokens=64")
        found[given] = info
    return found


def _inspect_endpoint(settings: Settings, max_new_tokens: int) -> None:
    """Refuse an address that must not be used, and a model whose arms could not be told from a larger local model's."""
    endpoint = endpoint_of(settings)
    token_prices(settings)  # a table that lacks the model is refused now, not when all is measured
    if endpoint is None:
        if settings.arms.proposer == "endpoint":
            problem = "found endpoint, and no endpoint is named that could propose instructions"
            raise ConfigError(problem, where="arms.proposer", fix="--endpoint URL --endpoint-model NAME, or --propose model")
        return
    if endpoint.model in {Path(name).name for name in settings.model.larger}:
        problem = f"the endpoint's model and a larger model are both called {endpoint.model}, and their arms could not be told apart"
        raise ConfigError(problem, where="endpoint.model", fix="leave one of them out")
    if endpoint.context <= max_new_tokens:
        problem = f"is {endpoint.context:,} tokens, and an answer may take {max_new_tokens:,}"
        raise ConfigError(problem, where="endpoint.context", fix="--set endpoint.context=8192")


def _refuse_unknown_arms(names: Sequence[str]) -> None:
    for name in names:
        if name not in ARM_NAMES:
            near = (get_close_matches(name, ARM_NAMES, n=1, cutoff=0.3) or ["few-shot"])[0]
            raise ConfigError(
                f"found {name!r}, expected one of {', '.join(ARM_NAMES)}", where="arms.skip", fix=f"--set 'arms.skip=[{near}]'"
            )


def _measurable(encoder: ChatEncoder, split: Split, room_tokens: int) -> tuple[Split, tuple[Finding, ...]]:
    """The split without dev and test items whose bare prompt leaves the model no room for an answer; each is listed.

    One such item would otherwise fail every arm, after the training. Raises InputError where they are more than 10 % of the
    test items: what is left would not be the user's test set.
    """
    kept: dict[str, tuple[Example, ...]] = {}
    findings: list[Finding] = []
    for name, items in (("dev", split.dev), ("test", split.test)):
        long = {item.id for item in items if item.prompt and len(encoder.encode_prompt(item.prompt)) > room_tokens}
        kept[name] = tuple(item for item in items if item.id not in long)
        if not long:
            continue
        where = tuple((item.path, item.line) for item in items if item.id in long)[:SHOWN_PLACES]
        message = (
            f"{len(long):,} of {len(items):,} {name} items leave no room for an answer: the model sees {room_tokens:,} tokens before it"
        )
        fix = "shorten these inputs, or name a model that sees more: --model"
        if not kept[name] or (name == "test" and len(long) > REFUSE_OVER_LONG * len(items)):
            raise InputError(message, where=f"{where[0][0]}:{where[0][1]}", fix=fix)
        left_out = f"{message}; left out of every arm"
        findings.append(Finding(code=f"{name}_too_long", severity="warning", message=left_out, fix=fix, count=len(long), where=where))
    return replace(split, dev=kept["dev"], test=kept["test"]), tuple(findings)


def _cut_references(encoder: ChatEncoder, test: Sequence[Example], max_new_tokens: int) -> tuple[Finding, ...]:
    """Test items whose wanted answer is longer than any answer may be: no arm can match these."""
    cut = [item for item in test if encoder.encode_example(item).num_labels > max_new_tokens]
    if not cut:
        return ()
    return (
        Finding(
            code="answers_beyond_limit",
            severity="warning",
            message=f"{len(cut):,} of {len(test):,} test items want more than {max_new_tokens:,} tokens, where every answer is cut off",
            fix=f"--set arms.max_new_tokens={2 * max_new_tokens}",
            count=len(cut),
            where=tuple((item.path, item.line) for item in cut[:SHOWN_PLACES]),
        ),
    )


def _chars_per_token(encoder: ChatEncoder, train: Sequence[Example]) -> float:
    """Characters of content in a token, low enough for 99 of 100 rows: text in other scripts has far fewer than English."""
    texts = [f"{example.user_text}\n{example.response}" for example in train[:SAMPLED_ROWS]]
    ratios = sorted(len(text) / max(1, encoder.count_tokens(text)) for text in texts)
    return min(MAX_CHARS_PER_TOKEN, ratios[len(ratios) // 100])
