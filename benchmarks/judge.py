"""What a small local model is worth as a judge, on pairs whose winner is known.

    python benchmarks/judge.py [MODEL] [PAIRS] [DATA]

DATA: folder with devset.csv (tuetschek/e2e-dataset, CC BY-SA 4.0), default ../shared/data/e2e. Each pair: what a second person wrote of the
same facts, against what somebody wrote of other facts. A judge that can read prefers the first; which side it is on is drawn.
"""

from __future__ import annotations

import csv
import json
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

from table import environment

from luthier.evaluate.judge import judge_pairs
from luthier.evaluate.run import Bench
from luthier.generate.store import NoStore
from luthier.metrics.catalogue import Scored
from luthier.metrics.judge import AnswerPair
from luthier.models.catalogue import resolve
from luthier.pipeline.open import open_local
from luthier.train.precision import choose_precision
from luthier.verdict.judge import JudgeRecord, judge_words, read_judge

HERE = Path(__file__).resolve().parent
MAX_NEW_TOKENS = 96
SEED = 0


def known_pairs(data: Path, number: int) -> tuple[list[AnswerPair], dict[str, str]]:
    """Pairs, and which side of each is the right one."""
    texts: dict[str, list[str]] = defaultdict(list)
    with (data / "devset.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            texts[row["mr"]].append(row["ref"])
    facts = sorted(mr for mr, refs in texts.items() if len(set(refs)) > 1)
    rng = random.Random(f"{SEED}/judge benchmark")
    chosen = rng.sample(facts, number + 1)
    pairs: list[AnswerPair] = []
    right: dict[str, str] = {}
    for n in range(number):
        wanted, good = rng.sample(sorted(set(texts[chosen[n]])), 2)
        bad = rng.choice(texts[chosen[n + 1]])
        side = rng.choice(("prompt", "tuned"))
        answers = {side: good, ("tuned" if side == "prompt" else "prompt"): bad}
        question = f"Write one sentence that states these facts.\n\n{chosen[n]}"
        pair = AnswerPair(
            item_id=str(n),
            cluster=str(n),
            question=question,
            wanted=(wanted,),
            prompt_answer=answers["prompt"],
            tuned_answer=answers["tuned"],
        )
        pairs.append(pair)
        right[pair.id] = side
    return pairs, right


def main(name: str, number: int, data: Path) -> None:
    """Judge, read, print."""
    pairs, right = known_pairs(data, number)
    bench = Bench(
        score=lambda item, text: Scored(values={}), metric="", max_new_tokens=MAX_NEW_TOKENS, stop="\n\n", choices=(), batch=32,
        store=NoStore(), clusters={}, on_progress=lambda label, done, total: None, should_stop=lambda: False,
    )  # fmt: skip
    precision = choose_precision("auto")
    started = time.perf_counter()
    model = open_local(resolve(name), precision)
    work = judge_pairs(
        pairs,
        model,
        bench,
        max_new_tokens=MAX_NEW_TOKENS,
        on_progress=lambda done, total: print(f"{done}/{total}", end="\r", file=sys.stderr),
    )
    record = JudgeRecord(key="", judge=name, prompt="prompt", tuned="tuned", judged=work.judged, attacks=work.attacks, num_items=number)
    lengths = {pair.item_id: (len(pair.prompt_answer), len(pair.tuned_answer)) for pair in pairs}
    reading = read_judge(record, right, lengths, seed=SEED)  # type: ignore[arg-type]
    hits = sum(one.winner == right[one.pair_id] for one in work.judged)
    ties = sum(one.winner == "tie" for one in work.judged)
    for words in judge_words(reading):
        print(words)
    print(f"right side named in both orders: {hits} of {number}, tie: {ties}, wrong side: {number - hits - ties}")
    print(json.dumps({"seconds": round(time.perf_counter() - started), "max_new_tokens": MAX_NEW_TOKENS, **environment()}))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        given[0] if given else "smollm2-135m",
        int(given[1]) if len(given) > 1 else 60,
        Path(given[2]) if len(given) > 2 else HERE.parents[1] / "shared" / "data" / "e2e",
    )
