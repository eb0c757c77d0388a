"""The C++ files beside this one, made into a library by this machine's own compiler, once, and opened.

Why the user's compiler: the same lines then use whatever this processor has (AVX2, AVX-512, AMX, NEON), a few seconds once instead of a
wheel for each kind of machine. Without a compiler, or with LUTHIER_KERNELS=plain, `fused.py`, `narrow.py` and `wide.py` compute the same in
plain torch, slower.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from luthier.core.folders import cache_root
from luthier.core.hashing import sha256_text

NAMES = ("fused", "tiles", "narrow", "wide", "few", "few_layer", "adapted_layer", "step_attention", "tiled_attention")
SOURCES = tuple(Path(__file__).with_name(f"{name}.cpp") for name in NAMES)
HEADER_NAMES = ("memory", "sixteen", "pairs", "tiles", "product", "together", "wide", "narrow")
HEADERS = tuple(Path(__file__).with_name(f"{name}.h") for name in HEADER_NAMES)
# Sums keep the order they are written in, and NaN and infinity their meaning: no -ffast-math.
FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC",
    "-w",
)  # fmt: skip
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 120
SWITCH = "LUTHIER_KERNELS"
# Its values, and the flags each adds: less of this processor, to test what others compute.
SWITCHED = {
    "": (),
    "plain": (),
    "no-amx": ("-mno-amx-tile",),
    "no-avx512": ("-mno-amx-tile", "-mno-avx512f"),
    "no-avx2": ("-mno-amx-tile", "-mno-avx2"),
}
SLOWER = "plain torch, up to 2.5 times as slow"

Function = Callable[..., None]
TILES = ("", "AMX", "AVX-512 BF16", "AVX2")  # what `luthier_tiles` answers
_P, _N, _F, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
SIGNATURES: dict[str, tuple[type, ...]] = {
    "rms_norm": (_P, _P, _P, _P, _N, _N, _F, _I),
    "rms_norm_backward": (_P, _P, _P, _P, _P, _P, _N, _N, _I),
    "rotate": (_P, _P, _P, _P, _N, _N, _N, _N, _F, _I),
    "swiglu": (_P, _P, _P, _N, _N, _N, _I),
    "swiglu_backward": (_P, _P, _P, _P, _P, _N, _N, _I),
    "softmax": (_P, _P, _N, _N, _N, _N, _F, _I),
    "softmax_backward": (_P, _P, _N, _N, _F, _I),
    "cross_entropy": (_P, _P, _P, _N, _N, _I, _I),
    "add_to_flat": (_P, _P, _N, _P, _I),
    "copy_from_flat": (_P, _P, _N, _P, _I),
    "adamw": (_P, _P, _N, _P, _P, _P, _P, _P, _I),
}
_TREE = (_P, _P, _N, _N, _N, _N, _N, _F)
_PRODUCT = (_P, _N, _N, _N, _P, _P, _N, _P, _N, _I)
TILES_SIGNATURES: dict[str, tuple[type, ...]] = {
    "narrow": (_P, _N, _N, _N, _P, _N, _N, _N, _F, _P, _N, _I),
    "outer": (_P, _N, _P, _N, _P, _N, _N, _N, _P, _P, _N, _N, _I),
    "wide": _PRODUCT,
    "few": _PRODUCT,
    "adapted_in": (_P, _P, _F, _P, _N, _P, _P, _N, _P, _P, _P, _I),
    "adapted_in_backward": (_P, _P, _P, _N, _P, _P, _N, _P, _P, _P, _P, _P, _I),
    "adapted_out": (_P, _P, _F, _P, _P, _N, _P, _P, _I),
    "adapted_out_backward": (_P, _P, _P, _N, _P, _P, _P, _P, _I),
    "adapted_layer": (_P, _P, _P, _N, _P, _P, _P, _I),
    "adapted_layer_backward": (_P, _P, _P, _N, _P, _P, _P, _P, _I),
    "layer_in": (_P, _P, _N, _F, _P, _P, _N, _N, _P, _I),
    "layer_out": (_P, _P, _P, _N, _F, _P, _I),
    "few_layers": (_P, _N, _P, _N, _F, _P, _P, _P, _N, _N, _P, _N, _N, _N, _F, _P, _I),
    "tree_attention": (*_TREE, _P, _I),
    "leaf_attention": (_P, _P, _N, _P, _N, _N, _N, _N, _F, _P, _I),
    "tree_attention_backward": (*_TREE, _P, _P, _I),
    "step_attention": (_P, _P, _P, _N, _P, _P, _P, _N, _N, _N, _N, _N, _F, _P, _P, _I),
}


@dataclass(frozen=True, slots=True)
class Library:
    """The functions for bf16 and for fp32 by name, or why there are none."""

    bf16: Mapping[str, Function]
    f32: Mapping[str, Function]
    gather: Function | None
    tiles: Mapping[str, Function]  # products, on processors that have what `TILES` says
    words: str  # for `luthier doctor` and records

    def __bool__(self) -> bool:
        return self.gather is not None


@cache
def library() -> Library:
    """Compile if need be, and open. Never raises: a reason stands in `words`."""
    asked = os.environ.get(SWITCH, "")
    if asked == "plain":
        return _none(f"plain torch, as {SWITCH} asks")
    if asked not in SWITCHED:
        return _none(f"{SLOWER}: {SWITCH} is {asked!r}, not one of {', '.join(filter(None, SWITCHED))}")
    if sys.platform != "linux":
        return _none("plain torch: compiled on Linux only")
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return _none(f"{SLOWER}: no C++ compiler ({', '.join(COMPILERS)}) is installed")
    try:
        path = _built(compiler, (*FLAGS, *SWITCHED[asked]))
        opened = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return _none(f"{SLOWER}: {Path(compiler).name} could not make the compiled ones ({type(error).__name__})")
    words, tiles = f"compiled by {Path(compiler).name}", dict[str, Function]()
    if where := TILES[opened.luthier_tiles()]:
        words += f", products on {where}"
        tiles = {name: _function(opened, f"luthier_{name}", types) for name, types in TILES_SIGNATURES.items()}
    gather = _function(opened, "luthier_gather", (_P, _P, _P, _N, _N, _I))
    return Library(_functions(opened, "bf16"), _functions(opened, "f32"), gather, tiles, words)


def _none(why: str) -> Library:
    return Library({}, {}, None, {}, why)


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    """The library in the user's cache, made if it is not there. Its name says what it depends on: source, flags, compiler, processor."""
    about = Path(compiler).resolve().stat()
    parts = (
        *(source.read_text(encoding="utf-8") for source in (*SOURCES, *HEADERS)),
        *flags,
        str(Path(compiler).resolve()),
        str(about.st_size),
        str(about.st_mtime_ns),
        _processor(),
    )
    path = cache_root() / "kernels" / f"fused-{sha256_text(chr(0).join(parts))[:16]}.so"
    if path.is_file() and path.stat().st_uid == os.getuid():
        return path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *flags, *map(str, SOURCES), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)  # noqa: S603
        made.replace(path)
    return path


def _processor() -> str:
    """What -march=native looks at: a cache folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _functions(opened: ctypes.CDLL, suffix: str) -> dict[str, Function]:
    return {name: _function(opened, f"luthier_{name}_{suffix}", types) for name, types in SIGNATURES.items()}


def _function(opened: ctypes.CDLL, name: str, types: tuple[type, ...]) -> Function:
    """Raises MemoryError where it is called and memory runs out; what it was to write is then of any value."""
    address = ctypes.c_void_p.in_dll(opened, f"{name}_call").value
    function = ctypes.CFUNCTYPE(ctypes.c_int, *types)(address or 0)
    function.errcheck = _enough  # pyright: ignore[reportAttributeAccessIssue]
    return function


def _enough(is_short: int, function: object, arguments: object) -> None:
    if is_short:
        raise MemoryError("a compiled function had no room for its numbers")
