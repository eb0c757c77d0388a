"""llama.cpp on the prompts of benchmarks/generation.py, in a process of its own: one after another, greedily, on two threads.

    echo '{"gguf": FILE, "child": FOLDER, "prompts": [[ids]], "max_new_tokens": 128, "eos": [2], "threads": 2}' | PYTHON llama_generate.py

PYTHON has llama-cpp-python, built for this machine (CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python), or llama-cpp-py-sync.
FOLDER holds `llama_child.py` of Luthier, which drives both. Tokens are chosen by llama.cpp's own greedy sampler. Writes {"s", "answers",
"program"}; what was made once, and reading the weights for the first time, is not counted.
"""

from __future__ import annotations

import json
import sys
import time

given = json.loads(sys.stdin.read())
sys.path.insert(0, given["child"])

import llama_child  # noqa: E402

longest = max(map(len, given["prompts"])) + given["max_new_tokens"] + 1
program = llama_child.Program(llama_child.open_binding(), given["gguf"], longest, 1, given["threads"])
eos = set(given["eos"])


def likeliest(kept: int, ids: list[int]) -> int:
    """The next token behind what was kept of the text and `ids`."""
    [token], _ = program.step([(0, kept, ids, "token")])
    return token


def answer(prompt: list[int], new: int) -> list[int]:
    out = [likeliest(0, prompt)]
    while len(out) < new and out[-1] not in eos:
        out.append(likeliest(len(prompt) + len(out) - 1, out[-1:]))
    return out


answer(given["prompts"][0], 4)
started = time.perf_counter()
answers = [answer(prompt, given["max_new_tokens"]) for prompt in given["prompts"]]
print(json.dumps({"s": time.perf_counter() - started, "answers": answers, "program": program.about["program"]}))
