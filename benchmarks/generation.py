"""Generation against transformers and others, the same prompts, greedy, in turns on two cores.

    python benchmarks/generation.py WORK [--rows 300] [--data DIR]      WORK: 8-shot, zero-shot or single
    python benchmarks/generation.py single --llama PYTHON               … with llama.cpp, see peers/llama_generate.py
    python benchmarks/generation.py WORK --vllm PYTHON                  … with vLLM offline, see peers/vllm_generate.py
    python benchmarks/generation.py table

Each work adds to benchmarks/results/generation.json; `table` writes the table in benchmarks/README.md between its markers.
Prompts are banking77 test items (DIR/train.csv, DIR/test.csv) in the model's chat template; "8-shot" puts one block of eight solved rows
in front of all. Peers: `transformers.generate` with static batches of items sorted by length (left-padded, sdpa), at the batch size that
was fastest on a first part; `generate_batch` (transformers' continuous batching) where it runs. The items are dealt into parts, and
the programs take turns on each part with nothing kept from the part before. On an NVIDIA GPU, where torch finds one, all of it runs there.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from table import FASTEST, environment, kind_of, machine, median, replace_table, shown

from luthier.core.types import Message, Order
from luthier.export.folders import open_merged
from luthier.export.gguf_file import About, write_gguf
from luthier.export.gguf_vocab import read_vocabulary
from luthier.generate.contract import TextEngine
from luthier.generate.engine import Engine
from luthier.generate.llama_engine import LlamaEngine
from luthier.generate.llama_file import LlamaFile, open_in_llama
from luthier.kernels.device import choose_device, device_of, device_words
from luthier.models.backbone import use_layout_attention
from luthier.models.catalogue import resolve
from luthier.models.load import open_model
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.tokens.template import ChatEncoder, open_chat

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "generation.json"
INSTRUCTION = "Classify the intent of this banking customer query. Answer with the intent name only."
MAX_NEW = {"8-shot": 12, "zero-shot": 24, "single": 128}
BATCHES, BATCHES_ON_GPU = (16, 32), (64, 256)
PARTS = 3
LLAMA_TYPES = ("BF16", "F16", "Q8_0")
CONTINUOUS_ROWS = 12  # generate_batch answers so many only: on a CPU it takes seconds an item
THREADS = 2
CONTEXT = 8192
Prompts = list[tuple[int, ...]]
Answers = list[list[int]]
Program = Callable[[Prompts], Answers]


def prompts_of(work: str, encoder: ChatEncoder, data: Path, rows: int) -> Prompts:
    def read(name: str) -> list[dict[str, str]]:
        with (data / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    solved = random.Random(0).sample(read("train.csv"), 8)
    items = random.Random(1).sample(read("test.csv"), rows)
    block = "".join(f"Query: {row['text'].strip()}\nIntent: {row['category']}\n\n" for row in solved) if work == "8-shot" else ""
    texts = [f"{INSTRUCTION}\n\n{block}Query: {row['text'].strip()}\nIntent:" for row in items]
    if work == "single":
        texts = [f"Tell me a long story about this: {row['text'].strip()}" for row in items]
    return [encoder.encode_prompt((Message(role="user", content=text),)) for text in texts]


def cut(ids: list[int], eos: frozenset[int]) -> list[int]:
    return next((ids[:n] for n, token in enumerate(ids) if token in eos), ids)


def ours(voices: Voices, encoder: ChatEncoder, max_new: int) -> Program:
    return lambda prompts: answered_by(Engine(voices, encoder, context=CONTEXT, base_name="base"), prompts, encoder, max_new)


def answered_by(engine: TextEngine, prompts: Prompts, encoder: ChatEncoder, max_new: int) -> Answers:
    tickets = [engine.submit(Order(prompt_ids=prompt, max_new_tokens=max_new)) for prompt in prompts]
    found: dict[int, list[int]] = {}
    while not engine.idle:
        for piece in engine.step():
            found.setdefault(piece.ticket, []).extend(piece.tokens)
    return [cut(found[ticket], encoder.eos_ids) for ticket in tickets]


def static_batches(model: Any, eos: frozenset[int], max_new: int, batch: int) -> Program:
    def run(prompts: Prompts) -> Answers:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            longest = max(len(prompts[i]) for i in part)
            ids = torch.tensor([[0] * (longest - len(prompts[i])) + list(prompts[i]) for i in part], device=model.device)
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in part], device=model.device)
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=max_new, do_sample=False, pad_token_id=0, eos_token_id=sorted(eos)
            )
            found |= {i: cut(row[longest:].tolist(), eos) for i, row in zip(part, out, strict=True)}
        return [found[i] for i in range(len(prompts))]

    return run


def continuous(model: Any, eos: frozenset[int], max_new: int) -> Program:
    def run(prompts: Prompts) -> Answers:
        from transformers import GenerationConfig

        config = GenerationConfig(max_new_tokens=max_new, do_sample=False, eos_token_id=sorted(eos), pad_token_id=0)
        out = model.generate_batch(inputs=[list(prompt) for prompt in prompts], generation_config=config, progress_bar=False)
        return [cut(list(result.generated_tokens), eos) for result in out.values()]

    return run


TOOK_S: list[float] = []  # a program in a process of its own says itself how long it took: starting it is not counted


def openvino(gguf: Path, packages: Path, eos: frozenset[int], max_new: int) -> Program:
    def run(prompts: Prompts) -> Answers:
        given = {"gguf": str(gguf), "packages": str(packages), "prompts": prompts, "max_new_tokens": max_new, "eos": sorted(eos)}
        script = HERE / "peers" / "openvino_generate.py"
        done = subprocess.run([sys.executable, script], input=json.dumps(given), stdout=subprocess.PIPE, text=True, check=True, timeout=180)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        TOOK_S.append(found["s"])
        return [cut(answer, eos) for answer in found["answers"]]

    return run


def llama_cpp(gguf: Path, python: Path, eos: frozenset[int], max_new: int) -> Program:
    def run(prompts: Prompts) -> Answers:
        child = HERE.parent / "src" / "luthier" / "generate"
        given = {
            "gguf": str(gguf),
            "child": str(child),
            "prompts": prompts,
            "max_new_tokens": max_new,
            "eos": sorted(eos),
            "threads": THREADS,
        }
        command = [python, "-E", HERE / "peers" / "llama_generate.py"]
        done = subprocess.run(
            command, input=json.dumps(given), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, timeout=600
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
        TOOK_S.append(found["s"])
        return [cut(answer, eos) for answer in found["answers"]]

    return run


def vllm(python: Path, dtype: torch.dtype, eos: frozenset[int], max_new: int, *, single: bool) -> Program:
    """vLLM offline, opened anew for each call: nothing is kept, and opening it is not counted."""
    about = {"model": str(resolve("smollm2-135m")), "dtype": str(dtype).removeprefix("torch."), "single": single, "context": CONTEXT}
    openmp = python.parent.parent / "lib" / "libiomp5.so"  # of its builds for processors
    environment = {**os.environ, **({"LD_PRELOAD": str(openmp)} if openmp.is_file() else {})}

    def run(prompts: Prompts) -> Answers:
        given = {**about, "prompts": prompts, "max_new_tokens": max_new, "eos": sorted(eos), "threads": THREADS}
        command = [python, HERE / "peers" / "vllm_generate.py"]
        done = subprocess.run(
            command, input=json.dumps(given), stdout=subprocess.PIPE, text=True, check=True, timeout=1800, env=environment
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
        TOOK_S.append(found["s"])
        return [cut(answer, eos) for answer in found["answers"]]

    return run


def by_llama(file: LlamaFile, encoder: ChatEncoder, max_new: int) -> Program:
    """`luthier chat --gguf`: an engine of its own for each call, so that nothing read before is kept."""
    return lambda prompts: answered_by(
        LlamaEngine(lambda: file, encoder, name="base", context=CONTEXT, num_rows=1), prompts, encoder, max_new
    )


def written_as_gguf(storage: str, folder: Path) -> Path:
    """The model of this benchmark as a GGUF file, by Luthier's own writer."""
    path, encoder = resolve("smollm2-135m"), open_chat(open_tokenizer(resolve("smollm2-135m")))
    model = open_merged(path, None)
    vocabulary = read_vocabulary(encoder, num_rows=int(model.config.vocab_size), where="smollm2-135m")
    about = About(name="smollm2-135m", base_model="smollm2-135m", licence="Apache-2.0", description="benchmark")
    write_gguf(model, vocabulary, folder / f"{storage}.gguf", storage=storage, about=about)
    return folder / f"{storage}.gguf"


def one_by_one(program: Program) -> Program:
    return lambda prompts: [answer for prompt in prompts for answer in program([prompt])]


def timed(program: Program, prompts: Prompts, max_new: int) -> tuple[dict[str, Any], Answers]:
    started = time.perf_counter()
    try:
        answers = program(prompts)
    except Exception as error:  # a peer that does not run here is a result too
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}, []
    wall_s = TOOK_S.pop() if TOOK_S else time.perf_counter() - started
    num_new = sum(min(len(answer) + 1, max_new) for answer in answers)  # the end token was computed too
    return {"s": wall_s, "items_per_s": len(prompts) / wall_s, "new_tokens_per_s": num_new / wall_s}, answers


def open_both(dtype: torch.dtype) -> tuple[Voices, ChatEncoder, Any]:
    from transformers import AutoModelForCausalLM

    path, device = resolve("smollm2-135m"), choose_device("auto")
    model = open_model(path, dtype=dtype, device=device)
    use_layout_attention(model)
    peer = AutoModelForCausalLM.from_pretrained(path, dtype=peers_dtype(dtype, device), attn_implementation="sdpa")
    return Voices(model), open_chat(open_tokenizer(path)), peer.to(device).eval()


def peers_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """bf16 by torch's own products is no contest on a processor that has none."""
    return FASTEST if dtype == torch.bfloat16 and device.type == "cpu" else dtype


def same_in_fp32(work: str, data: Path, vllm_python: Path | None) -> dict[str, int]:
    """Greedy answers in 32 bits, where rounding hides nothing: how many of some items are the same tokens, in transformers and in vLLM."""
    voices, encoder, peer = open_both(torch.float32)
    prompts, eos, max_new = prompts_of(work, encoder, data, 12), encoder.eos_ids, MAX_NEW[work]
    found = ours(voices, encoder, max_new)(prompts)
    peers = {"same": static_batches(peer, eos, max_new, 12)}
    if vllm_python is not None:
        peers["same_in_vllm"] = vllm(vllm_python, torch.float32, eos, max_new, single=False)
    answers = {name: program(prompts) for name, program in peers.items()}
    TOOK_S.clear()
    return {"n": len(prompts), **{name: sum(a == b for a, b in zip(found, of, strict=True)) for name, of in answers.items()}}


def measure(work: str, data: Path, rows: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    voices, encoder, peer = open_both(torch.bfloat16)
    max_new, eos, device = MAX_NEW[work], encoder.eos_ids, device_of(peer)
    prompts = prompts_of(work, encoder, data, rows)
    result: dict[str, Any] = {"rows": rows, "max_new_tokens": max_new, "prompt_tokens": sum(map(len, prompts)), "programs": {}}
    programs = {"luthier": ours(voices, encoder, max_new), "transformers.generate": static_batches(peer, eos, max_new, 1)}
    if work == "single":
        programs = {name: one_by_one(program) for name, program in programs.items()}
        if options.openvino is not None:
            programs["OpenVINO GenAI, 8-bit weights"] = openvino(written_as_gguf("Q8_0", folder), options.openvino, eos, max_new)
        for storage in LLAMA_TYPES if options.llama is not None else ():
            gguf = written_as_gguf(storage, folder)
            programs[f"llama.cpp, {storage}"] = llama_cpp(gguf, options.llama, eos, max_new)
        if options.llama is not None:
            file = open_in_llama(str(options.llama), folder / "Q8_0.gguf", num_positions=CONTEXT)
            atexit.register(file.close)
            programs["luthier --gguf, Q8_0"] = one_by_one(by_llama(file, encoder, max_new))
    else:
        programs["transformers.generate_batch"] = continuous(peer, eos, max_new)
        batches = BATCHES if device.type == "cpu" else BATCHES_ON_GPU
        trial = {batch: timed(static_batches(peer, eos, max_new, batch), prompts[:batch], max_new)[0] for batch in batches}
        best = max(trial, key=lambda batch: trial[batch]["items_per_s"])
        result["batch"] = {"tried": {str(batch): round(run["items_per_s"], 2) for batch, run in trial.items()}, "used": best}
        programs["transformers.generate"] = static_batches(peer, eos, max_new, best)
    if options.vllm is not None:
        programs["vLLM, offline"] = vllm(options.vllm, peers_dtype(torch.bfloat16, device), eos, max_new, single=work == "single")
    for program in (program for name, program in programs.items() if name in ("luthier", "transformers.generate", "luthier --gguf, Q8_0")):
        program(prompts[:1])  # what is made once
    same = 0
    for part in range(PARTS):
        mine = prompts[part::PARTS]
        answers: dict[str, Answers] = {}
        for name, program in programs.items():
            runs = result["programs"].setdefault(name, [])
            is_slow = name == "transformers.generate_batch"
            if not any("failed" in run for run in runs) and not (is_slow and part):
                run, answers[name] = timed(program, mine[:CONTINUOUS_ROWS] if is_slow else mine, max_new)
                runs.append(run)
                print(f"{work} {part + 1}/{PARTS} {name}: {run}", file=sys.stderr)
        same += sum(a == b for a, b in zip(answers["luthier"], answers["transformers.generate"], strict=True))
    about = {**environment(), **({} if device.type == "cpu" else {"gpu": device_words(device)})}
    return {**result, "same_answers": same, "fp32": same_in_fp32(work, data, options.vllm), "environment": about}


def write_table() -> None:
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = [(work, kind_of(result["environment"]), result) for work, found in results.items() for result in found.values()]
    lines = ["| work | products | program | items/s | new tokens/s | Luthier is … times as fast |", "|---|---|---|---|---|---|"]
    for work, kind, result in rows:
        ours_runs = result["programs"]["luthier"]
        for name, runs in result["programs"].items():
            mine, theirs = median(ours_runs, "items_per_s"), median(runs, "items_per_s")
            times = f"{mine / theirs:.1f}" if name != "luthier" and mine and theirs else ""
            cells = (shown(runs, "items_per_s", ".2f"), shown(runs, "new_tokens_per_s", ".0f"))
            lines.append(f"| {work} | {kind} | {name} | {cells[0]} | {cells[1]} | {times} |")
    lines.append("")
    for work, kind, result in rows:
        batch = result.get("batch")
        used = f"static batches of {batch['used']} (items/s of one batch: {batch['tried']}); " if batch else ""
        fp32, machine = result["fp32"], "; ".join(f"{key}: {value}" for key, value in result["environment"].items())
        about = (
            f"{work}, {kind}: {result['rows']} items, {result['prompt_tokens']:,} prompt tokens, up to {result['max_new_tokens']} new ones"
        )
        same = f"same answers in bf16 {result['same_answers']} of {result['rows']}, in fp32 {fp32['same']} of {fp32['n']}"
        same += f" (in vLLM {fp32['same_in_vllm']})" if "same_in_vllm" in fp32 else ""
        lines.append(f"{about}; {used}{same}. {machine}.")
        lines.append("")
    replace_table("generation", [*lines, f"bf16, {THREADS} threads."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=[*MAX_NEW, "table"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "banking77")
    parser.add_argument("--llama", type=Path, help="single: a Python that has llama.cpp (see peers/llama_generate.py)")
    parser.add_argument("--openvino", type=Path, help="single: the folder its packages were installed to (see peers/openvino_generate.py)")
    parser.add_argument("--vllm", type=Path, help="a Python that has vLLM (see peers/vllm_generate.py)")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    if options.work != "table":
        rows = options.rows or (6 if options.work == "single" else 300)
        results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        with tempfile.TemporaryDirectory() as folder:
            found = measure(options.work, options.data, rows, options, Path(folder))
        results.setdefault(options.work, {})[machine(found["environment"])] = found
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if RESULT.is_file():
        write_table()


if __name__ == "__main__":
    main()
