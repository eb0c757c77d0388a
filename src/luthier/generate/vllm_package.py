"""vLLM as it is installed: imported without telemetry, opened in this process over safetensors and adapters in PEFT's format."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from luthier.core.errors import InputError, MissingExtraError, ModelError
from luthier.core.types import Order
from luthier.generate.contract import MAX_LOGPROBS
from luthier.generate.held import JSON_FORM

OLDEST = (0, 32)  # the one that was tried; earlier ones take adapters whose layers differ in rank and alpha for plain ones
MAX_TEMPERATURE = 2.0
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the adapter ranks it can be set to
# It reads these when it is opened. Left alone it reports what it runs on, logs to standard output, and waits for others at the machine's
# address; a process of its own begins as a copy of this one, threads and all.
_ALWAYS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
_UNLESS_SET = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}


class Running(Protocol):
    """`vllm.LLMEngine`, as far as it is used here."""

    engine_core: Any

    def add_lora(self, lora_request: Any) -> bool:
        """Load an adapter. Raises ValueError and others for one it cannot compute."""
        ...

    def add_request(self, request_id: str, prompt: Any, params: Any, *, lora_request: Any = None) -> str:
        """Take a request. Raises ValueError for one it cannot answer."""
        ...

    def step(self) -> Sequence[Any]:
        """One step of all requests: a `RequestOutput` for each that got tokens."""
        ...

    def abort_request(self, request_ids: list[str]) -> None:
        """Give requests up."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """An opened vLLM. `loras`: voice -> the `LoRARequest` that asks for its adapter; `no_lora`: the base model's."""

    running: Running
    loras: Mapping[str, Any]
    no_lora: Any
    version: str
    package: Any


def require_vllm() -> str:
    """The installed version. Raises MissingExtraError without one, or for one too old."""
    fix = "pip install vllm (https://docs.vllm.ai says how for each kind of machine), or leave --vllm out"
    if find_spec("vllm") is None:
        raise MissingExtraError("there is no vLLM here", where="--vllm", fix=fix)
    try:
        version = _version()
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError("there is a folder `vllm` here that is no installed package", where="--vllm", fix=fix) from error
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingExtraError(f"found vLLM {version}, expected {oldest} or newer", where="--vllm", fix=f"pip install 'vllm>={oldest}'")
    return version


def _version() -> str:
    """Of whichever distribution brings the package: builds for processors go by other names."""
    names = importlib.metadata.packages_distributions().get("vllm", ("vllm",))
    return importlib.metadata.version(names[0])


def open_vllm(
    path: Path,
    *,
    dtype: str,
    context: int,
    adapters: Mapping[str, Path],
    zero: Path | None,
    rank: int,
    max_active: int,
    on_cpu: bool,
    apart: bool = False,
    memory: float | None = None,
    max_logprobs: int = MAX_LOGPROBS,
) -> Vllm:
    """vLLM over one base model, in this process. `rank`: one of RANKS, no adapter's is above it. Raises MissingExtraError, ModelError.

    `zero`: an adapter that changes nothing, for the base model beside others. On a processor vLLM (0.32) puts the last adapter on rows
    that ask for none. `apart`: it computes in a process of its own, which gives all its memory back when it is closed. `memory`: the share
    of the device's memory it may take, 0 to 1; None: vLLM's own default.
    """
    version = require_vllm()
    os.environ.update(_ALWAYS | {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(apart))})
    for name, value in _UNLESS_SET.items():
        os.environ.setdefault(name, value)
    asked = _arguments(path, dtype=dtype, context=context, max_active=max_active, max_logprobs=max_logprobs, on_cpu=on_cpu)
    if memory is not None:
        asked["gpu_memory_utilization"] = memory  # of the memory of a processor too, for all its name
    if adapters:
        asked |= {"enable_lora": True, "max_loras": len(adapters) + (zero is not None), "max_lora_rank": rank}
    try:
        package: Any = importlib.import_module("vllm")
        request: Any = importlib.import_module("vllm.lora.request").LoRARequest
        loras = {voice: request(voice, number, str(folder.resolve())) for number, (voice, folder) in enumerate(adapters.items(), start=1)}
        no_lora = None if zero is None else request("none", len(loras) + 1, str(zero.resolve()))
        running: Running = package.LLMEngine.from_engine_args(package.EngineArgs(**asked))
        for lora in (*loras.values(), *([] if no_lora is None else [no_lora])):
            running.add_lora(lora)  # now, not when the first order asks for it
    except Exception as error:  # whatever a program of many parts fails with, on this machine, with this model
        raise ModelError(
            f"vLLM {version} cannot open it: {_first_line(error)}",
            where=str(path),
            fix="leave --vllm out: Luthier's own engine answers then",
        ) from error
    return Vllm(running=running, loras=loras, no_lora=no_lora, version=version, package=package)


def _arguments(path: Path, *, dtype: str, context: int, max_active: int, max_logprobs: int, on_cpu: bool) -> dict[str, Any]:
    """What every vLLM is opened with."""
    return {
        "model": str(path.resolve()),
        "tokenizer": str(path.resolve()),
        "dtype": dtype,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "generation_config": "vllm",  # not what stands in the folder: an order says how it is drawn
        "max_model_len": context,
        "max_num_seqs": max_active,
        "max_logprobs": max_logprobs,
        "enable_prefix_caching": True,
        "async_scheduling": False,  # a step's tokens are looked at before the next one
        "structured_outputs_config": {"backend": "guidance"},  # it takes grammars as `held` makes them
        "enforce_eager": on_cpu,  # compiling takes minutes there
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,
    }


def ask(vllm: Vllm, name: str, order: Order, prompt: Sequence[int], *, length: int, ends: Sequence[int], voice: str) -> None:
    """Give vLLM an order as request `name`; its tokens are wanted one by one, all else is done with them here. Raises InputError."""
    sampling = order.sampling
    forms: Any = importlib.import_module("vllm.sampling_params")
    refusal: type[Exception] = getattr(importlib.import_module("vllm.exceptions"), "VLLMValidationError", ValueError)
    held = _form(order, ends)
    try:
        params = vllm.package.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed % 2**63,
            max_tokens=length,
            stop_token_ids=list(ends),
            ignore_eos=True,  # `ends` holds what ends an answer, as the model was measured with
            logprobs=order.num_logprobs,
            detokenize=False,
            output_kind=forms.RequestOutputKind.DELTA,
            structured_outputs=None if held is None else forms.StructuredOutputsParams(**held),
        )
        vllm.running.add_request(name, {"prompt_token_ids": list(prompt)}, params, lora_request=vllm.loras.get(voice, vllm.no_lora))
    except (ValueError, refusal) as error:
        form = next((name for name in ("choices", "json_schema", "regex") if getattr(order, name)), "messages")
        where, fix = ("temperature", '"temperature": 1.0') if sampling.temperature > MAX_TEMPERATURE else (form, "answer without --vllm")
        raise InputError(f"vLLM {vllm.version} refuses it: {_first_line(error)}", where=where, fix=fix) from error


def _form(order: Order, ends: Sequence[int]) -> dict[str, Any] | None:
    """What an answer is held to, in the words of vLLM and its llguidance; what may be written is what `held.hold` lets through.

    Behind a label that another one begins with any of the model's ends may stand; vLLM itself knows the tokenizer's only. Where a label can
    go on in one way only, it may still be cut into tokens as the model likes.
    """
    if order.choices:
        end = " | ".join(f"<[{token}]>" for token in ends)
        labels = " | ".join(json.dumps(label) for label in order.choices)
        return {"grammar": f'%llguidance {{"no_forcing": true}}\nstart: LABEL ({end})?\nLABEL: " "? ({labels})'}
    if order.json_schema is not None:
        schema = json.loads(order.json_schema)
        return {"json": json.dumps({**(schema if isinstance(schema, dict) else {}), "x-guidance": JSON_FORM})}
    return None if order.regex is None else {"regex": order.regex}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
