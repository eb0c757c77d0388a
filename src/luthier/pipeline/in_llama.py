"""A GGUF file answered from by llama.cpp, in place of the model it was exported from."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from luthier.core.console import note
from luthier.core.errors import ConfigError, LuthierError, MissingExtraError, ModelError
from luthier.core.hashing import digest, sha256_file
from luthier.generate.llama_engine import LlamaEngine
from luthier.generate.llama_file import VARIABLE, LlamaFile, find_llama_python, open_in_llama, tokenizer_checks
from luthier.models.load import inspect_folder
from luthier.models.tokenizer import open_tokenizer
from luthier.pipeline.record import read_exports
from luthier.store.layout import RunFolder
from luthier.tokens.template import ChatEncoder, open_chat

MAX_CONTEXT = 8192  # tokens of one text: llama.cpp takes the memory for all of them at once
_PROBE = "Wire 1,250.50 € to Zoë's account — the café's!\n\n  (IBAN: DE02 1203 0000 0000 2020 51)"


@dataclass(frozen=True, slots=True, kw_only=True)
class InLlama:
    """A GGUF file that is to answer for `target`, a run, an adapter or a model, until `until` ends."""

    python: str  # the one that has llama.cpp
    gguf: Path
    sha256: str
    stamp: tuple[int, int]  # size and time of change when it was digested
    target: str
    num_rows: int  # texts beside each other
    until: ExitStack

    def open(self, tokenizer: Path, name: str) -> tuple[LlamaEngine, str]:
        """The engine, its voice called `name`, and the digest of the weights and of the program that computes with them.

        `tokenizer`: the folder of the model the file was made of. Raises ModelError.
        """
        encoder, context = open_chat(open_tokenizer(tokenizer)), min(inspect_folder(tokenizer).context, MAX_CONTEXT)
        engine = LlamaEngine(lambda: self._open_file(encoder, context), encoder, name=name, context=context, num_rows=self.num_rows)
        self.until.callback(engine.close)
        return engine, digest([self.sha256, engine.program])

    def _open_file(self, encoder: ChatEncoder, context: int) -> LlamaFile:
        if _stamp(self.gguf) != self.stamp:  # opened again after llama.cpp has ended
            raise ModelError("has changed since it was opened", where=self.gguf.name, fix="start again")
        fix = f"{'a smaller --batch, or ' if self.num_rows > 1 else ''}leave --gguf out: Luthier's own engine answers then"
        llama = open_in_llama(self.python, self.gguf, num_positions=context, num_rows=self.num_rows, fix=fix)
        try:
            different = [what for what, is_same in tokenizer_checks(llama, encoder, [_PROBE]).items() if not is_same]
            if different:
                raise ModelError(
                    f"is of another model than {self.target}: its {' and its '.join(different)} differ{'s' if len(different) == 1 else ''}",
                    where=self.gguf.name,
                    fix=_how_to_export(self.target),
                )
        except BaseException:
            llama.close()
            raise
        return llama


def find_in_llama(gguf: Path, target: str, until: ExitStack, *, num_rows: int) -> InLlama:
    """The file and the llama.cpp to open it with. Says so where it is no export of this run that passed its gate.

    Raises ConfigError without such a file, MissingExtraError without llama.cpp.
    """
    if gguf.is_dir():
        inside = sorted(gguf.glob("*.gguf"))
        fix = f"--gguf {shlex.quote(str(inside[0]))}" if inside else _how_to_export(target)
        raise ConfigError("is a folder, expected a GGUF file", where=f"--gguf {gguf}", fix=fix)
    if not gguf.is_file():
        raise ConfigError("there is no such file", where=f"--gguf {gguf}", fix=_how_to_export(target))
    python = find_llama_python()
    if python is None:
        fix = f"pip install llama-cpp-python, or name a Python that has it: export {VARIABLE}=/path/to/python"
        raise MissingExtraError("there is no llama.cpp here", where="--gguf", fix=fix)
    stamp = _stamp(gguf)
    found = InLlama(python=python, gguf=gguf, sha256=sha256_file(gguf), stamp=stamp, target=target, num_rows=num_rows, until=until)
    if not _passed_gate(found):
        note(f"{gguf.name} is no export of {target} that passed its gate: its answers may be others than the tested model's")
    return found


def _stamp(path: Path) -> tuple[int, int]:
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_size, about.st_mtime_ns


def _how_to_export(target: str) -> str:
    """The remedy: only runs are exported."""
    run = shlex.quote(target) if RunFolder(Path(target)).results.is_file() else "RUN"
    return f"luthier export {run} --to gguf --type Q8_0 --out DIR, then --gguf DIR/NAME.gguf"


def _passed_gate(found: InLlama) -> bool:
    """Whether the run remembers the file as one that it handed over."""
    try:
        exports = read_exports(RunFolder(Path(found.target)).exports)
    except LuthierError:
        return False
    return any(found.sha256 in (*export.sha256.values(), *export.earlier_sha256) for export in exports)
