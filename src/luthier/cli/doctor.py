"""`luthier doctor`: is everything here that a run needs, and is it the right build?"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from importlib import metadata
from pathlib import Path

import typer

from luthier.cli.command import Given, Outcome, add_command
from luthier.core.errors import ConfigError

NEEDED = ("torch", "transformers", "peft", "safetensors", "pydantic", "numpy", "scipy", "bm25s")
MIN_PYTHON = (3, 11)
MIN_FREE_GIB = 2.0
MIN_MEMORY_GIB = 4.0
CPU_TORCH = "install the CPU build of torch over it, as pytorch.org says under Get started"


def doctor(given: Given) -> Outcome:
    """Look over this installation.

    What the machine has, whether the right builds are installed, and what to mend. Opens no network connection.
    """
    del given
    from luthier.core.environment import describe_environment
    from luthier.kernels.compiled import library

    environment = describe_environment()
    problems = _problems(environment)
    environment |= {"device": _device(), "small operations": library().words, "llama.cpp": _llama()}
    lines = [f"{name:<17} {value}" for name, value in environment.items()]
    models = _models_here()
    lines += [f"{'models here':<17} {', '.join(models) or 'none'}", ""]
    lines += [f"mend: {what}\n  fix: {fix}" for what, fix in problems] or ["Everything a run needs is here."]
    found = {"environment": environment, "models": models, "problems": [{"problem": what, "fix": fix} for what, fix in problems]}
    return {"lines": lines, "json": found}


def _problems(environment: dict[str, str]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    if sys.version_info < MIN_PYTHON:
        out.append((f"Python {environment['python']}, needed is 3.11 or newer", "make a virtual environment with a newer Python"))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        out.append((f"missing packages: {', '.join(missing)}", "make demo, or in the source folder: pip install -c constraints.txt -e ."))
    cuda = sorted(str(d.metadata["Name"]) for d in metadata.distributions() if str(d.metadata["Name"]).lower().startswith("nvidia-"))
    if cuda and not Path("/dev/nvidia0").exists():
        out.append((f"torch is the CUDA build (brings {cuda[0]} and {len(cuda) - 1} more), but there is no NVIDIA GPU here", CPU_TORCH))
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    if free_gib < MIN_FREE_GIB:
        out.append(
            (
                f"{free_gib:.1f} GiB free on the disk of this folder; a run needs about {MIN_FREE_GIB:g}",
                "free some space, or --run-dir on another disk",
            )
        )
    memory = environment.get("memory_gib")
    if memory is not None and float(memory) < MIN_MEMORY_GIB:
        out.append((f"{memory} GiB of memory; even the smallest model wants {MIN_MEMORY_GIB:g}", "use a machine with more memory"))
    if not _models_here():
        out.append(("no model is here yet", "luthier models pull smollm2-135m"))
    return out


def _device() -> str:
    """What `model.device: auto` would take here."""
    try:
        from luthier.kernels.device import choose_device, device_words

        return device_words(choose_device("auto"))
    except (ImportError, OSError, RuntimeError) as error:  # no torch, or one that does not fit this machine: named below
        return f"torch cannot say: {type(error).__name__}"


def _llama() -> str:
    """What reads exported GGUF files a second time and answers with --gguf."""
    try:
        from luthier.generate.llama_file import find_llama_python

        return find_llama_python() or "none; exports do without a second reading (pip install llama-cpp-python)"
    except (ImportError, OSError) as error:  # no torch: named below
        return f"cannot say: {type(error).__name__}"
    except ConfigError as error:
        return f"{error.where}: {error.message}"


def _models_here() -> list[str]:
    from luthier.models.catalogue import cached_folder, is_complete, list_models

    return [entry.name for entry in list_models() if is_complete(cached_folder(entry))]


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    add_command(app, "doctor", doctor)
