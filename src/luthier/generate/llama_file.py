"""A GGUF file open in llama.cpp, where there is one: asked over a pipe, so that no file can end or fill this process.

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
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor

from luthier.core.errors import ConfigError, ModelError
from luthier.tokens.template import ChatEncoder

VARIABLE = "LUTHIER_LLAMA_PYTHON"
PACKAGES = ("llama_cpp", "llama_cpp_py_sync")
WALL_S = 300.0  # for one answer; to open a file too
CHECK_S = 0.5
MAX_LINE = 2**24
_CHILD = Path(__file__).with_name("llama_child.py")
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
_NO_ANSWER = "said something that is no answer"
_FIX = f"repair that llama.cpp, or leave it out: {VARIABLE}=none"


T = TypeVar("T")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaRow:
    """A text being read: `ids` behind the first `kept` tokens of what row `number` has read, and what is wanted of the last of them."""

    number: int
    kept: int
    ids: Sequence[int]
    wants: Literal["nothing", "token", "logits"]


class LlamaFile:
    """A GGUF file open in llama.cpp. Every method raises ModelError when the process ends, hangs or refuses."""

    def __init__(self, process: subprocess.Popen[bytes], log: Any, *, where: str, fix: str) -> None:
        self._process, self._log, self._where, self._fix = process, log, where, fix
        self._is_late = False
        self._deadline: float | None = None
        self._is_closed = threading.Event()
        self._turn = threading.Lock()
        threading.Thread(target=self._watch, name="llama.cpp", daemon=True).start()
        try:
            with self._watched():
                about = self._answer()
            self.program = str(about["program"])
            self.stop_ids = frozenset(int(index) for index in about["stop_ids"])
            self.adds_bos = bool(about["adds_bos"])
            self.chat_template: str | None = about["template"]
            self.num_tokens = int(about["num_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            raise self._broken(_NO_ANSWER) from error
        except BaseException:
            self.close()
            raise

    def tokenise(self, text: str) -> list[int]:
        """Ids of a text whose control tokens are meant, nothing put in front."""
        return self._ask({"do": "tokenise", "text": text}, lambda found: [self._token(index) for index in found["ids"]])

    def spell(self, ids: Sequence[int]) -> str:
        """The text of tokens, control tokens left out."""
        return self._ask({"do": "spell", "ids": list(ids)}, lambda found: str(found["text"]))

    def step(self, rows: Sequence[LlamaRow]) -> list[int | Tensor | None]:
        """All rows read on; of each what it wants: None, the likeliest next token (of several as good the first), or logits [tokens]."""

        def read(found: Mapping[str, Any]) -> list[int | Tensor | None]:
            logits = iter(self._values(found, sum(row.wants == "logits" for row in rows)))
            told = {"nothing": lambda _: None, "token": self._token, "logits": lambda _: next(logits)}
            return [told[row.wants](token) for row, token in zip(rows, found["tokens"], strict=True)]

        return self._ask({"do": "step", "rows": [(row.number, row.kept, list(row.ids), row.wants) for row in rows]}, read)

    def logits(self, ids: Sequence[int], at: Sequence[int]) -> Tensor:
        """Logits behind the tokens at these places, [places, tokens]."""
        return self._ask({"do": "logits", "ids": list(ids), "at": list(at)}, lambda found: self._values(found, len(at)))

    def close(self) -> None:
        """End the process, also while another thread waits for an answer of it."""
        self._is_closed.set()
        self._process.kill()
        with self._turn:
            for stream in (self._process.stdin, self._process.stdout):
                with suppress(OSError):  # what was not yet sent to a process that has ended
                    cast("Any", stream).close()
            self._process.wait()
            self._log.close()

    def _token(self, index: object) -> int:
        if not isinstance(index, int) or not 0 <= index < self.num_tokens:
            raise ValueError(index)
        return index

    def _values(self, found: Mapping[str, Any], num_rows: int) -> Tensor:
        """The rows of floats behind an answer."""
        size = 4 * num_rows * self.num_tokens
        if found["bytes"] != size:
            raise ValueError(size)
        rows = cast("Any", self._process.stdout).read(size) if size else b""
        if len(rows) != size:
            raise self._broken(self._end())
        return torch.frombuffer(bytearray(rows), dtype=torch.float32).reshape(num_rows, self.num_tokens) if size else torch.empty(0)

    def _ask(self, asked: dict[str, object], read: Callable[[Mapping[str, Any]], T]) -> T:
        """An answer, read whole. Whatever else comes than what was asked for is an end of the talk."""
        stdin = self._process.stdin
        assert stdin is not None
        with self._turn, self._watched():
            if self._is_closed.is_set():
                raise self._broken("was ended")
            try:
                stdin.write(json.dumps(asked).encode() + b"\n")
                stdin.flush()
            except OSError as error:
                raise self._broken(self._end()) from error
            try:
                return read(self._answer())
            except (KeyError, TypeError, ValueError) as error:
                raise self._broken(_NO_ANSWER) from error

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise self._broken(self._end())
        found = json.loads(line)
        if not isinstance(found, dict):
            raise TypeError(found)
        if "error" in found:
            raise self._broken(str(found["error"]))
        return cast("dict[str, Any]", found)

    @contextmanager
    def _watched(self) -> Generator[None]:
        self._deadline = time.monotonic() + WALL_S
        try:
            yield
        finally:
            self._deadline = None

    def _watch(self) -> None:
        """End a process that does not answer. One thread for all answers: starting one for each takes as long as half a token."""
        while not self._is_closed.wait(CHECK_S):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self._is_late = True
                self._process.kill()

    def _end(self) -> str:
        """How the process ended, and the last it said."""
        if self._is_late:
            return f"did not answer within {WALL_S:.0f} s"
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        said = [line for line in self._log.read(4000).decode("utf-8", "replace").splitlines() if line.strip()][-1:]
        return f"ended with {f'signal {-code}' if code < 0 else f'code {code}'}{': ' + said[0][:300] if said else ''}"

    def _broken(self, what: str) -> ModelError:
        return ModelError(f"llama.cpp: {what}", where=self._where, fix=self._fix)


def open_in_llama(python: str, gguf: Path, *, num_positions: int, num_rows: int = 1, fix: str = _FIX) -> LlamaFile:
    """The file, open in llama.cpp until it is closed, with so many positions for each row. Raises ModelError, with `fix` for a remedy."""
    command = [python, "-E", str(_CHILD), str(gguf.resolve()), str(num_positions), str(num_rows), str(torch.get_num_threads())]
    log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the file it belongs to)
    process = subprocess.Popen(  # noqa: S603 (a program the user named, no shell)
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=gguf.resolve().anchor,  # the folder of the file may hold libraries, and some loaders look where they are
        env=_environment(),
    )
    return LlamaFile(process, log, where=gguf.name, fix=fix)


def _environment() -> dict[str, str]:
    """Few variables, no keys of the user. An empty item of a path of libraries would mean the folder a program stands in."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    if "LD_LIBRARY_PATH" in kept:
        kept["LD_LIBRARY_PATH"] = ":".join(filter(None, kept["LD_LIBRARY_PATH"].split(":")))
    return kept


def tokenizer_checks(llama: LlamaFile, encoder: ChatEncoder, texts: Sequence[str]) -> Mapping[str, bool]:
    """What of the file's tokenizer must be that of `encoder`, whatever the weights. `texts` are read as llama-server reads prompts."""
    tokenizer = encoder.tokenizer
    return {
        "end of turn": encoder.eos_ids <= llama.stop_ids,
        "special tokens": llama.adds_bos == bool(encoder.bos_ids),
        "chat template": llama.chat_template == (tokenizer.get_chat_template() if encoder.is_chat else None),
        "tokens": all(llama.tokenise(text) == tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts),
    }
