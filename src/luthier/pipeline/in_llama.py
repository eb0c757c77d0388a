"""A GGUF file answered from by llama.cpp, in place of the model it was exported from."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from luthier.core.console import note
from luthier.core.errors import ConfigError, LuthierError, MissingExtraError, ModelError
from luthier.core.hashing import digest, sha256_file
from luthier.generate.llama_engine import LlamaEngine
from luthier.generate.llama_file import VARIABLE, LlamaFile, find_llama_python, open_in_llama, tokenizer_checks
from luthier.models.folder import read_json
from luthier.models.load import inspect_folder
from luthier.models.tokenizer import open_tokenizer
from luthier.pipeline.export import MANIFEST
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
    target: str
    num_rows: int  # texts beside each other
    until: ExitStack

    @property
    def fingerprint(self) -> str:
        """Names the weights and the program that computes with them."""
        return digest([self.sha256, "llama.cpp"])

    def open(self, tokenizer: Path, name: str) -> LlamaEngine:
        """The engine, its voice called `name`. `tokenizer`: the folder of the model the file was made of. Raises ModelError."""
        encoder, context = open_chat(open_tokenizer(tokenizer)), min(inspect_folder(tokenizer).context, MAX_CONTEXT)
        engine = LlamaEngine(lambda: self._open_file(encoder, context), encoder, name=name, context=context, num_rows=self.num_rows)
        self.until.callback(engine.close)
        return engine

    def _open_file(self, encoder: ChatEncoder, context: int) -> LlamaFile:
        fix = "leave --gguf out: Luthier's own engine answers then"
        llama = open_in_llama(self.python, self.gguf, num_positions=context, num_rows=self.num_rows, fix=fix)
        try:
            different = [what for what, is_same in tokenizer_checks(llama, encoder, [_PROBE]).items() if not is_same]
            if different:
                raise ModelError(
                    f"is of another model than {self.target}: its {' and its '.join(different)} differ{'s' if len(different) == 1 else ''}",
                    where=self.gguf.name,
                    fix=f"luthier export {self.target} --to gguf --type Q8_0 --out DIR",
                )
        except BaseException:
            llama.close()
            raise
        return llama


def find_in_llama(gguf: Path, target: str, until: ExitStack, *, num_rows: int) -> InLlama:
    """The file and the llama.cpp to open it with. Says so where it is no export of this run that passed its gate.

    Raises ConfigError without such a file, MissingExtraError without llama.cpp.
    """
    if not gguf.is_file():
        raise ConfigError("there is no such file", where=f"--gguf {gguf}", fix=f"luthier export {target} --to gguf --type Q8_0 --out DIR")
    python = find_llama_python()
    if python is None:
        fix = f"pip install llama-cpp-python, or name a Python that has it: export {VARIABLE}=/path/to/python"
        raise MissingExtraError("there is no llama.cpp here", where="--gguf", fix=fix)
    found = InLlama(python=python, gguf=gguf, sha256=sha256_file(gguf), target=target, num_rows=num_rows, until=until)
    if not _passed_gate(found):
        note(f"{gguf.name} is no export of {target} that passed its gate: its answers may be others than the tested model's")
    return found


def _passed_gate(found: InLlama) -> bool:
    """Whether the file is, unchanged, what an export of this run handed over."""
    try:
        manifest = read_json(found.gguf.parent / MANIFEST)
        exports = read_exports(RunFolder(Path(found.target)).exports)
    except LuthierError:
        return False
    files = manifest.get("files")
    about: object = files.get(found.gguf.name) if isinstance(files, dict) else None
    is_unchanged = isinstance(about, dict) and about.get("sha256") == found.sha256
    return is_unchanged and any(export.created == manifest.get("created") and not export.parity.failures for export in exports)
