"""The README of an exported folder: what it is, how it was checked, and the exact commands to use it."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.exports import ExportKind, Parity, SecondReading
from luthier.core.types import Estimate
from luthier.core.untrusted import render_untrusted


@dataclass(frozen=True, slots=True, kw_only=True)
class AboutExport:
    """What the README says of the files. `name` is made of letters, digits, dots and dashes; other texts are untrusted."""

    kind: ExportKind
    storage: str
    name: str
    base_model: str
    licence: str  # of the base model; "": not known
    notice: str  # what it wants said to everyone who gets the files
    rank: int | None
    system: str  # shared by all training rows; "": none, or several
    instruction: str
    num_labels: int  # answers were held to so many in the test; 0: they were free


def render_readme(about: AboutExport, parity: Parity) -> str:
    """Markdown."""
    lines = [
        f"# {about.name}",
        "",
        f"Made with Luthier from {_md(about.base_model)}. Kind: {about.kind}, weights stored as {about.storage}.",
        *([f"Licence of the base model: {_md(about.licence)}. It binds what is made from it."] if about.licence else []),
        *(["", _md(about.notice)] if about.notice else []),
        "",
        "## Use",
        "",
        *use_lines(about),
        "",
        "## Checked before it was handed over",
        "",
        *parity_lines(parity),
    ]
    return "\n".join(lines) + "\n"


def use_lines(about: AboutExport) -> list[str]:
    """The exact commands, and what to send: a tuned model is as good as measured only when it is asked as in training."""
    lines = [*_use(about), "", "Ask as in training: the instruction, a blank line, then the input."]
    if about.instruction:
        lines += ["", f"The instruction of all its training rows: {_md(about.instruction)}"]
    if about.system:
        where = " (in the Modelfile)" if about.kind == "ollama" else ""
        lines += ["", f"The system text of all its training rows{where}: {_md(about.system)}"]
    if about.num_labels:
        held = f"In the test, answers were held to the {about.num_labels:,} labels while they were written."
        lines += ["", f"{held} A program that is not told to do so may write something else; the scores below are not of such answers."]
    return lines


def parity_lines(parity: Parity) -> list[str]:
    """The gate's findings as a Markdown list."""
    difference, second = parity.difference, parity.llama_cpp
    return [
        f"- {parity.n:,} of {parity.num_locked:,} locked test items answered by the tested model and by these files, read back from disk: "
        f"{parity.num_exact:,} the same, {parity.num_ties:,} ties, {parity.n - parity.num_exact - parity.num_ties:,} different.",
        f"- {_md(parity.metric)}, in points: tested {_of(parity.tested)}, these files {_of(parity.artefact)}, difference "
        f"{_of(difference)} ({_md(difference.method)}).",
        f"- Mean KL divergence {parity.mean_kl:.2g} nats a token over {parity.num_tokens:,} tokens of reference answers (largest "
        f"{parity.max_kl:.2g}); largest difference of a logit {parity.max_logit_difference:.2g}.",
        f"- The same in both: {', '.join(name for name, holds in parity.checks.items() if holds)}.",
        f"- What was allowed: {_md(parity.tolerance_words)}.",
        *(_second_lines(second, parity.n) if second else []),
    ]


def _second_lines(second: SecondReading, n: int) -> list[str]:
    difference = second.difference
    return [
        f"- The same by {_md(second.program)}: {second.num_exact:,} the same, {second.num_ties:,} ties, "
        f"{n - second.num_exact - second.num_ties:,} different; score {_of(second.artefact)}, difference "
        f"{_of(difference)}; mean KL divergence {second.mean_kl:.2g}.",
        f"- What was allowed there: {_md(second.tolerance_words)}.",
    ]


def _of(estimate: Estimate) -> str:
    return _points(estimate.value, estimate.low, estimate.high)


def _points(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return "not measured"
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _use(about: AboutExport) -> list[str]:
    base, name = _code(about.base_model), about.name
    if about.storage == "adapter":
        vllm = f"vllm serve {base} --enable-lora --max-lora-rank {about.rank or 64} --lora-modules {name}=."
        return _block(f"luthier chat . --model {base}", vllm)
    match about.kind:
        case "gguf":
            return _block(f"llama-server --model {name}.gguf --jinja --temp 0", f"llama-cli --model {name}.gguf --jinja --temp 0")
        case "ollama":
            return _block(f"ollama create {name} --file Modelfile", f"ollama run {name}")
        case _:
            return _block("luthier chat .", f"vllm serve . --served-model-name {name}")


def _block(*commands: str) -> list[str]:
    return ["Run in this folder:", "", *(f"    {command}" for command in commands)]


def _code(text: str) -> str:
    """A model's name inside a command: what a shell might run is left out."""
    return "".join(char for char in text if char.isascii() and (char.isalnum() or char in "._-/")) or "BASE_MODEL"


def _md(text: str) -> str:
    return render_untrusted(text, "markdown")
