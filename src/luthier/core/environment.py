"""What a run ran on, for the report: no host name, no user name, no paths, nothing of the process environment."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "luthier",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "numpy",
    "scipy",
    "pydantic",
    "bm25s",
    "gguf",
)
CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "sve",
)  # they decide which dtype is fast
GIT_TIMEOUT_S = 5


def describe_environment() -> dict[str, str]:
    """Names and values in display order. What cannot be found out is left out. Never imports the packages it names."""
    model, flags = _cpu()
    memory_gib = _memory_gib()
    out = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": model,
        "cpu_flags": " ".join(flag for flag in CPU_FLAGS if flag in flags),
        "cores": str(_usable_cores()),
        "memory_gib": "" if memory_gib is None else f"{memory_gib:.1f}",
        "git_revision": git_revision() or "",
    }
    out.update({name: version for name in PACKAGES if (version := _version(name))})
    return {name: value for name, value in out.items() if value}


@functools.cache
def git_revision() -> str | None:
    """Commit of the source tree this package is run from, "+" appended when files differ from it; None when installed otherwise."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "src" / "luthier").is_dir():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if changed.strip() else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True, timeout=GIT_TIMEOUT_S).stdout  # noqa: S603


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> tuple[str, frozenset[str]]:
    """Model name and feature flags; Linux says both, other systems at most the name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    return read_cpuinfo(text)


def read_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """The same, of what /proc/cpuinfo holds.

    Virtual machines often give a name without a number, the same for several generations: then it is told by family and model too.
    """
    model = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, flags=re.MULTILINE)
    name = model[1].strip() if model else platform.machine()
    numbers = [re.search(rf"^{key}\s*:\s*(\d+)$", text, flags=re.MULTILINE) for key in ("cpu family", "model")]
    if not re.search(r"\d", name) and all(numbers):
        name += ", family {}, model {}".format(*(number[1] for number in numbers if number is not None))
    return name, frozenset(flags[1].split() if flags else ())


def _usable_cores() -> int:
    """Cores this process may use, which is fewer than the machine has inside most containers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    """Memory of the machine, or of the container where that is less."""
    sizes: list[int] = []
    if hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            sizes.append(int(limit.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue  # no such controller, or "max"
    return min(sizes) / 2**30 if sizes else None
