"""llama.cpp as a second reader of a GGUF file, where there is one: asked over a pipe, so that no file can end or fill this process.

It is found, never installed: llama-cpp-python or llama-cpp-py-sync beside Luthier, or in the Python that LUTHIER_LLAMA_PYTHON
names; "none" leaves it out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from luthier.core.errors import ConfigError, ModelError

VARIABLE = "LUTHIER_LLAMA_PYTHON"
PACKAGES = ("llama_cpp", "llama_cpp_py_sync")
WALL_S = 300.0  # for one answer; to open a file too
MAX_LINE = 2**24
_CHILD = Path(__file__).with_name("llama_child.py")
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")  # no keys of the user
_FIX = f"repair that llama.cpp, or leave it out: {VARIABLE}=none"


def find_llama_python() -> str | None:
    """The Python that has llama.cpp, or None. Raises ConfigError for a variable that names none."""
    named = os.environ.get(VARIABLE, "")
    if named == "none":
        return None
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise ConfigError(f"found {named!r}, expected a Python that has llama-cpp-python", where=VARIABLE, fix=f"unset {VARIABLE}")
        return named
    return sys.executable if any(find_spec(name) is not None for name in PACKAGES) else None


class LlamaFile:
    """A GGUF file open in llama.cpp. Every method raises ModelError when the process ends, hangs or refuses."""

    def __init__(self, process: subprocess.Popen[bytes], log: Any, where: str) -> None:
        self._process, self._log, self._where = process, log, where
        self._is_late = False
        about = self._answer()
        self.program = str(about["program"])
        self.stop_ids = frozenset(int(index) for index in about["stop_ids"])
        self.adds_bos = bool(about["adds_bos"])
        self.chat_template: str | None = about["template"]
        self._num_tokens = int(about["num_tokens"])

    def tokenise(self, text: str) -> list[int]:
        """Ids of a text whose control tokens are meant, nothing put in front."""
        return self._ask({"do": "tokenise", "text": text})["ids"]

    def spell(self, ids: Sequence[int]) -> str:
        """The text of tokens, control tokens left out."""
        return self._ask({"do": "spell", "ids": list(ids)})["text"]

    def next(self, ids: Sequence[int], *, is_first: bool, allowed: Sequence[int] | None) -> int:
        """The likeliest token behind `ids`; unless `is_first`, what was read before stays in front of them."""
        found = self._ask({"do": "next", "ids": list(ids), "is_first": is_first, "allowed": None if allowed is None else list(allowed)})
        return int(found["id"])

    def logits(self, ids: Sequence[int], at: Sequence[int]) -> Tensor:
        """Logits behind the tokens at these places, [places, tokens]."""
        size = self._ask({"do": "logits", "ids": list(ids), "at": list(at)})["bytes"]
        if size != len(at) * self._num_tokens * 4:
            raise self._broken("sent other values than were asked for")
        with self._watched():
            rows = cast("Any", self._process.stdout).read(size)
        if len(rows) != size:
            raise self._broken(self._end())
        return torch.frombuffer(bytearray(rows), dtype=torch.float32).reshape(len(at), self._num_tokens)

    def _ask(self, asked: dict[str, object]) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(asked).encode() + b"\n")
            stdin.flush()
        except OSError as error:
            raise self._broken(self._end()) from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        with self._watched():
            line = stdout.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise self._broken(self._end())
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise self._broken(str(found["error"]))
        return found

    @contextmanager
    def _watched(self) -> Generator[None]:
        def give_up() -> None:
            self._is_late = True
            self._process.kill()

        watch = threading.Timer(WALL_S, give_up)
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def _end(self) -> str:
        """How the process ended, and the last it said."""
        if self._is_late:
            return f"did not answer within {WALL_S:.0f} s"
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        said = [line for line in self._log.read()[-4000:].decode("utf-8", "replace").splitlines() if line.strip()][-1:]
        return f"ended with {f'signal {-code}' if code < 0 else f'code {code}'}{': ' + said[0][:300] if said else ''}"

    def _broken(self, what: str) -> ModelError:
        return ModelError(f"llama.cpp: {what}", where=self._where, fix=_FIX)


@contextmanager
def open_in_llama(python: str, gguf: Path, *, num_positions: int) -> Generator[LlamaFile]:
    """The file, open in llama.cpp for as long as the block lasts. Raises ModelError."""
    command = [python, "-E", str(_CHILD), str(gguf.resolve()), str(num_positions), str(torch.get_num_threads())]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 (a program the user named, no shell)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=gguf.parent,
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
        )
        try:
            yield LlamaFile(process, log, gguf.name)
        finally:
            process.kill()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not yet sent to a process that has ended
                    cast("Any", stream).close()
            process.wait()
