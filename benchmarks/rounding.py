"""Where bf16 answers of the engine and of transformers.generate part: rounding, or a fault?

    python benchmarks/rounding.py [--rows 40] [--data DIR]

Both answer zero-shot banking77 items greedily in bf16. Along the engine's answers the model is read in fp32, which rounds away next to
nothing. For two tokens a and b the gap is the difference of their fp32 logits; the error of a program is what it makes of that gap less
the fp32 gap, measured at every place between the two likeliest tokens, where nothing has parted. Answers that part at a gap of the size
of these errors part by rounding; a fault would part them at larger gaps, or show as a larger error of the engine than of transformers.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from generation import HERE, MAX_NEW, cut, open_both, prompts_of, static_batches
from torch import Tensor

from luthier.core.types import Order
from luthier.generate.engine import Engine
from luthier.models.catalogue import resolve
from luthier.models.voices import Voices
from luthier.tokens.template import ChatEncoder

TOP = 5


def answers_with_likeliest(voices: Voices, encoder: ChatEncoder, prompts: list[tuple[int, ...]], max_new: int) -> list[list[Any]]:
    """The engine's tokens, each with the likeliest at its place: [(token, {spelling: log-probability})]."""
    engine = Engine(voices, encoder, context=8192, base_name="base")
    tickets = [engine.submit(Order(prompt_ids=prompt, max_new_tokens=max_new, num_logprobs=TOP)) for prompt in prompts]
    found: dict[int, list[Any]] = {ticket: [] for ticket in tickets}
    while not engine.idle:
        for piece in engine.step():
            found[piece.ticket] += zip(piece.tokens, (dict(one.likeliest) for one in piece.logprobs), strict=True)
    return [found[ticket] for ticket in tickets]


def read(model: Any, ids: list[int], first: int) -> Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0, first - 1 :].float()


def shares(values: list[float]) -> dict[str, float]:
    """Median, quantiles (the value at or above them) and the largest."""
    ordered = sorted(values)
    higher = {f"p{q}": ordered[min(len(ordered) - 1, q * len(ordered) // 100)] for q in (90, 99)}
    return {name: round(value, 4) for name, value in {"p50": statistics.median(ordered), **higher, "most": ordered[-1]}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "banking77")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    max_new = MAX_NEW["zero-shot"]
    voices, encoder, peer = open_both(torch.bfloat16)
    plain = AutoModelForCausalLM.from_pretrained(resolve("smollm2-135m"), dtype=torch.float32, attn_implementation="sdpa").eval()
    prompts = prompts_of("zero-shot", encoder, options.data, options.rows)
    ours = answers_with_likeliest(voices, encoder, prompts, max_new)
    theirs = static_batches(peer, encoder.eos_ids, max_new, 32)(prompts)
    engine_errors: list[float] = []
    peer_errors: list[float] = []
    top_gaps: list[float] = []
    parted: list[dict[str, Any]] = []
    for prompt, mine, other in zip(prompts, ours, theirs, strict=True):
        tokens = [token for token, _ in mine]
        ids = [*prompt, *tokens]
        exact, rounded = read(plain, ids, len(prompt)), read(peer, ids, len(prompt))
        for t, (_, likeliest) in enumerate(mine):
            a, b = exact[t].topk(2).indices.tolist()
            gap = float(exact[t][a] - exact[t][b])
            top_gaps.append(gap)
            peer_errors.append(abs(float(rounded[t][a] - rounded[t][b]) - gap))
            spelled = [encoder.spell(a), encoder.spell(b)]
            if all(one in likeliest for one in spelled):
                engine_errors.append(abs(likeliest[spelled[0]] - likeliest[spelled[1]] - gap))
        kept = cut(tokens, encoder.eos_ids)
        if kept == other:
            continue
        t = next((n for n, (x, y) in enumerate(zip(kept, other, strict=False)) if x != y), min(len(kept), len(other)))
        end = sorted(encoder.eos_ids)[0]
        a, b = (kept[t] if t < len(kept) else tokens[t]), (other[t] if t < len(other) else end)
        parted.append(
            {
                "place": t,
                "gap": abs(float(exact[t][a] - exact[t][b])),
                "both_likeliest": set(exact[t].topk(2).indices.tolist()) == {a, b},
                "engine_chose_the_better": float(exact[t][a]) > float(exact[t][b]),
            }
        )
    gaps = [one["gap"] for one in parted]
    limit = shares(peer_errors)["most"]
    print(
        json.dumps(
            {
                "items": options.rows,
                "places": len(top_gaps),
                "parted": len(parted),
                "fp32_gap_where_they_part": shares(gaps) if gaps else None,
                "fp32_gap_of_the_two_likeliest_everywhere": shares(top_gaps),
                "error_of_that_gap_in_bf16": {"engine": shares(engine_errors), "transformers": shares(peer_errors)},
                "parted_within_largest_error_of_transformers": sum(gap <= limit for gap in gaps),
                "parted_between_the_two_likeliest": sum(one["both_likeliest"] for one in parted),
                "engine_chose_the_better_of_them": sum(one["engine_chose_the_better"] for one in parted),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
