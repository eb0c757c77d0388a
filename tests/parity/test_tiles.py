"""Tiles of every kind that this processor can compute: the parity tests of all that uses tiles, made once more with less of it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.kernels import compiled

HERE = Path(__file__).parent
USERS = ("fused", "wide", "narrow", "adapted_layer", "few_layer", "tiled_attention")
WORDS = compiled.library().words


@pytest.mark.parametrize(
    ("switch", "kind", "faster"), [("no-amx", "AVX-512 BF16", ("AMX",)), ("no-avx512", "AVX2", ("AMX", "AVX-512 BF16"))]
)
@pytest.mark.timeout(600)
def test_with_less_of_the_processor_all_is_as_exact(switch: str, kind: str, faster: tuple[str, ...]) -> None:
    if not WORDS.endswith(faster):
        pytest.skip(f"this processor has none of {', '.join(faster)} to do without: {WORDS}")
    assert _words(switch).endswith(f"products on {kind}")
    _all_pass(switch, USERS)


@pytest.mark.skipif(platform.machine() != "x86_64" or not compiled.library(), reason=f"no compiled functions of x86-64 here: {WORDS}")
@pytest.mark.timeout(600)
def test_without_wide_registers_small_operations_are_as_exact() -> None:
    assert "products on" not in _words("no-avx2")
    _all_pass("no-avx2", ("fused",))


def _words(switch: str) -> str:
    code = "from luthier.kernels.compiled import library; print(library().words)"
    environment = {**os.environ, compiled.SWITCH: switch}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout.strip()


def _all_pass(switch: str, names: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / f"test_{name}.py") for name in names)],
        env={**os.environ, compiled.SWITCH: switch}, cwd=HERE.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-4000:]
