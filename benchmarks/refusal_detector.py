"""How often the refusal detector is wrong, on XSTest's 2,250 answers labelled by people; and how often sense is called incoherent.

    python benchmarks/refusal_detector.py [DATA]

DATA: folder with xstest_prompts.csv and model_completions/ (paul-rottger/exaggerated-safety, CC BY 4.0), default ../shared/data/xstest.
The phrases were written looking at the answers of three models (`DEVELOPED_ON`); the other two were counted once, when they were done.
A few dozen of their answers had been seen when the files were first looked at.
"""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from table import environment, replace_table

from luthier.core.types import GenerationRequest, Message
from luthier.evaluate.probes import Probe, answer_row, general_row, strange_above
from luthier.generate.likelihood import mean_losses
from luthier.generate.local import generate
from luthier.generate.store import NoStore
from luthier.metrics.refusal import DETECTOR, INCOHERENCE, answer_kind, refuses, repeats_itself
from luthier.models.catalogue import resolve
from luthier.pipeline.open import open_local
from luthier.pipeline.probes import TEXTS, general_probes
from luthier.stats.intervals import mean_estimate
from luthier.train.precision import choose_precision

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data" / "xstest"
DEVELOPED_ON = ("llama2new", "mistralguard", "mistralinstruct")
HELD_OUT = ("gpt4", "llama2orig")
LABELS = {"1": "full compliance", "2": "full refusal", "3": "partial refusal"}
ANSWER_TOKENS = 32  # as in a run
SEED = 0


def completions(data: Path, model: str) -> list[dict[str, str]]:
    with (data / "model_completions" / f"{model}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rate(rows: list[tuple[str, bool]]) -> dict[str, Any]:
    """Share with an interval over prompts: two models answered each."""
    found = mean_estimate([float(hit) for _, hit in rows], [prompt for prompt, _ in rows], seed=SEED)
    return {
        "share": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "hits": sum(hit for _, hit in rows),
        "method": found.method,
    }


def confusion(data: Path, models: tuple[str, ...]) -> dict[str, Any]:
    rows = [row for model in models for row in completions(data, model)]
    said = [(row["prompt"], LABELS[row["final_label"][0]], refuses(row["completion"])) for row in rows]
    counts = Counter((label, "refusal" if hit else "no refusal") for _, label, hit in said)
    refusals = [(prompt, hit) for prompt, label, hit in said if label != "full compliance"]
    full = [(prompt, hit) for prompt, label, hit in said if label == "full refusal"]
    others = [(prompt, not hit) for prompt, label, hit in said if label == "full compliance"]
    return {
        "models": list(models), "answers": len(rows),
        "confusion": {label: {kind: counts[label, kind] for kind in ("refusal", "no refusal")} for label in LABELS.values()},
        "sensitivity": rate(refusals), "sensitivity, full refusals": rate(full), "specificity": rate(others),
        "agreement": rate([*refusals, *others]),
        "called empty or repeating": sum(repeats_itself(row["completion"]) for row in rows),
    }  # fmt: skip


def incoherent(data: Path) -> dict[str, Any]:
    """Of people-labelled answers, cut as a run cuts them, and of the same with their words shuffled: share called incoherent."""
    local = open_local(resolve("smollm2-135m"), choose_precision("auto", settled=None))
    with (TEXTS / "safety.csv").open(encoding="utf-8", newline="") as file:
        probes = [Probe(id=str(i), kind=row["label"], prompt=row["prompt"]) for i, row in enumerate(csv.DictReader(file))]
    asked = [
        GenerationRequest(item_id=p.id, messages=(Message(role="user", content=p.prompt),), max_new_tokens=ANSWER_TOKENS) for p in probes
    ]
    own = generate(local, asked, batch=64, store=NoStore(), on_progress=lambda done, total: None)
    own_losses = mean_losses(local.voices, [answer_row(local, p, g.text) for p, g in zip(probes, own, strict=True)])
    people = [p for p in general_probes() if p.kind == "instruct"]
    people_losses = mean_losses(local.voices, [general_row(local, p) for p in people])
    limit, own_limit = strange_above([*own_losses, *people_losses]), strange_above(own_losses)
    assert limit is not None and own_limit is not None
    out: dict[str, Any] = {"perplexity limit": math.exp(limit), "perplexity limit of its own answers alone": math.exp(own_limit)}
    rng = random.Random("refusal detector/shuffle")
    for name, is_shuffled in (("answers of five models", False), ("the same, words shuffled", True)):
        pairs = []
        for model in (*DEVELOPED_ON, *HELD_OUT):
            for row in completions(data, model)[::5]:
                ids = local.encoder.encode_bare(row["completion"])[:ANSWER_TOKENS]
                words = local.encoder.decode(ids).split()
                if is_shuffled:
                    rng.shuffle(words)
                pairs.append((row["prompt"], " ".join(words)))
        losses = mean_losses(local.voices, [answer_row(local, Probe(id="", kind="safe", prompt=prompt), text) for prompt, text in pairs])
        kinds = [
            (prompt, answer_kind(text, is_strange=loss is not None and loss > limit) == "incoherent")
            for (prompt, text), loss in zip(pairs, losses, strict=True)
        ]
        out[name] = {
            **rate(kinds),
            "share, limit of its own answers alone": sum(loss is not None and loss > own_limit for loss in losses) / len(losses),
        }
    return out


def shown(found: dict[str, Any]) -> str:
    return f"{100 * found['share']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f}; {found['hits']} of {found['n']})"


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    if not data.is_dir():
        sys.exit(f"{data} is not there: see the head of this file")
    result = {
        "held out": confusion(data, HELD_OUT), "developed on": confusion(data, DEVELOPED_ON), "incoherent": incoherent(data),
        "conditions": environment(),
    }  # fmt: skip
    held = result["held out"]
    assert held["sensitivity"]["hits"] == DETECTOR.found and held["sensitivity"]["n"] == DETECTOR.refusals, held
    assert held["specificity"]["hits"] == DETECTOR.left_alone and held["specificity"]["n"] == DETECTOR.others, held
    strange, shuffled = result["incoherent"]["answers of five models"], result["incoherent"]["the same, words shuffled"]
    if (strange["hits"], strange["n"]) != (INCOHERENCE.false_alarms, INCOHERENCE.answers) or shuffled["hits"] != INCOHERENCE.found:
        print(f'metrics/refusal.py states another error of "incoherent": {INCOHERENCE}', file=sys.stderr)
    (HERE / "results" / "refusal_detector.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    names = ("sensitivity", "sensitivity, full refusals", "specificity", "agreement")
    lines = ["| | held out: GPT-4, Llama 2 (original prompt) | developed on: Llama 2, Mistral, Mistral with guardrail |", "|---|---|---|"]
    lines += [f"| {name} | {shown(held[name])} | {shown(result['developed on'][name])} |" for name in names]
    lines += ["", "| labelled by people (held out) | called a refusal | not |", "|---|---|---|"]
    lines += [f"| {label} | {row['refusal']} | {row['no refusal']} |" for label, row in held["confusion"].items()]
    found = result["incoherent"]
    lines += [
        "",
        f"Called incoherent with SmolLM2-135M as the base model (perplexity above {found['perplexity limit']:.0f}, or repeating itself), "
        f"of the first {ANSWER_TOKENS} tokens of every fifth answer: {shown(found['answers of five models'])}; with their words shuffled: "
        f"{shown(found['the same, words shuffled'])}.",
    ]
    replace_table("refusal-detector", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
