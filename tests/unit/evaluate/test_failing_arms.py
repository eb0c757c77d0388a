"""An arm that fails is returned as failed, with its reason and without a score; the effort it has cost is still counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.fixtures.fake_server import Answer, fake_server

from luthier.arms.prompts import Arm, Candidate, zero_shot
from luthier.core.errors import InputError
from luthier.core.types import Example, Generation
from luthier.evaluate import run
from luthier.evaluate.choice import choose_candidate
from luthier.evaluate.run import Bench, measure, measure_latencies
from luthier.generate.endpoint import Endpoint
from luthier.metrics.catalogue import Scored

ITEMS = tuple(
    Example(id=f"i{n}", path="t", line=n, kind="instruct", input=f"item {n}", response="card" if n % 2 else "money") for n in range(6)
)


class _Memory(dict[str, Generation]):
    def put(self, key: str, generation: Generation) -> None:
        self[key] = generation


def _bench() -> Bench:
    return Bench(
        score=lambda item, text: Scored(values={"exact": float(text == item.response)}, note=""), metric="exact", max_new_tokens=5, stop="",
        choices=(), batch=4, store=_Memory(), clusters={}, on_progress=lambda label, done, total: None, should_stop=lambda: False,
    )  # fmt: skip


def _arm(num_candidates: int = 2) -> Arm:
    ways = tuple(Candidate(params={"way": str(n)}, build=zero_shot, prompt_chars=n) for n in range(num_candidates))
    return Arm(name="a", family="prompt", model="base", description="", candidates=ways)


def _endpoint(url: str) -> Endpoint:
    return Endpoint(url=url, model="m", name="m at fake", concurrency=1, retries=0, backoff_s=0.01)


def test_a_server_that_fails_on_dev_fails_the_arm() -> None:
    with fake_server(lambda request, number: Answer() if number < 3 else Answer(status=429)) as server:
        model, bench = _endpoint(server.url), _bench()
        chosen = choose_candidate(_arm(), ITEMS, model, bench)
        result = measure(_arm(), chosen, ITEMS, model, bench, model_name="m at fake")
    assert chosen.candidate is None and chosen.dev_score is None and "429" in (chosen.failed or "")
    assert result.failed == chosen.failed and result.items == () and result.dev_score is None
    assert len(server.seen) == 4  # neither the second candidate nor a test item was asked


def test_a_server_that_fails_on_test_leaves_no_half_score() -> None:
    with fake_server(lambda request, number: Answer() if number < 3 else Answer(status=400, body=b"no")) as server:
        model, bench = _endpoint(server.url), _bench()
        chosen = choose_candidate(_arm(1), ITEMS[:2], model, bench)
        result = measure(_arm(1), chosen, ITEMS, model, bench, model_name="m at fake")
    assert chosen.dev_score == 0.5 and "400: no" in (result.failed or "") and result.items == ()


def test_what_the_server_did_is_in_the_result() -> None:
    def script(request: dict, number: int) -> Answer:
        return (
            Answer(status=500)
            if number == 0
            else Answer(text="card", model="m-2026-01-01", usage={"prompt_tokens": 50, "completion_tokens": 2})
        )

    with fake_server(script) as server:
        model = Endpoint(url=server.url, model="m", name="m at fake", concurrency=1, retries=1, backoff_s=0.01)
        bench = _bench()
        chosen = choose_candidate(_arm(1), ITEMS[:2], model, bench)
        result = measure(_arm(1), chosen, ITEMS, model, bench, model_name="m at fake")
    assert result.effort["num_retries"] == 1 and result.effort["num_test_retries"] == 1  # the first answer serves both sets
    assert result.effort["num_prompt_tokens"] == 100 and result.effort["num_dev_evaluations"] == 2
    assert result.params["answered by"] == "m-2026-01-01" and len(result.latencies_s) == 6 and result.peak_mem_gib is None
    assert sum(item.values["exact"] or 0 for item in result.items) == 3


def test_effort_without_token_counts_says_nothing_of_tokens() -> None:
    with fake_server(lambda request, number: Answer(usage=None)) as server:
        chosen = choose_candidate(_arm(1), ITEMS, _endpoint(server.url), _bench())
    assert "num_prompt_tokens" not in chosen.effort.as_mapping() and chosen.effort.as_mapping()["num_dev_evaluations"] == 6


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_memory_that_runs_out_fails_the_arm_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    tried: list[object] = []

    def generate(*_args: object, batch: int, **_named: object) -> None:
        tried.append(batch)
        raise error

    monkeypatch.setattr(run, "generate", generate)
    chosen = choose_candidate(_arm(), ITEMS, object(), _bench())  # type: ignore[arg-type]
    assert tried == [4, 2, 1] * 2 and "memory ran out while one prompt was answered" in (chosen.failed or "")

    def broken(*_args: object, **_named: object) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(run, "generate", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        choose_candidate(_arm(), ITEMS, object(), _bench())  # type: ignore[arg-type]


def test_memory_that_runs_out_while_waits_are_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def single(*_args: object) -> Iterator[None]:
        raise MemoryError
        yield

    monkeypatch.setattr(run, "single_latencies", single)
    monkeypatch.setattr(run, "shared_prefix", lambda *_args: None)
    plans = [("tuned", _arm().candidates[0], object())]
    with pytest.raises(InputError, match="memory ran out while one prompt was answered") as found:
        measure_latencies(plans, ITEMS, max_new_tokens=4, stop="", choices=(), on_progress=lambda done, total: None)  # type: ignore[arg-type]
    assert "tuned: one request at a time" in str(found.value)
