"""Open the tokenizer of a model folder. Needs no torch, so that checking data costs seconds."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from luthier.core.errors import ModelError
from luthier.models.folder import UNCHANGED, refuse_remote_code


def open_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ModelError if there is none, it needs remote code, or cannot be read."""
    refuse_remote_code(path)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(
            "has no tokenizer (tokenizer.json)", where=str(path), fix="copy tokenizer.json and tokenizer_config.json beside the weights"
        )
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # tokenizers is a Rust library behind many converters; a damaged file can raise any error
        raise ModelError(f"the tokenizer cannot be read: {type(error).__name__}: {error}"[:600], where=str(path), fix=UNCHANGED) from error
    if not tokenizer.is_fast:
        raise ModelError("has only a slow Python tokenizer", where=str(path), fix="take a version of the model that has tokenizer.json")
    tokenizer.backend_tokenizer.no_truncation()  # lengths are the engine's to judge: nothing is cut or filled up here
    tokenizer.backend_tokenizer.no_padding()
    return cast("PreTrainedTokenizerBase", tokenizer)


@contextmanager
def quiet_transformers() -> Generator[None]:
    """No progress bars or notices of transformers; whatever matters in them is an error here."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
