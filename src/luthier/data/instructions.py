"""Instructions that another tool, or a person, has written: a text file, or the JSON in which DSPy saves a program. DSPy is not needed.

Such a file is untrusted: its instruction becomes part of a prompt, is shown escaped, and is nothing else. No pickle is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from luthier.core.errors import InputError

MAX_BYTES = 4 * 2**20
MAX_CHARS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenInstruction:
    """One instruction, whole. `num_demos`: solved examples in the same file, which are not used."""

    name: str
    text: str
    num_demos: int = 0


def read_instruction(path: Path) -> GivenInstruction:
    """The instruction of a file. Raises InputError for one that holds none, or several."""
    where = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 (byte {error.start})"
        raise InputError(f"cannot be read: {reason}", where=where, fix="give a text file, or the JSON that DSPy saved") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"has more than {MAX_BYTES:,} bytes", where=where, fix="give the instruction alone, as a text file")
    num_demos = 0
    if path.suffix.lower() == ".json":
        text, num_demos = _of_program(text, where)
    if not text.strip():
        raise InputError("the instruction is empty", where=where, fix="give a file that holds one")
    if len(text.strip()) > MAX_CHARS:
        fix = "give a shorter one"
        raise InputError(f"the instruction has {len(text.strip()):,} characters, at most {MAX_CHARS:,} are read", where=where, fix=fix)
    return GivenInstruction(name=path.name, text=text.strip(), num_demos=num_demos)


def _of_program(text: str, where: str) -> tuple[str, int]:
    """Instruction and number of examples of the one predictor of a program that DSPy saved."""
    paste = "paste the instruction into a text file"
    try:
        state: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is no JSON ({type(error).__name__})", where=where, fix=paste) from error
    found = list(_predictors(state))
    if not found:
        problem = "no predictor with an instruction; expected what DSPy's program.save('x.json') writes"
        raise InputError(problem, where=where, fix=paste)
    if len(found) > 1:
        names = ", ".join(name for name, _, _ in found)
        problem = f"{len(found)} predictors ({names[:200]}); a prompt of one request has one instruction"
        raise InputError(problem, where=where, fix=paste)
    _, instruction, num_demos = found[0]
    return instruction, num_demos


def _predictors(state: object) -> Iterator[tuple[str, str, int]]:
    """Name, instruction and number of examples of each predictor: of DSPy 2.5 and later, and as it was before."""
    if not isinstance(state, Mapping):
        return
    programs = cast("Mapping[str, object]", state)
    for name, value in {"self": state, **programs}.items():
        if not isinstance(value, Mapping):
            continue
        predictor = cast("Mapping[str, object]", value)
        signature, demos = predictor.get("signature"), predictor.get("demos")
        instruction = cast("Mapping[str, object]", signature).get("instructions") if isinstance(signature, Mapping) else None
        instruction = predictor.get("signature_instructions") if instruction is None else instruction
        if isinstance(instruction, str):
            yield str(name), instruction, len(cast("list[object]", demos)) if isinstance(demos, list) else 0
