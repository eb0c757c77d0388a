"""OpenVINO GenAI on the prompts of benchmarks/generation.py, in a process of its own: one after another, greedily, on two threads.

    echo '{"gguf": FILE, "packages": FOLDER, "prompts": [[ids], …], "max_new_tokens": 128, "eos": [2]}' | python openvino_generate.py

FOLDER: pip install --no-deps --target FOLDER openvino openvino-genai openvino-tokenizers (measured: 2026.4.1). Writes {"s", "answers"}.
Its GGUF reader takes Q8_0 but neither F16 (it ends with a floating point exception) nor BF16, so its weights have 8 bits.
"""

from __future__ import annotations

import json
import sys
import time

given = json.loads(sys.stdin.read())
sys.path.insert(0, given["packages"])

import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
import openvino_genai as genai  # noqa: E402

pipe = genai.LLMPipeline(given["gguf"], "CPU", INFERENCE_NUM_THREADS=2)
config = genai.GenerationConfig()
config.max_new_tokens, config.do_sample, config.stop_token_ids = given["max_new_tokens"], False, set(given["eos"])


def answer(prompt: list[int], new: int) -> list[int]:
    ids = ov.Tensor(np.array([prompt], dtype=np.int64))
    config.max_new_tokens = new
    return list(pipe.generate(genai.TokenizedInputs(ids, ov.Tensor(np.ones((1, len(prompt)), dtype=np.int64))), config).tokens[0])


answer(given["prompts"][0], 4)
started = time.perf_counter()
answers = [answer(prompt, given["max_new_tokens"]) for prompt in given["prompts"]]
print(json.dumps({"s": time.perf_counter() - started, "answers": answers}))
