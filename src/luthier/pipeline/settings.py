"""All settings of a run: one frozen model is the config file, the flags, the help, the JSON Schema and the documentation.

Precedence: flags, then `--set`, then the YAML file, then the defaults below. Unknown keys are refused with the nearest name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator

from luthier.core.errors import ConfigError, LuthierError
from luthier.core.hashing import sha256_file
from luthier.data.documents import digest_documents
from luthier.pipeline.origin import MAX_YAML_BYTES, Problem, flatten, put, read_value, read_yaml
from luthier.pipeline.refusal import nearest, problems_of, raise_all
from luthier.pipeline.server_settings import EmbeddingSettings, EndpointSettings, JudgeSettings
from luthier.pipeline.setting_groups import (
    ArmSettings,
    Count,
    CountOrZero,
    DataSettings,
    DecideSettings,
    Group,
    ModelSettings,
    ProbeSettings,
    TrainSettings,
    as_list,
)

COMMAND_LINE = "command line"
DEFAULT = "default"
DIGEST_CHARS = 16

# What may change between two calls on one run folder without changing what was measured. The rest of `decide` is here because
# verdict and report are made anew from the record; the metric is not, because the arms are chosen on dev with it.
BENIGN = frozenset(
    {"threads", "run_dir", "fresh", "train.micro_batch", "train.checkpoint_activations", "train.save_every", "train.shard"}
    | {"arms.train_seeds", "arms.learning_curve"}  # add to what was measured, and change nothing of it
    | {"arms.vllm_memory"}
    | {"arms.style_rows", "arms.paraphraser", "arms.paraphrases"}  # the same
    | {f"arms.consistency_{name}" for name in ("items", "samples", "temperature")}
    | {f"{group}.{name}" for group in ("endpoint", "embeddings") for name in ("key_env", "concurrency", "timeout_s", "retries")}
    | {f"decide.{name}" for name in ("margin", "min_quality", "volume", "usd_per_hour", "hosting", "labelling", "months")}
    | {"decide.serves_other_work", "decide.prices"}
    # Probes change nothing of what was measured; where they changed they are measured anew.
    | {f"probes.{name}" for name in ("safety", "safety_prompts", "safety_items", "max_new_tokens", "retention")}
    | {f"probes.constraint_{name}" for name in ("prompts", "items", "tokens")}
    | {f"judge.{name}" for name in JudgeSettings.model_fields}  # adds to what was measured; another judge is asked anew
    | {f"decide.usd_per_m_{name}" for name in ("input", "cached_input", "output")}
)  # fmt: skip


class Settings(Group):
    """Everything a run can be told."""

    data: DataSettings = Field(default=DataSettings(), description="the examples")
    model: ModelSettings = Field(default=ModelSettings(), description="the model")
    train: TrainSettings = Field(default=TrainSettings(), description="fine-tuning")
    endpoint: EndpointSettings = Field(default=EndpointSettings(), description="a model behind an address")
    embeddings: EmbeddingSettings = Field(default=EmbeddingSettings(), description="embeddings for retrieval")
    arms: ArmSettings = Field(default=ArmSettings(), description="what is measured")
    probes: ProbeSettings = Field(default=ProbeSettings(), description="what is measured beside the test items")
    judge: JudgeSettings = Field(default=JudgeSettings(), description="a model that compares the answers")
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
        paths = as_list(data.get("paths") or "luthier") if isinstance(data, dict) else ["luthier"]
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
        flat["arms.documents"] = _documents(self.arms.documents)
        flat["arms.instructions"] = [_content(path) for path in self.arms.instructions]
        return {**flat, **{key: _content(path) for key, path in files.items()}, "data.paths.count": len(data.paths)}

    def benign(self) -> dict[str, object]:
        """The rest."""
        return {key: value for key, value in _flat(self).items() if key in BENIGN and key != "fresh"}

    def to_yaml(self) -> str:
        """A file that `load_settings` reads back to the same settings; `fresh` is for one call and is not in it."""
        values = self.model_dump(mode="json", exclude={"fresh"})
        values["model"]["name"] = _absolute(self.model.name)  # the run is opened from any folder
        values["model"]["larger"] = [_absolute(name) for name in self.model.larger]
        if self.decide.prices:
            values["decide"]["prices"] = str(Path(self.decide.prices).expanduser().resolve())
        if self.judge.model and not self.judge.url:
            values["judge"]["model"] = _absolute(self.judge.model)
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


def _documents(folder: str | None) -> str | None:
    """Digest of a folder of documents, as `_content`."""
    if folder is None:
        return None
    try:
        return f"sha256 {digest_documents(folder)}"
    except LuthierError:
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
