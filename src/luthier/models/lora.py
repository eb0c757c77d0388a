"""LoRA adapters: deterministic start, standard PEFT files in both directions, and no adapter on the wrong base.

An adapter folder is untrusted like a model folder: its weights must be safetensors with a sound header, and of its config only
what LoRA computes with is taken over. Settings this program does not compute are refused rather than ignored.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from luthier.core.errors import ModelError
from luthier.core.seeds import seed_for
from luthier.models.catalogue import MANIFEST, read_manifest
from luthier.models.folder import PICKLED, TensorHeader, read_headers, read_json, weight_files, weights_sha256
from luthier.models.load import ModelInfo
from luthier.store.files import atomic_write_json, disk_error, replace_folder

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."

# Settings of other methods or of training tricks that change what the adapter computes, with the value that means "not used".
_UNSUPPORTED: Mapping[str, object] = {
    "alora_invocation_tokens": None, "bias": "none", "fan_in_fan_out": False, "layer_replication": None, "lora_bias": False,
    "megatron_config": None, "modules_to_save": None, "target_parameters": None, "trainable_token_indices": None, "use_qalora": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters `scale * B A`. "all-linear": every linear layer but the output layer.

    scale is alpha / r, with rsLoRA alpha / sqrt(r) (arXiv 2312.03732). DoRA trains the length of each output row apart from its
    direction (arXiv 2402.09353). PiSSA starts from the largest singular directions of the weights (arXiv 2404.02948).
    """

    r: int
    alpha: float
    dropout: float
    targets: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    init: Literal["uniform", "pissa"] = "uniform"

    @property
    def scale(self) -> float:
        """What `B A` is multiplied by."""
        return self.alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


PissaStart = dict[str, tuple[torch.Tensor, torch.Tensor]]  # module name -> (A, B) that were taken out of its weight


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int, *, dtype: torch.dtype = torch.float32) -> PeftModel:
    """Put fresh adapters on `model` (in place). A is uniform in +-1/sqrt(in), B is zero, so nothing changes at first.

    Each A comes from its own generator, named for seed and module: no global generator is read or moved. Only adapter weights,
    of `dtype`, get gradients. Raises ModelError if no layer matches `settings.targets`.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=cast("int", settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=settings.targets if isinstance(settings.targets, str) else list(settings.targets),
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    adapted = _wrap(model, config, where="lora")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                generator = torch.Generator().manual_seed(seed_for(seed, f"lora/{name}"))
                fresh = torch.rand(parameter.shape, generator=generator).mul_(2).sub_(1).mul_(1 / math.sqrt(parameter.shape[1]))
                parameter.data = fresh.to(device=parameter.device, dtype=dtype)
            elif "lora_B" in name:
                parameter.data = torch.zeros_like(parameter, dtype=dtype)
            elif "lora_" in name:
                parameter.data = parameter.data.to(dtype)
    return adapted


@torch.no_grad()
def start_from_pissa(adapted: PeftModel, settings: LoraSettings, seed: int) -> PissaStart:
    """PiSSA: W = U S V^T becomes W - scale * B A with B = U sqrt(S / scale), A = sqrt(S / scale) V^T of the first r directions.

    Returns what was taken out, since the adapter that is saved must fit the unchanged weights.
    """
    start: PissaStart = {}
    for name, module in adapted.get_base_model().named_modules():
        if not hasattr(module, "lora_A"):
            continue
        layer: Any = module
        weight = layer.base_layer.weight
        with torch.random.fork_rng(devices=[]):  # the randomised SVD draws from the global generator
            torch.manual_seed(seed_for(seed, f"pissa/{name}"))
            u, s, v = torch.svd_lowrank(weight.float(), q=settings.r, niter=16)
        root = (s / settings.scale).sqrt()
        a, b = root[:, None] * v.T, u * root
        layer.lora_A["default"].weight.data.copy_(a)
        layer.lora_B["default"].weight.data.copy_(b)
        weight.copy_(weight.float() - settings.scale * (b @ a))
        start[name] = (a, b)
    return start


def _as_plain_lora(state: dict[str, torch.Tensor], config: dict[str, Any], pissa: PissaStart) -> None:
    """Rewrite a PiSSA adapter for the unchanged base: scale * (B A - B0 A0) is an adapter of twice the rank.

    [B, -B0] [A; A0] = B A - B0 A0; alpha grows with the rank, so that the scale stays.
    """
    for name, (a, b) in pissa.items():
        key_a, key_b = f"{_PREFIX}{name}.lora_A.weight", f"{_PREFIX}{name}.lora_B.weight"
        state[key_a] = torch.cat([state[key_a], a.to(state[key_a].dtype)], dim=0)
        state[key_b] = torch.cat([state[key_b], -b.to(state[key_b].dtype)], dim=1)
    config["r"] = 2 * config["r"]
    config["lora_alpha"] = config["lora_alpha"] * (math.sqrt(2) if config["use_rslora"] else 2)


def _wrap(model: PreTrainedModel | PeftModel, config: LoraConfig, *, where: str, name: str = "default") -> PeftModel:
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws initial values, which are replaced
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
            if isinstance(model, PeftModel):
                model.add_adapter(name, config, autocast_adapter_dtype=False)
                return model
            return cast("PeftModel", get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=False))
    except ValueError as error:
        raise ModelError(f"LoRA cannot be put on this model: {error}"[:500], where=where, fix='targets "all-linear"') from error


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with weights that hold values that are not numbers; empty if nothing is."""
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    return f"{len(broken)} tensors hold values that are not numbers: {', '.join(broken[:3])}" if broken else ""


def save_adapter(model: PeftModel, path: Path, *, base_info: ModelInfo, pissa: PissaStart | None = None) -> None:
    """Write the adapter as PEFT does, and luthier.json with the digest of its base. The folder appears whole, replacing an old one.

    Raises ModelError if a weight is not finite, RunError when the disk is full; then nothing is written.
    """
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in sorted(get_peft_model_state_dict(model, save_embedding_layers=False).items())
    }
    config = _plain_config(model.peft_config["default"])
    config |= {"base_model_name_or_path": base_info.name, "inference_mode": True}
    if pissa is not None:
        _as_plain_lora(state, config, pissa)
    if broken := not_finite(state):
        raise ModelError(f"the adapter: {broken}", where=str(path), fix="train again with a lower learning rate")
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(prefix=f".tmp-{path.name}-", dir=path.parent))
    try:
        tmp.chmod(0o755)
        save_file(state, tmp / WEIGHTS, metadata={"format": "pt"})
        (tmp / WEIGHTS).chmod(0o644)
        atomic_write_json(tmp / CONFIG, config)
        base = {"name": base_info.name, "sha256": base_info.sha256, "architecture": base_info.architecture}
        atomic_write_json(tmp / MANIFEST, {"format": 1, "base": base})
        replace_folder(tmp, path)
    except (OSError, SafetensorError) as error:  # safetensors hides a full disk in an error of its own
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        raise disk_error(path, num_bytes, error if isinstance(error, OSError) else OSError(str(error))) from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _plain_config(config: Any) -> dict[str, Any]:
    """PEFT's config as JSON values, sets in order: the same adapter gives the same bytes."""
    values: dict[str, Any] = config.to_dict()
    plain = {key: sorted(cast("set[str]", value)) if isinstance(value, set) else value for key, value in sorted(values.items())}
    return cast("dict[str, Any]", json.loads(json.dumps(plain, default=str)))


def base_name(path: Path) -> str:
    """What an adapter folder calls its base model: as this program recorded it, else as PEFT did; untrusted, and perhaps empty."""
    recorded = read_manifest(path).get("base")
    name = cast("dict[str, Any]", recorded).get("name") if isinstance(recorded, dict) else None
    return str(name or read_json(path / CONFIG).get("base_model_name_or_path") or "")


def load_adapter(model: PreTrainedModel | PeftModel, path: Path, *, base_info: ModelInfo | None = None, name: str = "default") -> PeftModel:
    """Put the adapter of a folder on `model` (in place), in eval mode without gradients, in the dtype it was stored in.

    A model that has adapters gets one more; `name` is what peft calls it, and must be new.

    Raises ModelError for: no adapter, pickled weights, a method other than LoRA and DoRA, layers or shapes `model` does not have, and
    another base than the one it was trained on (where luthier.json names that; the base's digest is `base_info`'s, or is taken
    from the folder `model` was opened from).
    """
    config = _read_config(path)
    headers = read_headers(path / WEIGHTS)
    causal = cast("PreTrainedModel", model.get_base_model()) if isinstance(model, PeftModel) else model
    _refuse_other_base(causal, path, base_info)
    ranks = _check_layers(causal, path, headers)
    r = max(set(ranks.values()), key=list(ranks.values()).count)
    adapted = _wrap(
        model,
        LoraConfig(
            r=r,
            lora_alpha=cast("int", _number(config, "lora_alpha", path)),
            lora_dropout=0.0,
            target_modules=sorted(ranks),
            rank_pattern={name: rank for name, rank in ranks.items() if rank != r},
            alpha_pattern=cast("dict[str, Any]", _mapping(config, "alpha_pattern", path)),
            use_rslora=config.get("use_rslora") is True,
            use_dora=config.get("use_dora") is True,
            task_type="CAUSAL_LM",
            inference_mode=True,
        ),
        where=str(path),
        name=name,
    )
    state = load_file(path / WEIGHTS)
    for key, parameter in adapted.named_parameters():
        if "lora_" in key and f".{name}" in key:
            parameter.data = parameter.data.to(next(iter(state.values())).dtype)
    result: Any = set_peft_model_state_dict(adapted, state, adapter_name=name)
    if result.unexpected_keys or any("lora_" in key and f".{name}" in key for key in result.missing_keys):
        raise ModelError(
            "the adapter's tensors do not fit the model's layers", where=str(path), fix="train the adapter again on this model"
        )
    adapted.requires_grad_(requires_grad=False)
    adapted.eval()
    return adapted


def check_adapter(path: Path, base_info: ModelInfo) -> None:
    """Raise ModelError for an adapter that `load_adapter` would not take on this base; whether its layers fit is not looked at."""
    _read_config(path)
    read_headers(path / WEIGHTS)
    _refuse_other_base(None, path, base_info)


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / WEIGHTS).is_file():
        pickled = sorted(p.name for p in path.glob("*") if p.suffix in PICKLED)
        what = f"has its weights only in pickled form ({', '.join(pickled)})" if pickled else f"has no {WEIGHTS}"
        raise ModelError(f"the adapter {what}", where=str(path), fix="give the folder of an adapter saved as safetensors")
    config = read_json(path / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"the adapter is of type {config.get('peft_type')!r}, expected 'LORA'", where=str(path), fix="use a LoRA adapter")
    for key, unused in _UNSUPPORTED.items():
        if config.get(key, unused) not in (unused, [], {}):
            raise ModelError(f"the adapter uses {key}={config[key]!r}"[:300], where=str(path / CONFIG), fix="use a plain LoRA adapter")
    return config


def _number(config: Mapping[str, Any], key: str, path: Path) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ModelError(f"{key} is {value!r}, expected a number", where=str(path / CONFIG), fix="use an unchanged copy of the adapter")
    return value


def _mapping(config: Mapping[str, Any], key: str, path: Path) -> dict[str, float]:
    """`alpha_pattern`, whose keys peft would use as regular expressions: only plain module names are taken."""
    found: object = config.get(key) or {}
    pattern = cast("dict[str, Any]", found) if isinstance(found, dict) else {"": None}
    for name in pattern:
        if not all(part.isidentifier() or part.isdecimal() for part in name.split(".")):
            raise ModelError(f"{key} has the key {name!r}, expected module names", where=str(path / CONFIG), fix="use a plain LoRA adapter")
    return {name: _number(pattern, name, path) for name in pattern}


def _refuse_other_base(model: PreTrainedModel | None, path: Path, base_info: ModelInfo | None) -> None:
    recorded = cast("dict[str, Any]", read_json(path / MANIFEST).get("base") or {}) if (path / MANIFEST).is_file() else {}
    if not recorded.get("sha256"):
        return
    folder = Path(str(model.name_or_path or "")) if model is not None else Path()
    if base_info is not None:
        found = base_info.sha256
    elif model is not None and model.name_or_path and folder.is_dir():
        found = weights_sha256(folder, weight_files(folder))
    else:
        return
    if found != recorded["sha256"]:
        raise ModelError(
            f"the adapter was trained on {recorded.get('name')} (weights {str(recorded['sha256'])[:12]}…), this model is {found[:12]}…",
            where=str(path),
            fix=f"open the model it was trained on: {recorded.get('name')}",
        )


def _check_layers(model: PreTrainedModel, path: Path, headers: Mapping[str, TensorHeader]) -> dict[str, int]:
    """Rank by module name. Raises ModelError unless every tensor fits a linear layer of the model and A and B fit each other."""
    layers = {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }
    fix = "open the model the adapter was trained on"
    ranks: dict[str, int] = {}
    sides: dict[str, dict[Literal["A", "B"], tuple[int, ...]]] = {}
    for key, header in headers.items():
        lengths_of = key.removeprefix(_PREFIX).removesuffix(".lora_magnitude_vector")
        if lengths_of in layers and header.shape == (layers[lengths_of].out_features,):
            continue  # DoRA's length of each output row
        module, _, side = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if side not in ("A", "B") or module not in layers or len(header.shape) != 2:
            raise ModelError(f"the adapter has a tensor {key!r} for which this model has no linear layer", where=str(path), fix=fix)
        sides.setdefault(module, {})["A" if side == "A" else "B"] = header.shape
    for module, shapes in sides.items():
        layer = layers[module]
        rank = shapes.get("A", (0, 0))[0]
        expected = {"A": (rank, layer.in_features), "B": (layer.out_features, rank)}
        if shapes != expected or rank < 1:
            raise ModelError(f"{module}: the adapter has the shapes {shapes}, this model needs {expected}", where=str(path), fix=fix)
        ranks[module] = rank
    if not ranks:
        raise ModelError("the adapter is empty", where=str(path), fix=fix)
    return ranks
