"""Counters in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/).

Written here in sixty lines rather than with prometheus-client, whose global registry two servers in one process (the tests) would share.
Labels hold only what this program wrote itself: route, status, reason, the names of the models served.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/healthz", "/metrics"})
METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"})

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Histogram:
    """Seconds in buckets."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total_s += seconds


@dataclass(slots=True)
class Metrics:
    """What a server has done since it started. Changed on the event loop only."""

    requests: Counter[Labels] = field(default_factory=Counter[Labels])  # by route, method and status
    refused: int = 0  # for a full queue
    cancelled: int = 0  # answers whose client left
    prompt_tokens: Counter[Labels] = field(default_factory=Counter[Labels])  # by model
    cached_tokens: Counter[Labels] = field(default_factory=Counter[Labels])
    new_tokens: Counter[Labels] = field(default_factory=Counter[Labels])
    first_token: Histogram = field(default_factory=Histogram)
    whole: Histogram = field(default_factory=Histogram)

    def count(self, method: str, path: str, status: int) -> None:
        """Count a request. What a client made up is counted as "other": labels must not grow with what it sends."""
        route = path if path in ROUTES else "/v1/models/{model}" if path.startswith("/v1/models/") else "other"
        self.requests[(("route", route), ("method", method if method in METHODS else "other"), ("status", str(status)))] += 1

    def render(self, *, live: int, limit: int) -> str:
        """All of it as text."""
        lines: list[str] = []
        _family(lines, "requests_total", "counter", "HTTP requests by route, method and status.", self.requests)
        _family(lines, "queue_refused_total", "counter", "Requests refused because the queue was full.", {(): self.refused})
        _family(lines, "cancelled_total", "counter", "Requests whose client left before its answer was whole.", {(): self.cancelled})
        _family(lines, "prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens)
        _family(lines, "prompt_tokens_cached_total", "counter", "Those of them that were not computed again.", self.cached_tokens)
        _family(lines, "new_tokens_total", "counter", "Tokens written.", self.new_tokens)
        _family(lines, "answers_live", "gauge", "Answers being written or waiting.", {(): live})
        _family(lines, "answers_limit", "gauge", "Answers taken at once before requests are refused.", {(): limit})
        _histogram(lines, "time_to_first_token_seconds", "From the request to the first token.", self.first_token)
        _histogram(lines, "request_seconds", "From the request to the end of its answer.", self.whole)
        return "\n".join(lines) + "\n"


def _family(lines: list[str], name: str, kind: str, text: str, values: Mapping[Labels, float]) -> None:
    lines += [f"# HELP luthier_{name} {text}", f"# TYPE luthier_{name} {kind}"]
    lines += [f"luthier_{name}{_labels(labels)} {value}" for labels, value in sorted(values.items())]


def _histogram(lines: list[str], name: str, text: str, histogram: Histogram) -> None:
    lines += [f"# HELP luthier_{name} {text}", f"# TYPE luthier_{name} histogram"]
    seen = 0
    for bound, count in zip([*(f"{s:g}" for s in SECONDS), "+Inf"], histogram.counts, strict=True):
        seen += count
        lines.append(f'luthier_{name}_bucket{{le="{bound}"}} {seen}')
    lines += [f"luthier_{name}_sum {histogram.total_s:.6f}", f"luthier_{name}_count {seen}"]


def _labels(labels: Sequence[tuple[str, str]]) -> str:
    def escape(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels) + "}" if labels else ""
