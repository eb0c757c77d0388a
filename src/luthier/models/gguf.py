"""Child process: a GGUF file, or what a wheel made of one, becomes an ordinary model folder.

    python -m luthier.models.gguf SOURCE.gguf OUTPUT_FOLDER

GGUF parsers have a history of memory faults, so the file is only ever read here. Weights are stored in bf16: the quantised
values carry at most 8 significant bits per block scale, and the models were trained in bf16.

What transformers' conversion loses is mended here, each with its reason, and noted in `conversion.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOTES_FILE = "conversion.json"


def convert(source: Path, out: Path) -> tuple[str, ...]:
    """Write config, weights (bf16 safetensors), tokenizer and chat template; returns what was mended."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from_gguf: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **from_gguf)
    dequantise = getattr(transformers, "GgufConfig", None)  # before 5.23 there was no other way than to dequantise
    extra = {"quantization_config": dequantise(dequantize=True)} if dequantise is not None else {}
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), dtype=torch.bfloat16, **from_gguf, **extra)
    model.config.name_or_path = ""  # else a temporary folder of this machine is written into config.json
    model.save_pretrained(str(out), max_shard_size="4GB")
    tokenizer.save_pretrained(str(out))
    return mend_tokenizer(out, _metadata(source), context=int(model.config.get_text_config().max_position_embeddings))


def _metadata(source: Path) -> dict[str, Any]:
    """The scalar metadata of the tokenizer."""
    from gguf import GGUFReader

    wanted = ("tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id")
    fields = GGUFReader(str(source)).fields
    return {key: fields[key].contents() for key in wanted if key in fields}


def mend_tokenizer(out: Path, metadata: dict[str, Any], *, context: int) -> tuple[str, ...]:
    """Put back what the conversion lost: digits split one by one, BOS, the longest text; remove what names this machine."""
    notes: list[str] = []
    path = out / "tokenizer.json"
    tokenizer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    mends: tuple[Callable[[dict[str, Any], dict[str, Any]], str], ...] = (_split_digits, _add_bos)
    for mend in mends:
        note = mend(tokenizer, metadata)
        notes += [note] if note else []
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1), encoding="utf-8")
    config_path = out / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path", "gguf_file"):
        config.pop(key, None)
    config["model_max_length"] = context
    config["clean_up_tokenization_spaces"] = False
    config_path.write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
    return tuple(notes)


def _split_digits(tokenizer: dict[str, Any], metadata: dict[str, Any]) -> str:
    """SmolLM's pre-tokeniser: every digit on its own, before the byte-level split.

    Without it, spaces before a number are tokenised otherwise than in training ("x:   12": two tokens of space, not one).
    """
    if metadata.get("tokenizer.ggml.pre") != "smollm" or "Digits" in json.dumps(tokenizer["pre_tokenizer"]):
        return ""
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]}
    return "digits are split one by one, as in the original tokenizer (pre-tokeniser smollm)"


def _add_bos(tokenizer: dict[str, Any], metadata: dict[str, Any]) -> str:
    """BOS in front of every text where the file asks for it."""
    if not metadata.get("tokenizer.ggml.add_bos_token"):
        return ""
    bos_id = int(metadata["tokenizer.ggml.bos_token_id"])
    bos = next(token["content"] for token in tokenizer["added_tokens"] if token["id"] == bos_id)
    if bos in json.dumps(tokenizer.get("post_processor"), ensure_ascii=False):
        return ""
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
    return f"{bos} is put in front of every text (add_bos_token)"


if __name__ == "__main__":
    target = Path(sys.argv[2])
    mended = convert(Path(sys.argv[1]), target)
    (target / NOTES_FILE).write_text(json.dumps({"mended": mended}), encoding="utf-8")
