"""What holding answers to a JSON schema changes: the same items, free and held, for prompted and tuned arms of a trained run.

    python benchmarks/schema_held.py RUN --items 24

Prints, for each arm, how many answers are valid, their mean score over the reference's fields, how many were cut off, how many of the
answers that kept the schema anyway are the same text when held, and the seconds of each.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from luthier.arms.catalogue import plan_arms
from luthier.core.types import Example, GenerationRequest
from luthier.data.answer_schema import keeps_schema, learn_schema
from luthier.data.profile import profile_task
from luthier.generate.local import LocalModel, generate
from luthier.generate.store import NoStore
from luthier.metrics.structure import json_fields, json_valid
from luthier.models.catalogue import resolve
from luthier.pipeline.open import open_local, open_tuned
from luthier.store.layout import RunFolder
from luthier.train.precision import choose_precision


def _rows(folder: RunFolder, name: str) -> tuple[Example, ...]:
    adapter = TypeAdapter(Example)
    return tuple(adapter.validate_json(line) for line in folder.split_file(name).read_text(encoding="utf-8").splitlines())


def main() -> None:
    """One line an arm and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--arms", nargs="+", default=["zero-shot", "instructed", "few-shot retrieved", "tuned"])
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--model", default="smollm2-135m")
    given = parser.parse_args()
    folder = RunFolder(given.run)
    train, test = _rows(folder, "train"), _rows(folder, "test")[: given.items]
    profile = profile_task(train)
    schema = learn_schema(train, profile)
    precision = choose_precision("auto")
    arms = {arm.name: arm for arm in plan_arms(train, profile, seed=0, shots=(2,), max_prompt_chars=3000)}
    plans: list[tuple[str, LocalModel, str]] = []
    for name in given.arms:
        is_tuned = name == "tuned"
        model = open_tuned(folder, resolve(given.model), precision) if is_tuned else open_local(resolve(given.model), precision)
        plans.append((name, model, "zero-shot" if is_tuned else name))
    write = partial(generate, batch=16, store=NoStore(), on_progress=lambda done, total: None)
    for name, model, prompt in plans:
        candidate = arms[prompt].candidates[0]
        texts: dict[str, list[str]] = {}
        for way in ("free", "held"):
            asked = [
                GenerationRequest(
                    item_id=item.id,
                    messages=candidate.build(item),
                    max_new_tokens=given.max_new_tokens,
                    json_schema=schema.text if way == "held" else "",
                )
                for item in test
            ]
            started = time.perf_counter()
            found = write(model, asked)
            seconds = time.perf_counter() - started
            texts[way] = [one.text for one in found]
            valid = sum(json_valid(text, profile) for text in texts[way])
            fields = sum(json_fields(text, item.response, profile) or 0.0 for text, item in zip(texts[way], test, strict=True))
            cut, tokens = sum(one.finish == "length" for one in found), sum(one.num_new_tokens or 0 for one in found)
            print(f"{name:20} {way}: valid {valid:.0f}/{len(test)}, fields {100 * fields / len(test):.1f}, cut off {cut}, ", end="")
            print(f"{tokens} tokens, {seconds:.1f} s")
        kept = [i for i, text in enumerate(texts["free"]) if keeps_schema(text, json.loads(schema.text))]
        same = sum(texts["free"][i] == texts["held"][i] for i in kept)
        print(f"{name:20} kept the schema anyway: {len(kept)}, of these the same when held: {same}")


if __name__ == "__main__":
    main()
