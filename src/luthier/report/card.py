"""The model card: Markdown with YAML front matter as the Hugging Face hub reads it, written from measured facts only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from luthier.core.types import Estimate
from luthier.core.untrusted import render_untrusted
from luthier.report import numbers
from luthier.report.model import ArmRow, ReportModel, primary_of

MAX_FINDINGS = 20
MAX_ARMS = 24
HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma": "gemma", "Llama 3.2 Community": "llama3.2"}  # as the hub spells them


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What the card of handed-over weights says besides: how to use them, and under which terms."""

    library: str  # what opens them: peft, transformers
    use: tuple[str, ...]  # Markdown
    licence: str  # of the base model, in the catalogue's words; "": not known, and not claimed
    notice: str  # what its licence wants said to everyone who gets the weights


HOME = Shipped(library="peft", use=(), licence="", notice="")  # the card beside the run's own adapter


def render_card(model: ReportModel, shipped: Shipped = HOME) -> str:
    """The model card of the tuned arm. A run without a tuned arm gets a card that says so."""
    tuned = model.row(model.verdict.best_tuned)
    sections = [
        _front_matter(model, tuned, shipped),
        _summary(model, tuned),
        "\n".join(("## Use", "", *shipped.use)) if shipped.use else "",
        _results(model),
        _gates(model),
        _probes(model),
        _data(model),
        _training(model),
        _parity(model),
        _licence(model, shipped),
        _limits(model),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(model: ReportModel, tuned: ArmRow | None, shipped: Shipped) -> str:
    lines = ["---"]
    if tuned is not None:
        lines += [f"base_model: {_yaml(model.base_model)}", f"library_name: {shipped.library}", "pipeline_tag: text-generation"]
    if shipped.licence:
        name = HUB_LICENCES.get(shipped.licence, "other")
        lines += [f"license: {name}", *([f"license_name: {_yaml(shipped.licence)}"] if name == "other" else [])]
    lines += ["tags:", '- "luthier"', *(['- "evaluation"'] if tuned is None else ['- "lora"'] if _is_adapter(model) else [])]
    if tuned is not None and tuned.score.value is not None and math.isfinite(tuned.score.value):
        lines += [
            "model-index:",
            f"- name: {_yaml(model.title)}",
            "  results:",
            "  - task:",
            '      type: "text-generation"',
            "    dataset:",
            f"      name: {_yaml(f'locked test items of {model.title}')}",
            '      type: "private"',
            f"      revision: {_yaml(model.split.test_sha256)}",
            "    metrics:",
            f"    - type: {_yaml(model.verdict.metric)}",
            f"      value: {tuned.score.value:.4f}",
            f"      name: {_yaml(f'{model.verdict.metric}, {_interval_words(tuned.score)}')}",
        ]
    return "\n".join([*lines, "---"])


def _is_adapter(model: ReportModel) -> bool:
    """Whether adapters were trained, and no weights of the base model."""
    return "LoRA" in model.training.get("method", "") or "DoRA" in model.training.get("method", "")


def _summary(model: ReportModel, tuned: ArmRow | None) -> str:
    verdict, primary = model.verdict, primary_of(model)
    lines = [f"# {_md(model.title)}", ""]
    if tuned is None:
        lines.append("No tuned model came out of this run; this card records what was measured.")
    else:
        lines.append(
            f"{_md(model.training.get('method', 'Trained weights'))}: trained on {_md(model.base_model)}, "
            f"made and measured with Luthier {_md(model.luthier_version)} "
            f"on {_md(model.created)}."
        )
    lines += ["", f"**Verdict: {_md(verdict.headline)}** ({verdict.strength}). {_md(verdict.sentence)}"]
    if primary is not None:
        lines += [
            "",
            f"{_md(primary.a)} minus {_md(primary.b)}: **{numbers.signed_points(primary.difference)} points** of {_md(verdict.metric)}, "
            f"95 % interval {numbers.signed_points(primary.low95)} to {numbers.signed_points(primary.high95)}, n = {primary.n:,}, "
            f"margin {numbers.points(verdict.margin)} ({_md(primary.method)}).",
        ]
    return "\n".join(lines)


def _results(model: ReportModel) -> str:
    lines = [
        "## Results",
        "",
        f"Metric: {_md(model.verdict.metric)}, in points, on the same {model.split.num_test:,} locked test items. "
        f"{numbers.NOT_MEASURED} is not measured.",
        "",
        "| Arm | Model | Score | 95 % interval | n | Dev score | Cost of 1,000 requests | Median time |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for row in model.rows[:MAX_ARMS]:
        model_name = _md(row.model) if row.model else "none"
        if row.failed is not None:
            lines.append(f"| {_md(row.name)} | {model_name} | failed | {_md(row.failed)} | | | | |")
            continue
        cost = render_untrusted(f"{numbers.usd(row.cost_per_1000.value)} {numbers.usd_interval(row.cost_per_1000)}".strip(), "markdown")
        lines.append(
            f"| {_md(row.name)} | {model_name} | {numbers.points(row.score.value)} | {numbers.interval(row.score)} | {row.score.n:,} "
            f"| {numbers.points(row.dev_score)} | {cost} | {numbers.duration(row.latency_p50_s.value)} (n {row.latency_p50_s.n}) |"
        )
    return "\n".join([*lines, *_left_out(len(model.rows), MAX_ARMS, "arms", model)])


def _gates(model: ReportModel) -> str:
    if not model.verdict.gates:
        return ""
    return "\n".join(["## Gates", "", *(f"- **{_md(gate.name)}: {gate.state}.** {_md(gate.message)}" for gate in model.verdict.gates)])


def _probes(model: ReportModel) -> str:
    if not model.probe_lines:
        return ""
    lines = ["## Beside the test items", "", "| | Base model | Tuned model | n |", "|---|---:|---:|---|"]
    lines += [
        f"| {_md(line.what)}{f' ({_md(line.note)})' if line.note else ''} | {_md(line.base)} | {_md(line.tuned)} | {_md(line.n)} |"
        for line in model.probe_lines
    ]
    return "\n".join([*lines, "", *(_md(note) for note in model.probe_notes)])


def _data(model: ReportModel) -> str:
    split = model.split
    official = " (official)" if split.official_test else ""
    lines = [
        "## Data",
        "",
        f"- {model.num_read:,} rows read, {model.num_kept:,} kept, {model.num_rejected:,} rejected.",
        f"- {split.num_train:,} train, {split.num_dev:,} dev, {split.num_test:,} locked test{official}, seed {split.seed}.",
        f"- SHA-256 of the test items: `{_md(split.test_sha256)}`"
        if split.test_sha256.isalnum()
        else f"- SHA-256 of the test items: {_md(split.test_sha256)}",
    ]
    if model.profile is not None:
        lines.append(f"- Kind of answer: {model.profile.kind} ({_md(model.profile.evidence)}).")
    if model.ceiling is not None:
        ceiling = f"{numbers.points(model.ceiling.value)} {numbers.interval(model.ceiling)}".strip()
        lines.append(f"- The best exact match the answers allow: {ceiling} ({_md(model.ceiling.method)}, n = {model.ceiling.n:,} rows).")
    lines += [f"- {finding.severity}: {_md(finding.message)} ({finding.count:,})" for finding in model.findings[:MAX_FINDINGS]]
    return "\n".join([*lines, *_left_out(len(model.findings), MAX_FINDINGS, "findings", model)])


def _training(model: ReportModel) -> str:
    if not model.training:
        return ""
    return "\n".join(["## Training", "", *(f"- {_md(key)}: {_md(value)}" for key, value in model.training.items())])


def _parity(model: ReportModel) -> str:
    """How each export answered beside the tested model; nothing where nothing was exported."""
    if not model.exports:
        return ""
    lines = [
        "## Parity of the exported files",
        "",
        "Read back from disk and held against the tested model on locked test items, greedily.",
        "",
        "| Kind | Weights | n | Same | Ties | Different | Mean KL, nats a token | Tested | Exported | Difference |",
        "|---|---|---:|---:|---:|---:|---:|---|---|---|",
    ]
    for export in model.exports:
        parity = export.parity
        lines.append(
            f"| {_md(export.kind)} | {_md(export.storage)} | {parity.n:,} | {parity.num_exact:,} | {parity.num_ties:,} "
            f"| {parity.n - parity.num_exact - parity.num_ties:,} | {parity.mean_kl:.2g} "
            f"| {numbers.points(parity.tested.value)} {numbers.interval(parity.tested)} "
            f"| {numbers.points(parity.artefact.value)} {numbers.interval(parity.artefact)} "
            f"| {numbers.signed_points(parity.difference.value)} {numbers.interval(parity.difference)} |"
        )
        if second := parity.llama_cpp:
            lines.append(
                f"| {_md(export.kind)}, in {_md(second.program)} | {_md(export.storage)} | {parity.n:,} | {second.num_exact:,} "
                f"| {second.num_ties:,} | {parity.n - second.num_exact - second.num_ties:,} | {second.mean_kl:.2g} "
                f"| {numbers.points(parity.tested.value)} {numbers.interval(parity.tested)} "
                f"| {numbers.points(second.artefact.value)} {numbers.interval(second.artefact)} "
                f"| {numbers.signed_points(second.difference.value)} {numbers.interval(second.difference)} |"
            )
    return "\n".join(lines)


def _licence(model: ReportModel, shipped: Shipped) -> str:
    if not shipped.licence:
        return ""
    text = f"## Licence\n\nThe base model {_md(model.base_model)} is under {_md(shipped.licence)}, which binds what is made from it."
    return f"{text}\n\n{_md(shipped.notice)}" if shipped.notice else text


def _limits(model: ReportModel) -> str:
    return "\n".join(
        [
            "## Limits",
            "",
            *(f"- {_md(limit)}" for limit in model.limits),
            "- The scores hold for requests like the test items; nothing was measured on others.",
            "- Near-duplicates between train and test were looked for by their words; a paraphrase may remain.",
            "- An adapter belongs to exactly this base model and its chat template.",
            "",
            "## Reproduce",
            "",
            f"{_md(model.run_command)}",
        ]
    )


def _left_out(total: int, shown: int, what: str, model: ReportModel) -> list[str]:
    if total <= shown:
        return []
    return ["", f"{total - shown:,} more {what} are left out here; all {total:,} are in {_md(model.records_path)} of the run folder."]


def _interval_words(score: Estimate) -> str:
    if score.low is None or score.high is None:
        return f"n = {score.n:,}"
    return f"95 % interval {score.low:.4f} to {score.high:.4f} ({score.method}), n = {score.n:,}"


def _md(text: str) -> str:
    return render_untrusted(text, "markdown")


def _yaml(text: str) -> str:
    return render_untrusted(text, "yaml")
