"""`luthier chat`: open what is to be talked to, a finished run or a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from luthier.core.errors import ConfigError, RunError
from luthier.core.hashing import digest, sha256_file
from luthier.generate.engine import Engine
from luthier.generate.vllm_engine import VllmEngine
from luthier.kernels.device import choose_device, rounds_otherwise
from luthier.models.catalogue import resolve
from luthier.models.load import inspect_folder
from luthier.models.lora import CONFIG
from luthier.pipeline.in_llama import InLlama
from luthier.pipeline.open import OpenEngine, base_of, open_engine, programs, shared_text, tuned_folder
from luthier.pipeline.prepare import precision_of
from luthier.pipeline.settings import Settings, load_settings
from luthier.serve.chat import Conversation, Voice, open_conversation
from luthier.store.layout import RunFolder
from luthier.train.precision import Precision, choose_precision

TUNED, BASE = "tuned", "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What a name leads to: the voice, what its rows all shared, and how to open the base model it stands on (None: it is one)."""

    voice: Voice
    system: str = ""
    instruction: str = ""
    base: Callable[[], Voice] | None = None


def open_chat_with(
    run_or_model: str, *, compare: str | None, system: str | None, base: str | None = None, by: InLlama | OpenEngine = open_engine
) -> Conversation:
    """A conversation with the tuned model of a run or an adapter folder, or with a plain model.

    `compare` adds a second voice: "base" for the model that the first stands on, else any run, adapter or model. For a run, the
    instruction all its rows shared is put before each turn, as in training. `base` names the base model of an adapter. `by`: what answers
    for the first voice, an engine over its weights or llama.cpp from a GGUF file of it.
    """
    first = _open(run_or_model, base, by)
    voices = [first.voice]
    if compare == BASE and first.base is None:
        raise RunError("is a model, and a model has no base model to compare with", where=run_or_model, fix="--compare NAME, another model")
    if compare == BASE and first.base is not None:
        voices.append(first.base())
    elif compare is not None:
        name = Path(compare).resolve().name
        voices.append(replace(_open(compare, None, open_engine).voice, name=name if name != first.voice.name else f"{name} (2)"))
    return open_conversation(voices, system=first.system if system is None else system, instruction=first.instruction)


def _open(run_or_model: str, base: str | None, by: InLlama | OpenEngine) -> _Opened:
    folder = RunFolder(Path(run_or_model))
    if (folder.root / CONFIG).is_file():
        return _adapter(folder.root, base, by)
    if base is not None:
        raise ConfigError(f"{run_or_model} is no adapter, --model names the base model of one", where="--model", fix="leave --model out")
    if folder.config.is_file():
        return _run(folder, by)
    if folder.root.parent != Path() and folder.root.parent.is_dir() and not folder.root.is_dir():
        near = get_close_matches(folder.root.name, [p.name for p in folder.root.parent.iterdir() if p.is_dir()], n=1, cutoff=0.3)
        fix = (
            f"luthier chat {folder.root.parent / near[0]}"
            if near
            else "give the folder of a finished run, or a name of: luthier models list"
        )
        raise RunError("there is no such run", where=run_or_model, fix=fix)
    path = resolve(run_or_model)
    if isinstance(by, InLlama):
        return _Opened(voice=_by_llama(path.resolve().name, path, by))
    return _Opened(voice=_alone(path.resolve().name, path, choose_precision("auto", device=choose_device("auto")), by))


def _by_llama(name: str, tokenizer: Path, in_llama: InLlama) -> Voice:
    """What the GGUF file holds, in llama.cpp, behind the tokenizer of the model it was made of."""
    engine, fingerprint = in_llama.open(tokenizer, name)
    return Voice(name=name, engine=engine, spoken_as=name, count_prompt=engine.count_prompt, fingerprint=fingerprint)


def _alone(name: str, path: Path, precision: Precision, opener: OpenEngine = open_engine) -> Voice:
    """A model on an engine of its own."""
    return _voice(name, opener(path, precision, base_name=name, adapters={}), _fingerprint(path, precision))


def _with_adapter(path: Path, precision: Precision, adapter: Path, opener: OpenEngine) -> _Opened:
    """An adapter and its base, two voices of one engine."""
    engine = opener(path, precision, base_name=BASE, adapters={TUNED: adapter})
    return _Opened(
        voice=_voice(TUNED, engine, _fingerprint(path, precision, adapter)),
        base=lambda: _voice(BASE, engine, _fingerprint(path, precision)),
    )


def _voice(name: str, engine: Engine | VllmEngine, weights: str) -> Voice:
    other = programs(engine)
    fingerprint = digest([weights, *other]) if other else weights
    return Voice(name=name, engine=engine, spoken_as=name, count_prompt=engine.count_prompt, fingerprint=fingerprint)


def _fingerprint(path: Path, precision: Precision, adapter: Path | None = None) -> str:
    """The digest that `open_local` names the same weights by."""
    adapter_sha256 = sha256_file(adapter / "adapter_model.safetensors") if adapter is not None else ""
    return digest([inspect_folder(path).sha256, adapter_sha256, str(precision.dtype), *rounds_otherwise(precision.device)])


def _adapter(adapter: Path, base: str | None, by: InLlama | OpenEngine) -> _Opened:
    """An adapter in PEFT's format, saved here or elsewhere, on the base model that is given or that it names itself."""
    path, precision = (
        base_of(adapter, command="chat") if base is None else resolve(base),
        choose_precision("auto", device=choose_device("auto")),
    )
    if isinstance(by, InLlama):
        return _Opened(voice=_by_llama(TUNED, path, by), base=lambda: _alone(BASE, path, precision))
    return _with_adapter(path, precision, adapter, by)


def _run(folder: RunFolder, by: InLlama | OpenEngine) -> _Opened:
    """What a run trained: its adapter on the base model, or its own model."""
    settings: Settings = load_settings(folder.config, {})
    path, precision = resolve(settings.model.name), precision_of(settings, folder)
    trained = tuned_folder(folder)
    if isinstance(by, InLlama):
        tokenizer = path if trained == folder.adapter else trained
        opened = _Opened(voice=_by_llama(TUNED, tokenizer, by), base=lambda: _alone(BASE, path, precision))
    elif trained == folder.adapter:
        opened = _with_adapter(path, precision, trained, by)
    else:
        opened = _Opened(voice=_alone(TUNED, trained, precision, by), base=lambda: _alone(BASE, path, precision))
    return replace(opened, system=shared_text(folder, "system"), instruction=shared_text(folder, "instruction"))
