"""IFEval: how many of 541 requests with verifiable constraints does a model follow, before and after fine-tuning?

    python benchmarks/ifeval.py [--data FILE] [--rows N] [--tokens N] [--run DIR ...] [--table]

FILE: IFEval's input_data.jsonl (Zhou et al. 2023, CC BY 4.0), default ../shared/data/ifeval. Needs the extra `language`. The base model
and what each finished run in DIR trained answer the first N requests in a drawn order, greedily, each as one turn in the model's chat
template, by Luthier's own engine. Answers are kept in runs/ifeval, so the same command goes on where it was stopped, and a larger N adds
to a smaller one. `--table` only writes the table.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from table import environment, replace_table

from luthier.core.types import GenerationRequest, Message
from luthier.evaluate.probes import Probe
from luthier.generate.local import LocalModel, generate
from luthier.metrics.constraints import is_kept
from luthier.models.catalogue import resolve
from luthier.pipeline.open import open_local, open_tuned
from luthier.pipeline.probes import check_languages, read_constraints
from luthier.pipeline.record import read_record
from luthier.stats.bootstrap import bca_statistic
from luthier.stats.intervals import mean_estimate, paired_difference
from luthier.store.cache import GenerationCache
from luthier.store.layout import RunFolder
from luthier.train.precision import choose_precision

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "ifeval.json"
ANSWERS = HERE.parent / "runs" / "ifeval" / "answers.jsonl"
ORDER = "ifeval/items"  # the seed of the order
BATCH = 64
SEED = 0
DRAWS = 2_000
PUBLISHED = "SmolLM2-135M-Instruct, average of prompt and instruction level: 29.9 (its authors' model card)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "ifeval" / "input_data.jsonl")
    parser.add_argument("--model", default="smollm2-135m", help="of the catalogue, or a folder; with --run the run's own")
    parser.add_argument("--rows", type=int, default=541)
    parser.add_argument("--tokens", type=int, default=256, help="an answer is cut there; a run's probes have 256 too")
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="finished runs: base and tuned model")
    parser.add_argument("--table", action="store_true", help="only write the table from what was recorded")
    options = parser.parse_args()
    if not options.table:
        RESULTS.write_text(json.dumps(measured(options), indent=1) + "\n", encoding="utf-8")
    replace_table("ifeval", table(json.loads(RESULTS.read_text(encoding="utf-8"))))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    probes = list(read_constraints(options.data))
    check_languages(probes, str(options.data))
    num_all = len(probes)
    random.Random(ORDER).shuffle(probes)
    probes = probes[: options.rows]
    precision = choose_precision("auto", settled=None)
    folders = {path.resolve().name: RunFolder(path.resolve()) for path in options.run}
    names = {read_record(folder.results).model for folder in folders.values()} or {options.model}
    assert len(names) == 1, f"runs of several base models: {names}"
    model = resolve(names.pop())
    kept = {"base": answered(open_local(model, precision), probes, options.tokens)}
    for name, folder in folders.items():
        kept[f"tuned, {name}"] = answered(open_tuned(folder, model, precision), probes, options.tokens)
    base = kept["base"]["kept"]
    return {
        "model": options.model if not folders else read_record(next(iter(folders.values())).results).model,
        "items": len(probes), "items in the file": num_all, "drawn by": ORDER, "answer tokens": options.tokens,
        "models": {
            name: {**scores(found["kept"], probes), "cut": found["cut"], "seconds": found["seconds"]} for name, found in kept.items()
        },
        "tuned minus base": {name: differences(found["kept"], base) for name, found in kept.items() if name != "base"},
        "published": PUBLISHED,
        "conditions": {**environment(), "precision": precision.reason},
    }  # fmt: skip


def answered(local: LocalModel, probes: Sequence[Probe], max_new_tokens: int) -> dict[str, Any]:
    """For each request which of its constraints are kept; how many answers were cut, and the seconds they took when they were written."""
    ANSWERS.parent.mkdir(parents=True, exist_ok=True)
    store = GenerationCache(ANSWERS)
    given = []
    for begin in range(0, len(probes), BATCH):  # in the drawn order, so that more requests add to fewer
        asked = [
            GenerationRequest(item_id=probe.id, messages=(Message(role="user", content=probe.prompt),), max_new_tokens=max_new_tokens)
            for probe in probes[begin : begin + BATCH]
        ]
        given += generate(local, asked, batch=BATCH, store=store, on_progress=lambda done, total: None)
        print(f"{len(given)} of {len(probes)} requests answered", flush=True)
    return {
        "kept": [[float(is_kept(one, answer.text)) for one in probe.constraints] for probe, answer in zip(probes, given, strict=True)],
        "cut": sum(answer.finish == "length" for answer in given),
        "seconds": sum(answer.latency_s for answer in given),
    }


def scores(kept: list[list[float]], probes: Sequence[Probe]) -> dict[str, Any]:
    """Strict accuracy: of requests, of instructions (drawn with their request), their mean, and by type."""
    whole, flat, owners = [float(all(row)) for row in kept], *spread(kept)
    sums, sizes = np.array([sum(row) for row in kept]), np.array([len(row) for row in kept])

    def average(drawn: Any) -> float:
        return float((np.array(whole)[drawn].mean() + sums[drawn].sum() / sizes[drawn].sum()) / 2)

    ids = [str(number) for number in range(len(kept))]
    low, high = bca_statistic(average, ids, 0.95, seed=SEED, num_draws=DRAWS)
    by_type: dict[str, tuple[list[float], list[str]]] = defaultdict(lambda: ([], []))
    for owner, probe, row in zip(ids, probes, kept, strict=True):
        for one, value in zip(probe.constraints, row, strict=True):
            by_type[one.kind][0].append(value)
            by_type[one.kind][1].append(owner)
    return {
        "requests": estimate(whole, ids), "instructions": estimate(flat, owners),
        "average": {"value": average(np.arange(len(kept))), "low": low, "high": high, "n": len(kept), "method": f"BCa, {DRAWS} draws"},
        "by type": {kind: estimate(*by_type[kind]) for kind in sorted(by_type)},
    }  # fmt: skip


def spread(kept: list[list[float]]) -> tuple[list[float], list[str]]:
    """Every instruction, and the number of its request."""
    return [value for row in kept for value in row], [str(number) for number, row in enumerate(kept) for _ in row]


def estimate(values: list[float], clusters: list[str]) -> dict[str, Any]:
    found = mean_estimate(values, clusters, seed=SEED)
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n, "method": found.method}


def differences(tuned: list[list[float]], base: list[list[float]]) -> dict[str, Any]:
    out = {}
    (first, owners), (second, _) = spread(tuned), spread(base)
    whole = [float(all(a)) - float(all(b)) for a, b in zip(tuned, base, strict=True)]
    each = [a - b for a, b in zip(first, second, strict=True)]
    for name, gaps, clusters in (("requests", whole, [str(i) for i in range(len(whole))]), ("instructions", each, owners)):
        found = paired_difference(gaps, clusters, is_binary=True, seed=SEED)
        low, high = found.interval95
        out[name] = {"value": found.difference, "low": low, "high": high, "n": found.n, "p": found.p_value, "method": found.method}
    return out


def table(found: dict[str, Any]) -> list[str]:
    names = list(found["models"])
    lines = [f"| kept, strictly (%) | n | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]

    def line(what: str, key: str, kind: str = "") -> str:
        cells = [model[key][kind] if kind else model[key] for model in found["models"].values()]
        return f"| {what} | {cells[0]['n']} | {' | '.join(shown(cell) for cell in cells)} |"

    lines += [
        line("requests, all of it", "requests"),
        line("instructions", "instructions"),
        line("mean of the two", "average"),
        *(line(kind, "by type", kind) for kind in found["models"]["base"]["by type"]),
    ]
    for name, gaps in found["tuned minus base"].items():
        said = "; ".join(
            f"{what} {100 * gap['value']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}), n = {gap['n']}"
            for what, gap in gaps.items()
        )
        lines += ["", f"{name}, minus base, points: {said}."]
    cut = ", ".join(f"{name} {model['cut']} of {found['items']}" for name, model in found["models"].items())
    which = "all" if found["items"] == found["items in the file"] else f"{found['items']} (drawn by the seed {found['drawn by']!r}) of the"
    conditions = {key: found["conditions"][key] for key in ("python", "cpu", "cores", "torch", "precision", "git_revision")}
    lines += [
        "",
        f"{found['model']}, {which} {found['items in the file']} requests, greedy, chat template, no prompt but the request, at most "
        f"{found['answer tokens']} tokens. Cut there: {cut}; a cut answer lacks its end, and what is asked of its end or its length. "
        "Intervals 95 %: Wilson for requests, over requests for instructions. "
        f"Published, under conditions of its own: {found['published']}. "
        + "; ".join(f"{key}: {value}" for key, value in conditions.items()) + ".",
    ]  # fmt: skip
    return lines


def shown(cell: dict[str, Any]) -> str:
    return f"{100 * cell['value']:.1f} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"


if __name__ == "__main__":
    main()
