"""How often token F1, and the cosine of a sentence embedding model, take two texts for the same answer: rightly and wrongly.

    python benchmarks/same_meaning.py FOLDER [--data DIR]

FOLDER as in embeddings.py. E2E: people wrote several texts for one meaning representation (the same meaning); texts of two that differ in
one slot, or that are drawn from all (another meaning). SQuAD 2.0: several annotators' answers to one question against answers to
another question about the same paragraph. One pair of a kind for each representation or paragraph. The cosine's thresholds are chosen on
E2E's dev set alone, by the least mean of two error rates: of same and drawn pairs, or of same pairs and those that differ in a slot.
All rates are of other data. Writes results/same_meaning.json and the table in README.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from embeddings import NAME, Embedder
from table import environment, replace_table

from luthier.metrics.consistency import SAME_TEXT
from luthier.metrics.text import token_f1
from luthier.stats.intervals import wilson

HERE = Path(__file__).resolve().parent
BATCH = 64
Pairs = list[tuple[str, str]]
Rates = dict[str, dict[str, float]]
KINDS = ("same", "one slot differs", "drawn")


def e2e(path: Path) -> dict[str, Pairs]:
    """One pair of each kind for each meaning representation that has one."""
    texts: dict[str, list[str]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            texts[row["mr"]].append(row["ref"])
    stream = random.Random(f"0/{path.name}")
    slots = {mr: dict(part.rstrip("]").split("[", 1) for part in mr.split(", ")) for mr in texts}
    out: dict[str, Pairs] = {"same": [], "one slot differs": [], "drawn": []}
    for mr, told in texts.items():
        if len(told) > 1:
            a, b = stream.sample(told, 2)
            out["same"].append((a, b))
        near = [other for other in texts if slots[other].keys() == slots[mr].keys() and len(slots[mr].items() - slots[other].items()) == 1]
        if near:
            out["one slot differs"].append((stream.choice(told), stream.choice(texts[stream.choice(near)])))
        far = stream.choice([other for other in texts if other != mr])
        out["drawn"].append((stream.choice(told), stream.choice(texts[far])))
    return out


def squad2(path: Path) -> dict[str, Pairs]:
    """Annotators who answered one question differently in letters, and answers to two questions about one paragraph."""
    stream = random.Random("0/squad2")
    out: dict[str, Pairs] = {"same": [], "drawn": []}
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            asked = [sorted({one["text"] for one in qa["answers"]}) for qa in paragraph["qas"] if not qa["is_impossible"]]
            several = [answers for answers in asked if len(answers) > 1]
            if several:
                a, b = stream.sample(stream.choice(several), 2)
                out["same"].append((a, b))
            if len(asked) > 1:
                a, b = stream.sample(asked, 2)
                if not set(a) & set(b):
                    out["drawn"].append((stream.choice(a), stream.choice(b)))
    return out


def cosines(embedder: Embedder, pairs: Pairs) -> list[float]:
    texts = sorted({text for pair in pairs for text in pair}, key=len)
    found: dict[str, list[float]] = {}
    for at in range(0, len(texts), BATCH):
        batch = texts[at : at + BATCH]
        found.update(zip(batch, embedder.vectors(batch), strict=True))
    return [sum(x * y for x, y in zip(found[a], found[b], strict=True)) for a, b in pairs]


def best_threshold(same: Sequence[float], other: Sequence[float]) -> float:
    """Of 0.50, 0.51, ... the one with the least mean of both error rates; the lowest of equal ones."""

    def error(limit: float) -> float:
        return sum(value < limit for value in same) / len(same) + sum(value >= limit for value in other) / len(other)

    return min((hundredth / 100 for hundredth in range(50, 100)), key=error)


def rates(pairs: dict[str, Pairs], scores: dict[str, list[float]], limit: float) -> Rates:
    """Share of pairs that are called wrongly: different where they are the same, the same where they are not."""
    out: Rates = {}
    for kind, some in pairs.items():
        wrong = sum((value < limit) if kind == "same" else (value >= limit) for value in scores[kind])
        low, high = wilson(wrong, len(some))
        out[kind] = {"wrong": wrong, "n": len(some), "rate": wrong / len(some), "low": low, "high": high}
    return out


def table(found: dict[str, dict[str, Rates]]) -> list[str]:
    """Percent wrong, its 95 % interval, n."""
    lines = [
        "| pairs | called the same if | same meaning, called different | one slot differs, called the same | drawn, called the same |",
        "|---|---|---|---|---|",
    ]
    for name, measures in found.items():
        for measure, kinds in measures.items():
            cells = []
            for kind in KINDS:
                one = kinds.get(kind)
                cells.append(
                    "-"
                    if one is None
                    else f"{100 * one['rate']:.1f} % ({100 * one['low']:.1f} to {100 * one['high']:.1f}, n {one['n']:.0f})"
                )
            lines.append(f"| {name} | {measure} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    given = parser.parse_args()
    embedder = Embedder(given.folder)
    dev = e2e(given.data / "e2e/devset.csv")
    sets = {"E2E, test": e2e(given.data / "e2e/testset_w_refs.csv"), "SQuAD 2.0": squad2(given.data / "squad2/dev-v2.0.json")}
    of_dev = {kind: cosines(embedder, pairs) for kind, pairs in dev.items()}
    loose, strict = (best_threshold(of_dev["same"], of_dev[kind]) for kind in ("drawn", "one slot differs"))
    found: dict[str, dict[str, Rates]] = {}
    for name, pairs in sets.items():
        cos = {kind: cosines(embedder, some) for kind, some in pairs.items()}
        f1 = {kind: [token_f1(a, b) for a, b in some] for kind, some in pairs.items()}
        found[name] = {f"token F1 >= {SAME_TEXT:g}": rates(pairs, f1, SAME_TEXT)}
        found[name] |= {f"cosine >= {limit:.2f}": rates(pairs, cos, limit) for limit in (loose, strict)}
    result = {"model": NAME, "loose": loose, "strict": strict, "found": found, "environment": environment()}
    (HERE / "results" / "same_meaning.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    replace_table("same meaning", table(found))


if __name__ == "__main__":
    main()
