"""vLLM in this process, in place of Luthier's own engine: for GPUs, and for many who ask at once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import ModelError
from luthier.generate.engine import MAX_ACTIVE
from luthier.generate.vllm_engine import VllmEngine
from luthier.generate.vllm_package import RANKS, open_vllm, require_vllm
from luthier.models.folder import read_json
from luthier.models.load import inspect_folder
from luthier.models.lora import CONFIG, WEIGHTS, check_adapter
from luthier.models.tokenizer import open_tokenizer
from luthier.tokens.template import open_chat
from luthier.train.precision import Precision


@dataclass(frozen=True, slots=True)
class InVllm:
    """vLLM is to answer, until `until` ends."""

    until: ExitStack

    def open_engine(
        self, model_path: Path, precision: Precision, *, base_name: str, adapters: Mapping[str, Path], max_active: int = MAX_ACTIVE
    ) -> VllmEngine:
        """As `pipeline.open.open_engine`. Raises MissingExtraError, and ModelError for what vLLM does not compute."""
        info, on_cpu = inspect_folder(model_path), precision.device.type == "cpu"
        for path in adapters.values():
            check_adapter(path, info)  # vLLM knows of no base an adapter belongs to
        opened = open_vllm(
            model_path,
            dtype=precision.name,
            context=info.context,
            adapters=adapters,
            zero=self._zero(adapters) if on_cpu else None,
            rank=largest_rank(adapters),
            max_active=max_active,
            on_cpu=on_cpu,
        )
        encoder = open_chat(open_tokenizer(model_path))
        engine = VllmEngine(opened, encoder, context=info.context, base_name=base_name, num_vocab=info.vocab_size)
        self.until.callback(engine.close)
        return engine

    def _zero(self, adapters: Mapping[str, Path]) -> Path | None:
        """An adapter for the same layers as the first of these that adds nothing to them, until `until` ends."""
        if not adapters:
            return None
        like, folder = next(iter(adapters.values())), Path(self.until.enter_context(tempfile.TemporaryDirectory(prefix="luthier-")))
        shutil.copyfile(like / CONFIG, folder / CONFIG)
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(like / WEIGHTS).items()}, folder / WEIGHTS)
        return folder


def find_in_vllm(until: ExitStack) -> InVllm:
    """The vLLM that is installed. Raises MissingExtraError without one."""
    require_vllm()
    return InVllm(until)


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
