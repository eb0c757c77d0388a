"""XSTest in full, before and after fine-tuning: is what should be refused refused, and what only looks like it answered?

    python benchmarks/xstest.py [--data DIR] [--runs DIR] [--only NAME ...] [--table]

Data: folder with xstest_prompts.csv (Röttger et al. 2024, CC BY 4.0), default ../shared/data/xstest. The 250 safe and 200 unsafe
requests are put to the base model and to what each of these runs of the study trained, by the code that probes in `luthier run`. Answers
are kept in RUNS/xstest, so the same command goes on where it was stopped. `--table` only writes the table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from table import environment, replace_table

from luthier.core.errors import RunError
from luthier.evaluate.probes import Probe, ProbeBench, probe_models
from luthier.models.catalogue import resolve
from luthier.pipeline.decide import decision_rule
from luthier.pipeline.open import open_local, open_tuned
from luthier.pipeline.probes import general_probes, read_requests
from luthier.pipeline.record import RunRecord, read_record
from luthier.pipeline.settings import load_settings
from luthier.store.cache import GenerationCache
from luthier.store.layout import RunFolder
from luthier.train.precision import choose_precision
from luthier.verdict.compare import compare_arms
from luthier.verdict.gates import check_gates
from luthier.verdict.probes import ProbeRecord, detector_words, probe_lines

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "xstest.json"
TUNED_ON = {
    "alpaca-32": "100 general instructions with short answers",
    "alpaca": "200 general instructions with short answers",
    "intents20": "600 banking queries, 20 labels",
    "banking77": "770 banking queries, 77 labels",
}
GATES = ("unsafe compliance", "over-refusal", "incoherent elsewhere", "retention")
METRICS = ("unsafe_compliance", "over_refusal", "incoherent")
SHOWN_ANSWERS = 6
ANSWER_TOKENS = 48
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "xstest")
    parser.add_argument("--runs", type=Path, default=HERE.parent / "runs" / "study")
    parser.add_argument("--only", nargs="*", default=list(TUNED_ON), help="names of the study's tasks")
    parser.add_argument("--table", action="store_true", help="only write the table from what was recorded")
    options = parser.parse_args()
    runs = options.runs.resolve()
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in () if options.table else options.only:
        if not (runs / name / "results.json").exists():
            print(f"{name}: no finished run in {runs / name}; python benchmarks/study.py --only {name}")
            continue
        (runs / "xstest").mkdir(exist_ok=True)
        probes = [*read_requests(options.data / "xstest_prompts.csv"), *general_probes()]
        found[name] = before_and_after(RunFolder(runs / name), probes, GenerationCache(runs / "xstest" / "answers.jsonl"))
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    replace_table("xstest", table(found))


def before_and_after(folder: RunFolder, probes: list[Probe], store: GenerationCache) -> dict[str, Any]:
    """Both models on all requests, in the words of the report, and as numbers."""
    record = read_record(folder.results)
    precision, model = choose_precision("auto", settled=None), resolve(record.model)
    bench = ProbeBench(max_new_tokens=ANSWER_TOKENS, batch=64, store=store, on_progress=_told, should_stop=lambda: False)
    probed = probe_models(open_local(model, precision), open_tuned(folder, model, precision), probes, bench)
    both = ProbeRecord(
        key="", source="XSTest", base=replace(probed.base, name="base"), tuned=replace(probed.tuned, name="tuned"), prompts={},
        max_new_tokens=ANSWER_TOKENS, perplexity_limit=probed.perplexity_limit,
    )  # fmt: skip
    return {
        "model": record.model,
        "trained by": f"python benchmarks/study.py --only {folder.root.name}",
        "lines": [asdict(line) for line in probe_lines(both, seed=SEED)],
        "tuned minus base": {metric: _difference(both, metric) for metric in METRICS},
        "gates": [asdict(gate) for gate in _gates(folder, record, both)],
        "perplexity limit": probed.perplexity_limit,
        "answer tokens": ANSWER_TOKENS,
        "answers": _answers(both, {probe.id: probe.prompt for probe in probes}),
        "seconds": {arm.name: arm.effort for arm in (both.base, both.tuned)},
        "conditions": {**environment(), "precision": precision.reason},
    }


def _told(label: str, done: int, total: int) -> None:
    print(f"{label}: {done} of {total}", flush=True)


def _difference(both: ProbeRecord, metric: str) -> dict[str, Any]:
    """On the requests where both answers could be judged."""
    try:
        found = compare_arms(both.tuned, both.base, metric, seed=SEED)
    except RunError as error:
        return {"not measured": str(error)}
    return {"value": found.difference, "low": found.low95, "high": found.high95, "n": found.n, "p": found.p_value, "method": found.method}


def _gates(folder: RunFolder, record: RunRecord, both: ProbeRecord) -> list[Any]:
    """What the verdict's gates say of these probes; the arms only lend their names."""
    arms = {arm.family: arm for arm in record.arms if arm.failed is None and arm.items}
    found = check_gates(arms["prompt"], arms["tuned"], decision_rule(load_settings(folder.config, {}), record), both)
    return [gate for gate in found if gate.name in GATES]


def _answers(both: ProbeRecord, prompts: dict[str, str]) -> list[dict[str, str]]:
    """The first few requests of each kind, with what both models said and what it was taken for."""
    tuned = {item.item_id: item for item in both.tuned.items}
    kinds = {kind: [item for item in both.base.items if item.gold == kind][:SHOWN_ANSWERS] for kind in ("unsafe", "safe")}
    return [
        {
            "kind": kind, "request": prompts[item.item_id], "base": item.text, "base was": item.note,
            "tuned": tuned[item.item_id].text, "tuned was": tuned[item.item_id].note,
        }
        for kind, items in kinds.items() for item in items
    ]  # fmt: skip


def table(found: dict[str, Any]) -> list[str]:
    """One line a measure and model; then what the gates say."""
    lines = [
        "| tuned on | | base | tuned | tuned minus base | n | corrected for the detector: base and tuned |",
        "|---|---|---|---|---|---|---|",
    ]
    if not found:
        return ["Not measured yet."]
    for name, row in found.items():
        for number, line in enumerate(row["lines"]):
            gap = row["tuned minus base"].get(METRICS[number]) if number < len(METRICS) else None
            corrected = line["note"].removeprefix("corrected ").split(";")[0] if line["note"].startswith("corrected ") else ""
            lines.append(f"| {name} | {line['what']} | {line['base']} | {line['tuned']} | {_gap(gap)} | {line['n']} | {corrected} |")
    for name, row in found.items():
        lines += [
            "",
            f"**{name}** ({TUNED_ON[name]}): {' '.join(gate['message'][:1].upper() + gate['message'][1:] for gate in row['gates'])}",
        ]
    first = next(iter(found.values()))
    shown = {key: first["conditions"][key] for key in ("python", "cpu", "cores", "torch", "git_revision")}
    lines += ["", detector_words(), "", f"{first['model']}, greedy, at most {first['answer tokens']} tokens, no prompt but the request. "]
    lines[-1] += "; ".join(f"{key}: {value}" for key, value in shown.items()) + "."
    return lines


def _gap(gap: dict[str, Any] | None) -> str:
    if gap is None:
        return ""
    if "value" not in gap:
        return "no request where both could be judged"
    return f"{100 * gap['value']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}), n = {gap['n']}"


if __name__ == "__main__":
    main()
