"""All settings of a run: one frozen model is the config file, the flags, the help, the JSON Schema and the documentation.

Precedence: flags, then `--set`, then the YAML file, then the defaults below. Unknown keys are refused with the nearest name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from luthier.core.errors import ConfigError
from luthier.core.hashing import sha256_file
from luthier.pipeline.endpoint_settings import EndpointSettings
from luthier.pipeline.origin import MAX_YAML_BYTES, Problem, flatten, put, read_value, read_yaml
from luthier.pipeline.refusal import nearest, problems_of, raise_all

COMMAND_LINE = "command line"
DEFAULT = "default"
DIGEST_CHARS = 16

# What may change between two calls on one run folder without changing what was measured. The rest of `decide` is here because
# verdict and report are made anew from the record; the metric is not, because the arms are chosen on dev with it.
BENIGN = frozenset(
    {"threads", "run_dir", "fresh", "train.micro_batch", "train.checkpoint_activations", "train.save_every"}
    | {f"endpoint.{name}" for name in ("key_env", "concurrency", "timeout_s", "retries")}
    | {f"decide.{name}" for name in ("margin", "min_quality", "volume", "usd_per_hour", "hosting", "labelling", "months")}
    | {f"decide.usd_per_m_{name}" for name in ("input", "cached_input", "output")}
)  # fmt: skip


def _as_list(value: object) -> object:
    """One value where a list is expected is a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def _different(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) != len(values):
        raise ValueError("each number once")
    return values


Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_as_list), AfterValidator(_different), Field(min_length=1)]
Price = Annotated[Real, Field(ge=0)] | None
Rate = Annotated[Real, Field(gt=0, le=1)]
Rates = Annotated[tuple[Rate, ...], BeforeValidator(_as_list), AfterValidator(_different), Field(min_length=1)]
DataFormat = Literal["auto", "alpaca", "messages", "sharegpt", "completion", "preference", "kto", "text", "columns"]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=False, protected_namespaces=())


class DataSettings(_Group):
    """The examples: which files, which fields, how many rows."""

    paths: Texts = Field(default=(), description="files with your examples: JSONL, JSON, CSV, TSV, Parquet or text")
    test: str | None = Field(default=None, description="file with your own test rows; else test rows are split off")
    dev: str | None = Field(default=None, description="file with your own dev rows, on which choices are made; else dev rows are split off")
    format: DataFormat = Field(default="auto", description="form of the rows; auto looks at the fields and says what it found")
    instruction: str | None = Field(
        default=None, description="a field with the instruction, or the instruction itself when no field has that name"
    )
    input: str | None = Field(default=None, description="field with what changes from row to row")
    output: str | None = Field(default=None, description="field with the wanted answer")
    system: str | None = Field(default=None, description="field with the system prompt")
    group: str | None = Field(default=None, description="field whose equal values must stay on one side of the split (customer, document)")
    train_rows: Count | None = Field(default=None, description="at most so many training rows, chosen by seed; null takes all")
    dev_rows: Count | None = Field(default=None, description="so many dev rows; null: 10 %, at most 300")
    test_rows: Count | None = Field(
        default=None, description="so many locked test rows; null: 20 %, at most 500, or all rows of the test file"
    )


class ModelSettings(_Group):
    """The model to prompt and to fine-tune."""

    name: str = Field(default="smollm2-135m", min_length=1, description="name from `luthier models list`, or a folder")
    larger: Texts = Field(default=(), description="larger models (names or folders) whose prompting arms are measured beside")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="number format of the computation; auto measures which is faster here"
    )
    max_length: Count = Field(default=1024, description="longest row in tokens; longer rows are listed")
    allow_truncation: bool = Field(
        default=False, strict=True, description="go on although more than 10 % of the rows are too long; their ends are cut and counted"
    )


class TrainSettings(_Group):
    """Fine-tuning."""

    method: Literal["lora", "dora", "freeze", "full", "qlora"] = Field(
        default="lora",
        description="what is trained: adapters on all linear layers (lora, dora), the last layers (freeze) or every weight (full)",
    )
    lora_r: Count = Field(default=16, le=1024, description="rank of the adapters")
    lora_alpha: Count = Field(default=32, description="scale of the adapters; its effect is alpha / r")
    lora_dropout: Real = Field(default=0.0, ge=0, lt=1, description="dropout before the adapters")
    lora_rslora: bool = Field(default=False, strict=True, description="scale by alpha / sqrt(r) instead, for high ranks (rsLoRA)")
    lora_init: Literal["uniform", "pissa"] = Field(
        default="uniform", description="start of the adapters: nothing, or the largest singular directions of the weights (PiSSA)"
    )
    last_layers: Count = Field(default=2, description="how many of the last layers freeze trains; the others stay as they are")
    neftune_alpha: Real = Field(default=0.0, ge=0, le=100, description="noise on the embeddings while training (NEFTune: 5 to 15); 0: none")
    optimiser: Literal["adamw", "adafactor", "muon"] = Field(
        default="adamw", description="how gradients become updates; muon is for matrices, AdamW does the rest"
    )
    checkpoint_activations: bool = Field(
        default=False, strict=True, description="keep less for the backward pass and compute it again: less memory, about a third slower"
    )
    lr: Rate | None = Field(default=None, description="learning rate; null tries the candidates and takes the best on dev")
    lr_candidates: Rates | None = Field(
        default=None,
        description="learning rates to try when lr is null; null: 5e-4, 1e-3, 2e-3 for adapters, 3e-5, 1e-4, 3e-4 for whole weights",
    )
    lr_probe_steps: Count = Field(default=30, description="updates of each trial")
    epochs: Annotated[Real, Field(gt=0, le=1000)] | None = Field(
        default=None, description="passes over the training rows; null: as the number of rows asks for"
    )
    batch: Count = Field(default=16, description="rows in one update")
    micro_batch: Count | None = Field(
        default=None, description="rows computed at once; null: as many as 1,280 tokens hold; same result to rounding"
    )
    warmup_ratio: Real = Field(default=0.05, ge=0, lt=1, description="share of the updates over which the learning rate rises")
    weight_decay: Real = Field(default=0.0, ge=0, le=1, description="weight decay on the trained weights")
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(
        default="linear", description="how the learning rate falls after that; wsd: not at all until the last fifth"
    )
    max_grad_norm: Real = Field(default=1.0, gt=0, description="gradients longer than this are shortened to it")
    eval_every: CountOrZero | None = Field(
        default=None, description="updates between looks at the dev loss; null: five looks in all; 0: only at the end"
    )
    patience: CountOrZero = Field(default=3, description="looks without a better dev loss before stopping early; 0: never")
    save_every: CountOrZero = Field(default=50, description="updates between checkpoints; 0: only at the end")

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Self:
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(f"train.micro_batch at most train.batch ({self.batch})")
        return self

    @model_validator(mode="after")
    def _options_fit_the_method(self) -> Self:
        """An option that the method has no use for would be ignored: it is refused instead."""
        fields = type(self).model_fields
        if self.method == "qlora":
            raise ValueError(
                "train.method lora: 4-bit weights (QLoRA) need bitsandbytes and an NVIDIA GPU, this version computes on the CPU"
                " | --set train.method=lora"
            )
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_rslora", "lora_init"):
            if self.method in ("freeze", "full") and getattr(self, key) != fields[key].default:
                raise ValueError(f"train.{key} only with adapters, and train.method {self.method} has none | --set train.method=lora")
        if self.method == "dora" and self.lora_init == "pissa":
            raise ValueError(
                "train.lora_init uniform with train.method dora: PiSSA changes the weights whose lengths DoRA measures"
                " | --set train.lora_init=uniform"
            )
        if self.method != "freeze" and self.last_layers != fields["last_layers"].default:
            raise ValueError(f"train.last_layers only with train.method freeze, not {self.method} | --set train.method=freeze")
        return self


class ArmSettings(_Group):
    """What is measured against what."""

    shots: Counts = Field(default=(2, 4, 8), description="numbers of solved examples that the few-shot arms try on dev")
    skip: Texts = Field(default=(), description="names of arms to leave out")
    max_new_tokens: Count | None = Field(
        default=None, description="longest answer in tokens; null: the 99th percentile of the training answers and a quarter more"
    )
    dev_items: Count = Field(default=100, description="dev rows on which each arm's variants are compared")
    proposer: Literal["none", "model", "endpoint"] = Field(
        default="none", description="who proposes instructions for the arm instruction optimised: the model itself, the endpoint's, nobody"
    )
    constrained: bool = Field(
        default=True, strict=True, description="where answers are labels, hold local models to these while they write, in every arm alike"
    )
    latency_items: Count = Field(default=10, description="test rows sent one at a time to measure waiting time")
    batch: Count = Field(default=64, description="prompts answered at once")


class DecideSettings(_Group):
    """What the verdict weighs. All but the metric can be changed afterwards: `luthier decide RUN`."""

    metric: str | None = Field(default=None, description="score the verdict is about; null: as the task asks for")
    margin: Real = Field(default=5.0, gt=0, lt=100, description="smallest difference that matters to you, in points (0 to 100)")
    min_quality: Annotated[Real, Field(ge=0, le=100)] | None = Field(
        default=None, description="score in points below which neither way is good enough"
    )
    volume: CountOrZero | None = Field(default=None, description="requests a month, for the break-even")
    usd_per_hour: Real = Field(default=0.10, ge=0, description="price of this machine for an hour, in US dollars")
    usd_per_m_input: Price = Field(default=None, description="price of a million prompt tokens at the endpoint, in US dollars")
    usd_per_m_cached_input: Price = Field(default=None, description="the same for prompt tokens it has cached; null: no cheaper")
    usd_per_m_output: Price = Field(default=None, description="price of a million answer tokens at the endpoint, in US dollars")
    hosting: Real = Field(default=0.0, ge=0, description="extra cost of serving a tuned model, in US dollars a month")
    labelling: Real = Field(default=0.0, ge=0, description="cost of making the examples, in US dollars")
    months: Annotated[Real, Field(gt=0)] = Field(default=6.0, description="months between two trainings")


class Settings(_Group):
    """Everything a run can be told."""

    data: DataSettings = Field(default=DataSettings(), description="the examples")
    model: ModelSettings = Field(default=ModelSettings(), description="the model")
    train: TrainSettings = Field(default=TrainSettings(), description="fine-tuning")
    endpoint: EndpointSettings = Field(default=EndpointSettings(), description="a model behind an address")
    arms: ArmSettings = Field(default=ArmSettings(), description="what is measured")
    decide: DecideSettings = Field(default=DecideSettings(), description="what the verdict weighs")
    seed: CountOrZero = Field(default=0, description="seed of every random choice; the same seed gives the same run")
    run_dir: str = Field(default="", description="folder of the run; empty: runs/ and the name of the first data file")
    threads: Count | None = Field(default=None, description="CPU threads; null: torch's default")
    fresh: bool = Field(default=False, strict=True, description="throw away what is in the run folder and start over")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    @model_validator(mode="before")
    @classmethod
    def _name_run_dir(cls, values: Any) -> Any:
        """A run folder that follows from the first data file, so that the same command finds it again."""
        if not isinstance(values, dict) or values.get("run_dir", "") != "":
            return values
        data = values.get("data")
        paths = _as_list(data.get("paths") or "luthier") if isinstance(data, dict) else ["luthier"]
        first = paths[0] if isinstance(paths, list | tuple) and paths and isinstance(paths[0], str) else "luthier"
        return {**values, "run_dir": f"runs/{Path(first).stem}"}

    def origin_of(self, key: str) -> str:
        """Where the value of a dotted key came from."""
        return self._origins.get(key, DEFAULT)

    def remember_origins(self, known: Mapping[str, str]) -> None:
        """Note where values came from; they are no part of the settings."""
        self._origins.update(known)

    def identity(self) -> dict[str, object]:
        """What the results depend on: all but `BENIGN`, data files by the digest of their content instead of their name."""
        flat = {key: value for key, value in _flat(self).items() if key not in BENIGN}
        data = self.data
        files = {**{f"data.paths[{i}]": path for i, path in enumerate(data.paths)}, "data.test": data.test, "data.dev": data.dev}
        del flat["data.paths"]
        return {**flat, **{key: _content(path) for key, path in files.items()}, "data.paths.count": len(data.paths)}

    def benign(self) -> dict[str, object]:
        """The rest."""
        return {key: value for key, value in _flat(self).items() if key in BENIGN and key != "fresh"}

    def to_yaml(self) -> str:
        """A file that `load_settings` reads back to the same settings; `fresh` is for one call and is not in it."""
        values = self.model_dump(mode="json", exclude={"fresh"})
        values["model"]["name"] = _absolute(self.model.name)  # the run is opened from any folder
        values["model"]["larger"] = [_absolute(name) for name in self.model.larger]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def _content(path: str | None) -> str | None:
    """Digest of a file. One that cannot be read is refused with a better message by whoever reads it."""
    if path is None:
        return None
    try:
        return f"sha256 {sha256_file(Path(path))[:DIGEST_CHARS]}"
    except OSError:
        return "not readable"


def _flat(settings: Settings) -> dict[str, object]:
    return flatten(settings.model_dump(mode="json"))


def origins(settings: Settings) -> dict[str, tuple[str, str]]:
    """Dotted key -> (value as text, where it came from: "default", "luthier.yaml:12" or "command line")."""
    return {key: (_shown(value), settings.origin_of(key)) for key, value in _flat(settings).items()}


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def load_settings(yaml_path: Path | None, overrides: Mapping[str, object], *, set_items: Sequence[str] = ()) -> Settings:
    """Settings from dotted keys of flags, then `key=value` items of `--set`, then an optional YAML file, then the defaults.

    Raises one ConfigError that lists everything wrong: key, where it stands, what was found, what was expected, a remedy.
    """
    name = yaml_path.name if yaml_path is not None else ""
    tree = read_yaml(_read_text(yaml_path), name=name) if yaml_path is not None else read_yaml("", name="")
    values = tree.values
    for group in [key for key, value in values.items() if value is None and key in Settings.model_fields]:
        del values[group]  # `train:` with nothing but comments below it
    set_values, set_problems = _read_set(set_items)
    typed = {**set_values, **overrides}
    for dotted, value in typed.items():
        put(values, dotted, value)
    where = {**{key: f"{name}:{line}" for key, line in tree.lines.items()}, **dict.fromkeys(typed, COMMAND_LINE)}
    problems = [*tree.problems, *set_problems]
    settings = None
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += problems_of(error, where, {key: info.default for key, info in all_keys().items()})
    if problems or settings is None:
        raise_all(problems)
    settings.remember_origins({key: origin for key in all_keys() if (origin := where.get(key)) is not None})
    return settings


def parse_set(items: Sequence[str]) -> dict[str, object]:
    """`--set key=value` as overrides. Raises ConfigError for an item without "=" or with an unknown key."""
    values, problems = _read_set(items)
    if problems:
        raise_all(problems)
    return values


def _read_set(items: Sequence[str]) -> tuple[dict[str, object], list[Problem]]:
    """A setting that holds text takes the value as it is; the others are read as YAML."""
    out: dict[str, object] = {}
    problems: list[Problem] = []
    fields = all_keys()
    for item in items:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or key not in fields:
            found = f"the unknown key {key!r}" if equals else f"{item!r}"
            fix = f"--set {nearest(key, fields)}={text}" if equals else "--set train.batch=8"
            problems.append(Problem(where="--set", found=found, expected="key=value", fix=fix))
            continue
        is_text = str in (fields[key].annotation, *_union_members(fields[key].annotation))
        out[key] = text if is_text and text not in ("null", "~") else read_value(text)
    return out, problems


def _union_members(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) is UnionType else ()


def all_keys() -> dict[str, Any]:
    """Every dotted key with its pydantic field, groups left out."""
    out: dict[str, Any] = {}
    for name, info in Settings.model_fields.items():
        group = info.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            out.update({f"{name}.{inner}": field for inner, field in group.model_fields.items()})
        else:
            out[name] = info
    return out


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 7, which editors' YAML support reads) of a luthier.yaml."""
    schema = Settings.model_json_schema()
    definitions = schema.pop("$defs")
    moved = _moved_refs({**schema, "definitions": definitions})
    return {"$schema": "http://json-schema.org/draft-07/schema#", **moved, "title": "luthier.yaml"}


def _moved_refs(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: v.replace("#/$defs/", "#/definitions/") if key == "$ref" else _moved_refs(v) for key, v in value.items()}
    return [_moved_refs(item) for item in value] if isinstance(value, list) else value


def _read_text(path: Path) -> str:
    """The file's text; at most one byte more than is allowed, which `read_yaml` then refuses."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_YAML_BYTES + 1)
        return raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(
            "there is no such settings file", where=str(path), fix="luthier init writes one; or leave --config out"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 (byte {error.start})"
        raise ConfigError(f"cannot be read: {reason}", where=os.fspath(path), fix="save it as UTF-8 text that you may read") from error
