"""One GGUF file opened by llama.cpp itself and asked line by line, in a process of its own, by a Python that has it.

    python -E llama_child.py FILE.gguf NUM_POSITIONS NUM_ROWS NUM_THREADS

NUM_POSITIONS for each of the NUM_ROWS texts that can be read beside each other. Imports nothing of Luthier: the Python may be another
one. Each line on stdin is one JSON object, each answer on stdout one JSON line, followed by its "bytes" of 32-bit floats. The first line
says what the file is, or why llama.cpp does not open it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MEMORY_BYTES = 8 * 2**30  # beside the file itself
LOG_BYTES = 64 * 2**20  # of what the library says


def main() -> None:
    """Open, describe, answer until the end of input."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the program that asks: it ends what it began, and then this
        signal.signal(number, signal.SIG_IGN)
    sys.path.pop(0)  # the folder of this file is no place for modules
    path, num_positions, num_rows, num_threads = sys.argv[1], *map(int, sys.argv[2:])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _limit(path)
    try:
        program = Program(open_binding(), path, num_positions, num_rows, num_threads)
    except Exception as error:  # a foreign library: whatever it raises is the answer
        _say(out, {"error": f"{type(error).__name__}: {error}"[:500]})
        return
    _say(out, program.about)
    for line in sys.stdin:
        asked = json.loads(line)
        match asked["do"]:
            case "tokenise":
                _say(out, {"ids": program.tokenise(asked["text"])})
            case "spell":
                _say(out, {"text": program.spell(asked["ids"])})
            case "step":
                tokens, rows = program.step(asked["rows"])
                _say(out, {"tokens": tokens, "bytes": len(rows)}, rows)
            case _:
                rows = program.logits(asked["ids"], asked["at"])
                _say(out, {"bytes": len(rows)}, rows)


def _say(out: Any, found: dict[str, Any], more: bytes = b"") -> None:
    out.write(json.dumps(found).encode() + b"\n" + more)
    out.flush()


def _limit(path: str) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LOG_BYTES, LOG_BYTES))
        most = 3 * Path(path).stat().st_size + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, ValueError, OSError):
        pass  # no such limits on this system


class Ctypes:
    """What differs between bindings: arrays, texts, nothing. llama-cpp-python's are of ctypes."""

    def __init__(self, lib: Any) -> None:
        self.lib = lib
        self.nothing: Any = None
        self.about = f"llama-cpp-python {lib.__version__}"

    def integers(self, count: int) -> Any:
        """Room for token ids."""
        return (self.lib.llama_token * count)()

    def letters(self, count: int) -> Any:
        """Room for a text."""
        return ctypes.create_string_buffer(count)

    def text(self, room: Any, count: int) -> bytes:
        """What stands there."""
        return room.raw[:count]

    def whole_text(self, pointer: Any) -> bytes | None:
        """Up to the zero; None for no text."""
        return pointer

    def values(self, pointer: Any, count: int) -> bytes:
        """Floats as bytes."""
        return ctypes.string_at(pointer, 4 * count)


class Cffi:
    """llama-cpp-py-sync's are of cffi."""

    def __init__(self, package: Any, bindings: Any) -> None:
        self.lib, self._ffi = bindings.get_lib(), bindings.get_ffi()
        self.nothing: Any = self._ffi.NULL
        self.about = f"llama-cpp-py-sync {package.__version__}"

    def integers(self, count: int) -> Any:
        """Room for token ids."""
        return self._ffi.new("llama_token[]", count)

    def letters(self, count: int) -> Any:
        """Room for a text."""
        return self._ffi.new("char[]", count)

    def text(self, room: Any, count: int) -> bytes:
        """What stands there."""
        return self._ffi.buffer(room, count)[:]

    def whole_text(self, pointer: Any) -> bytes | None:
        """Up to the zero; None for no text."""
        return None if pointer == self._ffi.NULL else self._ffi.string(pointer)

    def values(self, pointer: Any, count: int) -> bytes:
        """Floats as bytes."""
        return self._ffi.buffer(pointer, 4 * count)[:]


def open_binding() -> Ctypes | Cffi:
    """The one that is there. Raises ImportError."""
    if find_spec("llama_cpp") is not None:
        import llama_cpp  # pyright: ignore[reportMissingImports]

        return Ctypes(llama_cpp)
    import llama_cpp_py_sync  # pyright: ignore[reportMissingImports]
    from llama_cpp_py_sync import _cffi_bindings  # pyright: ignore[reportMissingImports]

    return Cffi(llama_cpp_py_sync, _cffi_bindings)


class Program:
    """One open file. Raises RuntimeError for one that llama.cpp does not open, or a step it does not compute."""

    def __init__(self, binding: Ctypes | Cffi, path: str, num_positions: int, num_rows: int, num_threads: int) -> None:
        self._binding, self._lib = binding, binding.lib
        lib = self._lib
        lib.llama_backend_init()
        asked = lib.llama_model_default_params()
        asked.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(path.encode(), asked)
        if not self._model:
            raise RuntimeError("llama.cpp does not open the file")
        more = lib.llama_context_default_params()
        self._num_positions, self._most = num_positions, num_positions + num_rows  # of one step
        more.n_ctx, more.n_seq_max, more.n_batch = num_positions * num_rows, num_rows, self._most
        more.n_threads, more.n_threads_batch = num_threads, num_threads
        self._context = lib.llama_init_from_model(self._model, more)
        if not self._context:
            raise RuntimeError(f"llama.cpp opens the file but makes no context of {num_rows} times {num_positions} positions for it")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._num_tokens = int(lib.llama_vocab_n_tokens(self._vocab))
        self._batch = lib.llama_batch_init(self._most, 0, 1)
        self._greedy = lib.llama_sampler_init_greedy()
        template = binding.whole_text(lib.llama_model_chat_template(self._model, binding.nothing))
        self.about = {
            "program": f"llama.cpp by {binding.about}",
            "num_tokens": self._num_tokens,
            "stop_ids": [i for i in range(self._num_tokens) if lib.llama_vocab_is_eog(self._vocab, i)],
            "adds_bos": bool(lib.llama_vocab_get_add_bos(self._vocab)),
            "template": None if template is None else template.decode("utf-8", "replace"),
        }

    def tokenise(self, text: str) -> list[int]:
        """Control tokens spelled in the text are control tokens, as llama-server reads a prompt; nothing is put in front."""
        spelled = text.encode()
        room = len(spelled) + 8
        ids = self._binding.integers(room)
        count = self._lib.llama_tokenize(self._vocab, spelled, len(spelled), ids, room, False, True)
        if count < 0:
            raise RuntimeError("llama.cpp does not tokenise the text")
        return [int(ids[i]) for i in range(count)]

    def spell(self, ids: list[int]) -> str:
        """The text of an answer, control tokens left out."""
        tokens = self._binding.integers(max(1, len(ids)))
        for i, token in enumerate(ids):
            tokens[i] = token
        size = 256 * (len(ids) + 1)
        room = self._binding.letters(size)
        count = self._lib.llama_detokenize(self._vocab, tokens, len(ids), room, size, False, False)
        if count < 0:
            raise RuntimeError("llama.cpp does not spell the tokens")
        return self._binding.text(room, count).decode("utf-8", "replace")

    def logits(self, ids: list[int], at: list[int]) -> bytes:
        """Logits behind the tokens at these places, a row each."""
        wanted = set(at)
        self._forget(0, 0)
        self._read([(0, i, token, i in wanted) for i, token in enumerate(ids)])
        return b"".join(self._logits(i) for i in at)

    def step(self, rows: list[tuple[int, int, list[int], str]]) -> tuple[list[int | None], bytes]:
        """Of each row (its number, how much of what it read stays, tokens to read behind that) what it wants to know of its last token.

        "token": the likeliest one behind it (of several as good the first), "logits": those of all tokens, "nothing".
        """
        places: list[tuple[int, int, int, bool]] = []
        for row, kept, ids, wants in rows:
            self._forget(row, kept)
            places += [(row, kept + i, token, wants != "nothing" and i == len(ids) - 1) for i, token in enumerate(ids)]
        self._read(places)
        tokens: list[int | None] = []
        logits: list[bytes] = []
        last = -1
        for _, _, ids, wants in rows:
            last += len(ids)
            tokens.append(int(self._lib.llama_sampler_sample(self._greedy, self._context, last)) if wants == "token" else None)
            if wants == "logits":
                logits.append(self._logits(last))
        return tokens, b"".join(logits)

    def _logits(self, place: int) -> bytes:
        return self._binding.values(self._lib.llama_get_logits_ith(self._context, place), self._num_tokens)

    def _forget(self, row: int, kept: int) -> None:
        if not self._lib.llama_memory_seq_rm(self._lib.llama_get_memory(self._context), row, kept, -1):
            raise RuntimeError("llama.cpp does not forget a part of a text with this kind of model")

    def _read(self, places: list[tuple[int, int, int, bool]]) -> None:
        if len(places) > self._most or any(position >= self._num_positions for _, position, _, _ in places):
            raise RuntimeError("longer than was said at the start")
        batch = self._batch
        batch.n_tokens = len(places)
        for i, (row, position, token, is_wanted) in enumerate(places):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = row, int(is_wanted)
        code = self._lib.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp does not compute the step (code {code})")


if __name__ == "__main__":
    main()
