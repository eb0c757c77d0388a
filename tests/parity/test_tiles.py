"""Tiles in memory, for processors without AMX: the parity tests of all that uses tiles, made once more without AMX where there is AMX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.kernels import compiled

HERE = Path(__file__).parent
USERS = ("wide", "narrow", "adapted_layer", "few_layer", "tiled_attention")


@pytest.mark.skipif("AMX" not in compiled.library().words, reason=f"the tests themselves use no AMX here: {compiled.library().words}")
@pytest.mark.timeout(600)
def test_without_amx_all_is_as_exact() -> None:
    environment = {**os.environ, compiled.SWITCH: "no-amx"}
    code = "from luthier.kernels.compiled import library; print(library().words)"
    words = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert words.strip().endswith("products on AVX-512 BF16")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / f"test_{name}.py") for name in USERS)],
        env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-4000:]
