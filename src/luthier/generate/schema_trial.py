"""Whether a JSON schema from outside can be used, found in a child process: the engine's thread must not be the one to hang on it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from luthier.core.errors import InputError

WALL_S = 6.0  # the limit that counts is 2 s of processor time inside
_CHILD = Path(__file__).with_name("schema_child.py")


def try_schema(schema: str) -> None:
    """Raise InputError for a schema that is none, or is too much work. The same one is tried once."""
    reason = _reason(schema)
    if reason:
        raise InputError(f"cannot be used: {reason}", where="json_schema", fix="a smaller one, without allOf")


@lru_cache(maxsize=256)
def _reason(schema: str) -> str:
    too_much = "it takes too long to read"
    try:
        done = subprocess.run(  # noqa: S603 (fixed program, no shell)
            [sys.executable, "-I", str(_CHILD)], input=schema.encode(), capture_output=True, timeout=WALL_S, check=False
        )
    except subprocess.TimeoutExpired:
        return too_much
    if done.returncode != 0:
        return too_much  # ended at its limit of time or memory
    found = json.loads(done.stdout)
    return " ".join(str(found["refused"]).split())[:300]
