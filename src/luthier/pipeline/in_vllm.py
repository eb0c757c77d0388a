"""vLLM in place of Luthier's own engine: for GPUs, and for many who ask at once. Chat and server have it in this process; for the arms of a
run it computes in a process of its own, which gives the device back before anything trains.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import ConfigError, ModelError
from luthier.core.hashing import digest, sha256_file
from luthier.generate.contract import MAX_LOGPROBS
from luthier.generate.engine import MAX_ACTIVE
from luthier.generate.vllm_engine import VllmEngine
from luthier.generate.vllm_model import MAX_ALLOWED, VllmModel
from luthier.generate.vllm_package import RANKS, Vllm, open_vllm, require_vllm
from luthier.models.folder import read_json
from luthier.models.load import ModelInfo, inspect_folder
from luthier.models.lora import CONFIG, WEIGHTS, check_adapter
from luthier.models.tokenizer import open_tokenizer
from luthier.pipeline.settings import Settings
from luthier.tokens.template import open_chat
from luthier.train.precision import Precision

TUNED = "tuned"


@dataclass(frozen=True, slots=True)
class InVllm:
    """vLLM is to answer, until `until` ends, with this share of the device's memory (None: as vLLM sets it)."""

    until: ExitStack
    memory: float | None = None

    def open_engine(
        self, model_path: Path, precision: Precision, *, base_name: str, adapters: Mapping[str, Path], max_active: int = MAX_ACTIVE
    ) -> VllmEngine:
        """As `pipeline.open.open_engine`. Raises MissingExtraError, and ModelError for what vLLM does not compute."""
        info = inspect_folder(model_path)
        opened = self._opened(model_path, info, precision, adapters, max_active=max_active)
        encoder = open_chat(open_tokenizer(model_path))
        engine = VllmEngine(opened, encoder, context=info.context, base_name=base_name, num_vocab=info.vocab_size)
        self.until.callback(engine.close)
        return engine

    def open_models(self, model_path: Path, precision: Precision, *, adapter: Path | None, max_active: int) -> tuple[VllmModel, VllmModel]:
        """The base model and what an adapter makes of it (without one the base model again), for a run. Raises as `open_engine`."""
        info, adapters = inspect_folder(model_path), {} if adapter is None else {TUNED: adapter}
        opened = self._opened(model_path, info, precision, adapters, max_active=max_active, is_for_run=True)
        self.until.callback(opened.running.engine_core.shutdown)
        about = [f"vllm {opened.version}", info.sha256, precision.name, precision.device.type]

        def model(voice: str, weights: str) -> VllmModel:
            return VllmModel(
                vllm=opened,
                voice=voice,
                encoder=open_chat(open_tokenizer(model_path)),
                fingerprint=digest([*about, weights]),
                context=info.context,
                num_vocab=info.vocab_size,
            )

        base = model("", "")
        return base, base if adapter is None else model(TUNED, sha256_file(adapter / WEIGHTS))

    def _opened(
        self,
        model_path: Path,
        info: ModelInfo,
        precision: Precision,
        adapters: Mapping[str, Path],
        *,
        max_active: int,
        is_for_run: bool = False,
    ) -> Vllm:
        """`is_for_run`: in a process of its own, and with the log-probabilities of labels."""
        for path in adapters.values():
            check_adapter(path, info)  # vLLM knows of no base an adapter belongs to
        on_cpu = precision.device.type == "cpu"
        return open_vllm(
            model_path,
            dtype=precision.name,
            context=info.context,
            adapters=adapters,
            zero=self._zero(adapters) if on_cpu else None,
            rank=largest_rank(adapters),
            max_active=max_active,
            on_cpu=on_cpu,
            apart=is_for_run,
            memory=self.memory,
            max_logprobs=MAX_ALLOWED if is_for_run else MAX_LOGPROBS,
        )

    def _zero(self, adapters: Mapping[str, Path]) -> Path | None:
        """An adapter for the same layers as the first of these that adds nothing to them, until `until` ends."""
        if not adapters:
            return None
        like, folder = next(iter(adapters.values())), Path(self.until.enter_context(tempfile.TemporaryDirectory(prefix="luthier-")))
        shutil.copyfile(like / CONFIG, folder / CONFIG)
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(like / WEIGHTS).items()}, folder / WEIGHTS)
        return folder


def refuse_for_vllm(settings: Settings) -> None:
    """With `arms.vllm`, before anything computes, raise MissingExtraError without vLLM and ConfigError for what it does not compute."""
    if not settings.arms.vllm:
        return
    require_vllm()
    train = settings.train
    if train.method != "lora":
        what = {"dora": "DoRA adapters", "freeze": "the whole model that freeze leaves", "full": "the whole model that full leaves"}
        raise ConfigError(
            f"found {train.method}, and the tuned arms are answered by vLLM, which is given plain adapters, not {what[train.method]}",
            where="train.method",
            fix="--set train.method=lora, or leave --vllm out",
        )
    if train.lora_r > RANKS[-1]:
        raise ConfigError(f"found {train.lora_r}, and vLLM takes up to {RANKS[-1]}", where="train.lora_r", fix="leave --vllm out")


def find_in_vllm(until: ExitStack, *, memory: float | None = None) -> InVllm:
    """The vLLM that is installed. Raises MissingExtraError without one."""
    require_vllm()
    return InVllm(until, memory)


def share_of_memory(given: object, *, is_vllm: bool) -> float | None:
    """What --vllm-memory says. Raises ConfigError where it is no share, or vLLM does not answer."""
    if given is None:
        return None
    if not is_vllm:
        raise ConfigError("it is vLLM's memory, and vLLM does not answer", where="--vllm-memory", fix="--vllm, or leave --vllm-memory out")
    if not isinstance(given, float) or not 0 < given <= 1:
        raise ConfigError(f"found {given}, expected a share above 0, at most 1", where="--vllm-memory", fix="--vllm-memory 0.8")
    return given


def largest_rank(adapters: Mapping[str, Path]) -> int:
    """The rank vLLM has to be set to for these adapters, 0 without any. Raises ModelError for adapters it does not compute."""
    ranks = {path: _plain_rank(path) for path in adapters.values()}
    for path, rank in ranks.items():
        if rank > RANKS[-1]:
            raise _not_on_vllm(f"has rank {rank}, vLLM takes up to {RANKS[-1]}", path)
    largest = max(ranks.values(), default=0)
    return next((offered for offered in RANKS if offered >= largest), RANKS[-1]) if ranks else 0


def _plain_rank(path: Path) -> int:
    config = read_json(path / CONFIG)
    if config.get("use_dora") is True:
        raise _not_on_vllm("is a DoRA adapter, which vLLM does not compute", path)
    rank_pattern: object = config.get("rank_pattern")
    ranks = [config.get("r"), *(rank_pattern.values() if isinstance(rank_pattern, dict) else ())]
    return max((rank for rank in ranks if isinstance(rank, int)), default=8)


def _not_on_vllm(what: str, path: Path) -> ModelError:
    run = path.parent if path.name == "adapter" else path
    return ModelError(f"the adapter {what}", where=str(path), fix=f"merge it first: luthier export {run} --to merged --out merged")
