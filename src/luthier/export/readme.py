"""The README of an exported folder: what it is, how it was checked, and the exact commands to use it."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.exports import ExportKind, Parity
from luthier.core.untrusted import render_untrusted


def render_readme(*, kind: ExportKind, name: str, base_model: str, licence: str, storage: str, parity: Parity, rank: int | None) -> str:
    """Markdown. `name` is made of letters, digits, dots and dashes; other texts are untrusted."""
    lines = [
        f"# {name}",
        "",
        f"Made with Luthier from {_md(base_model)}. Kind: {kind}, weights stored as {storage}.",
        *([f"Licence of the base model: {_md(licence)}. It binds what is made from it."] if licence else []),
        "",
        "## Use",
        "",
        *_use(kind, name, base_model, rank),
        "",
        "Send the user turn as in training: the instruction, a blank line, then the input.",
        "",
        "## Checked before it was handed over",
        "",
        *parity_lines(parity),
    ]
    return "\n".join(lines) + "\n"


def parity_lines(parity: Parity) -> list[str]:
    """The gate's findings as a Markdown list."""
    score = {name: _points(e.value, e.low, e.high) for name, e in (("tested", parity.tested), ("artefact", parity.artefact))}
    difference = parity.difference
    return [
        f"- {parity.n:,} of {parity.num_locked:,} locked test items answered by the tested model and by these files, read back from disk: "
        f"{parity.num_exact:,} the same, {parity.num_ties:,} ties, {parity.n - parity.num_exact - parity.num_ties:,} different.",
        f"- {_md(parity.metric)}, in points: tested {score['tested']}, these files {score['artefact']}, difference "
        f"{_points(difference.value, difference.low, difference.high)} ({_md(difference.method)}).",
        f"- Mean KL divergence {parity.mean_kl:.2g} nats a token over {parity.num_tokens:,} tokens of reference answers (largest "
        f"{parity.max_kl:.2g}); largest difference of a logit {parity.max_logit_difference:.2g}.",
        f"- The same in both: {', '.join(name for name, holds in parity.checks.items() if holds)}.",
        f"- What was allowed: {_md(parity.tolerance_words)}.",
    ]


def _points(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "not measured"
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _use(kind: ExportKind, name: str, base_model: str, rank: int | None) -> Sequence[str]:
    base = _code(base_model)
    match kind:
        case "adapter":
            vllm = f"vllm serve {base} --enable-lora --max-lora-rank {rank or 64} --lora-modules {name}=."
            return _block(f"luthier chat . --model {base}", vllm)
        case "merged" | "hub-folder":
            return _block("luthier chat .", f"vllm serve . --served-model-name {name}")
        case "gguf":
            return _block(f"llama-server --model {name}.gguf --jinja --temp 0", f"llama-cli --model {name}.gguf --jinja --temp 0")
        case "ollama":
            return _block(f"ollama create {name} --file Modelfile", f"ollama run {name}")


def _block(*commands: str) -> list[str]:
    return ["Run in this folder:", "", *(f"    {command}" for command in commands)]


def _code(text: str) -> str:
    """A model's name inside a command: what a shell might run is left out."""
    return "".join(char for char in text if char.isascii() and (char.isalnum() or char in "._-/")) or "BASE_MODEL"


def _md(text: str) -> str:
    return render_untrusted(text, "markdown")
