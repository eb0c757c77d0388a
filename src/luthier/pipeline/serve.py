"""`luthier serve`: from a run, an adapter or a model to the names clients can ask for, and to the same artefact on vLLM."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.core.errors import ConfigError, ModelError, RunError
from luthier.core.hashing import digest, sha256_file
from luthier.generate.contract import TextEngine
from luthier.kernels.device import choose_device
from luthier.models.catalogue import resolve
from luthier.models.load import inspect_folder
from luthier.models.lora import CONFIG, WEIGHTS
from luthier.pipeline.in_llama import InLlama
from luthier.pipeline.in_vllm import largest_rank
from luthier.pipeline.open import OpenEngine, base_of, open_engine, programs, shared_text
from luthier.pipeline.prepare import precision_of
from luthier.pipeline.settings import load_settings
from luthier.serve.dispatch import Dispatcher
from luthier.serve.metrics import Metrics
from luthier.serve.offers import Offer, check_offers
from luthier.serve.service import Service
from luthier.store.layout import RunFolder
from luthier.train.precision import Precision, choose_precision

PROMPTED = "-prompted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What is to be served, found without opening any weights. `adapters`: name in the engine -> folder.

    `in_llama`: the GGUF file that llama.cpp answers from; `base` is then the folder of its tokenizer.
    """

    base: Path
    precision: Precision
    adapters: Mapping[str, Path]
    offers: tuple[Offer, ...]
    in_llama: InLlama | None = None


def find_serving(target: str, *, adapters: Sequence[str], base: str | None) -> Serving:
    """What `luthier serve TARGET` serves. `adapters` are NAME=FOLDER. Raises ConfigError, ModelError, RunError."""
    folder = RunFolder(Path(target))
    more, precision = _named_adapters(adapters), choose_precision("auto", device=choose_device("auto"))
    if (folder.root / CONFIG).is_file():
        path = base_of(folder.root, command="serve") if base is None else resolve(base)
        found = _over_base(path, path.name, {folder.root.resolve().name: folder.root, **more}, precision)
    elif base is not None:
        raise ConfigError(f"{target} is no adapter, --model names the base model of one", where="--model", fix="leave --model out")
    elif folder.config.is_file():
        found = _of_run(folder, more)
    elif folder.root.parent != Path() and folder.root.parent.is_dir() and not folder.root.is_dir():
        raise RunError("there is no such run", where=target, fix="give the folder of a finished run, or a name of: luthier models list")
    else:
        found = _over_base(resolve(target), Path(target).name, more, precision)
    check_offers(found.offers)
    return found


def _named_adapters(items: Sequence[str]) -> dict[str, Path]:
    out: dict[str, Path] = {}
    for item in items:
        name, _, folder = item.partition("=")
        if not name or not folder:
            raise ConfigError(f"found {item!r}, expected NAME=FOLDER", where="--adapter", fix="--adapter intents=runs/intents/adapter")
        if name in out:
            raise ConfigError(f"two adapters are called {name}", where="--adapter", fix=f"--adapter {name}-2={folder}")
        path = Path(folder) / "adapter" if (Path(folder) / "adapter" / CONFIG).is_file() else Path(folder)
        if not (path / CONFIG).is_file():
            raise ModelError(f"there is no {CONFIG}", where=str(path), fix="give the folder of a run or of an adapter in PEFT's format")
        out[name] = path
    return out


def _over_base(path: Path, name: str, adapters: Mapping[str, Path], precision: Precision) -> Serving:
    name = f"{name}-base" if name in adapters else name
    offers = [Offer(name=adapter, voice=adapter, description=f"adapter {adapter} on {name}", parent=name) for adapter in adapters]
    offers.append(Offer(name=name, voice="", description="the base model as it is"))
    return Serving(base=path, precision=precision, adapters=dict(adapters), offers=tuple(offers))


def _of_run(folder: RunFolder, more: Mapping[str, Path]) -> Serving:
    """The tuned model by the name of the run, the same with the prompt of its training rows, and the base model."""
    settings = load_settings(folder.config, {})
    precision = precision_of(settings, folder)
    name = folder.root.resolve().name
    if (folder.adapter / WEIGHTS).is_file():
        found = _over_base(resolve(settings.model.name), Path(settings.model.name).name, {name: folder.adapter, **more}, precision)
        voice, parent = name, found.offers[-1].name
    elif (folder.model / "config.json").is_file():
        found = _over_base(folder.model, name, more, precision)
        voice, parent = "", None
    else:
        raise RunError(
            "nothing was trained here yet", where=str(folder.root), fix="finish it with the command that started it: luthier run …"
        )
    system, instruction = shared_text(folder, "system"), shared_text(folder, "instruction")
    offers = [
        Offer(name=name, voice=voice, description="the tuned model; it sees exactly what you send", parent=parent),
        *(offer for offer in found.offers if offer.name != name),
    ]
    if system or instruction:
        prompted = Offer(
            name=f"{name}{PROMPTED}",
            voice=voice,
            description="the tuned model, with the prompt its training rows share put in front of your messages",
            parent=parent,
            root=name,
            system=system,
            instruction=instruction,
        )
        offers.insert(1, prompted)
    return Serving(base=found.base, precision=precision, adapters=found.adapters, offers=tuple(offers))


def by_llama(serving: Serving, in_llama: InLlama) -> Serving:
    """The same, answered by llama.cpp from one file: the tuned model without its base, or the model."""
    offers = [offer for offer in serving.offers if offer.voice or not serving.adapters]
    alone = tuple(replace(offer, voice="", parent=None) for offer in offers)
    return replace(serving, adapters={}, offers=alone, in_llama=in_llama)


def vllm_command(serving: Serving, *, host: str, port: int, key_env: str | None) -> str:
    """The command that serves the same artefacts on vLLM, to paste into a shell. Raises ModelError for adapters vLLM does not compute."""
    base_name = next(offer.name for offer in serving.offers if not offer.voice and not offer.is_prompted)
    words = ["vllm", "serve", str(serving.base.resolve()), "--served-model-name", base_name, "--dtype", serving.precision.name]
    if serving.adapters:
        rank, num = largest_rank(serving.adapters), len(serving.adapters)
        words += ["--enable-lora", "--max-loras", str(num), "--max-lora-rank", str(rank), "--lora-modules"]
        words += [f"{name}={path.resolve()}" for name, path in serving.adapters.items()]
    words += ["--generation-config", "vllm", "--host", host, "--port", str(port)]
    key = f'VLLM_API_KEY="${key_env}" ' if key_env else ""  # not an argument: every user of the machine can read those
    return key + shlex.join(words)


def open_service(serving: Serving, *, batch: int, queue: int, opener: OpenEngine = open_engine) -> Service:
    """Open weights and adapters for `serving`, with `opener` where they are not llama.cpp's. Raises ModelError."""
    base_name = next(offer.name for offer in serving.offers if not offer.voice and not offer.is_prompted)
    engine: TextEngine
    if serving.in_llama is not None:
        engine, fingerprint = serving.in_llama.open(serving.base, base_name)
        parts = [fingerprint]
    else:
        engine = opener(serving.base, serving.precision, base_name=base_name, adapters=serving.adapters, max_active=batch)
        parts = [inspect_folder(serving.base).sha256, serving.precision.name, *programs(engine)]
        parts += [sha256_file(path / WEIGHTS) for _, path in sorted(serving.adapters.items())]
    metrics = Metrics()
    return Service(
        offers=serving.offers,
        dispatcher=Dispatcher(engine, limit=queue, batch=batch, metrics=metrics),
        metrics=metrics,
        context=engine.context,
        fingerprint=f"fp_{digest(parts)[:16]}",
        created_s=int(time.time()),
    )
