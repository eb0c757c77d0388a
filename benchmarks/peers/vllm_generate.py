"""vLLM offline on the prompts of benchmarks/generation.py, in a process of its own: all at once or one after another, greedily.

    echo '{"model": FOLDER, "prompts": [[ids]], "max_new_tokens": 12, "eos": [2], "dtype": "bfloat16", "single": false, "context": 8192,
           "threads": 2}' | PYTHON vllm_generate.py

PYTHON has vLLM: for a processor as requirements-vllm.txt says, for a GPU as vLLM's own documentation says. `vllm.LLM.generate` with its
prefix cache on, as compiled as it is by default. Writes {"s", "answers", "program"}; opening it is not counted, nor what the first prompt
has it make, and of that one nothing stays in the prefix cache.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

given = json.loads(sys.stdin.read())
out, sys.stdout = sys.stdout, sys.stderr  # vLLM writes to standard output
os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

import torch  # noqa: E402

if not torch.cuda.is_available():  # what it does with a processor it does on as many threads as the others
    os.environ |= {"OMP_NUM_THREADS": str(given["threads"]), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "4"}
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if openmp.is_file() and str(openmp) not in os.environ.get("LD_PRELOAD", ""):  # its build for processors wants it before all else
        sys.exit(f"start it with LD_PRELOAD={openmp}")

import vllm  # noqa: E402

llm = vllm.LLM(
    model=given["model"],
    dtype=given["dtype"],
    max_model_len=given["context"],
    generation_config="vllm",
    enable_prefix_caching=True,
    gpu_memory_utilization=0.5,  # beside the other programs
    seed=0,
)


def answer(prompts: list[list[int]], new: int) -> list[list[int]]:
    params = vllm.SamplingParams(temperature=0.0, max_tokens=new, stop_token_ids=given["eos"], ignore_eos=True, detokenize=False)
    found = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(one.outputs[0].token_ids) for one in found]


answer(given["prompts"][:1], 4)
if not llm.reset_prefix_cache():
    sys.exit("the prefix cache could not be emptied")
new = given["max_new_tokens"]
started = time.perf_counter()
answers = [answer([prompt], new)[0] for prompt in given["prompts"]] if given["single"] else answer(given["prompts"], new)
seconds = time.perf_counter() - started
print(json.dumps({"s": seconds, "answers": answers, "program": f"vLLM {vllm.__version__}"}), file=out)
