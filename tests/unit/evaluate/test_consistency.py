"""What is asked again, and how: requests without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from luthier.arms.prompts import Candidate, Shared, with_shots
from luthier.core.types import Example, Generation, GenerationRequest, TaskProfile
from luthier.evaluate import consistency
from luthier.evaluate.consistency import answers_per_item, ask_again, chosen_items
from luthier.evaluate.run import Bench
from luthier.generate.endpoint import Endpoint
from luthier.generate.store import NoStore
from luthier.metrics.catalogue import Scored
from luthier.metrics.consistency import AskedAgain, AskPlan
from luthier.metrics.form import learn_form

PLAN = AskPlan(items=5, samples=3, temperature=0.7, style_rows=0, seed=0)
ITEMS = [
    Example(id=f"i{n}", path="", line=n, kind="instruct", input=f"where is the parcel number {n}", response="card", instruction="Name it.")
    for n in range(20)
]
SHOTS = [
    Example(id=f"s{n}", path="", line=n, kind="instruct", input=f"shot {n}", response="money", instruction="Name it.") for n in range(3)
]


def _bench() -> Bench:
    def score(item: Example, text: str) -> Scored:
        return Scored(values={"exact": float(text == item.response), "label_valid": 1.0})

    return Bench(
        score=score, metric="exact", max_new_tokens=9, stop="", choices=("card", "money"), batch=8, store=NoStore(), clusters={},
        on_progress=lambda label, done, total: None, should_stop=lambda: False,
    )  # fmt: skip


def _ask(
    monkeypatch: pytest.MonkeyPatch,
    plan: AskPlan,
    model: Any = None,
    shots: Sequence[Example] = (),
    paraphrased: Mapping[str, Sequence[str]] | None = None,
) -> tuple[tuple[AskedAgain, ...], list[tuple[Any, GenerationRequest]]]:
    seen: list[tuple[Any, GenerationRequest]] = []

    def answer(model: Any, requests: Sequence[GenerationRequest], bench: Bench, label: str) -> tuple[Generation, ...]:
        seen.extend((model, request) for request in requests)
        return tuple(
            Generation(
                item_id=r.item_id, text="card", finish="stop", num_prompt_tokens=1, num_cached_tokens=0, num_new_tokens=1, latency_s=0.5
            )
            for r in requests
        )

    monkeypatch.setattr(consistency, "answer_all", answer)
    candidate = Candidate(params={}, build=lambda item: with_shots(item, shots, shared=Shared(system="", instruction="Name it.")))
    items = chosen_items(ITEMS, plan)
    profile = TaskProfile(kind="label", evidence="", labels=("card", "money"))
    return ask_again(candidate, items, model, _bench(), plan, learn_form(ITEMS, profile), "arm", paraphrased), seen


def test_fewer_items_lie_within_more() -> None:
    few = chosen_items(ITEMS, PLAN)
    more = chosen_items(ITEMS, AskPlan(items=12, samples=3, temperature=0.7, style_rows=0, seed=0))
    assert len(few) == 5 and {item.id for item in few} < {item.id for item in more}
    assert [item.id for item in few] != [item.id for item in ITEMS[:5]] and chosen_items(ITEMS, PLAN) == few
    assert len(chosen_items(ITEMS, AskPlan(items=99, samples=3, temperature=0.7, style_rows=0, seed=0))) == 20


def test_every_way_once_and_only_samples_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, seen = _ask(monkeypatch, PLAN)
    assert len(asked) == len(seen) == 5 * answers_per_item(PLAN) == 5 * 7
    samples = [request for _, request in seen if request.temperature > 0]
    assert len(samples) == 15 and {request.temperature for request in samples} == {0.7} and len({request.seed for request in samples}) == 15
    assert all(request.choices == ("card", "money") and request.max_new_tokens == 9 for _, request in seen)
    assert {one.way for one in asked} == {"repeat", "reworded", "input"}
    assert all(one.score == 1.0 and one.is_valid == 1.0 and one.latency_s == 0.5 for one in asked)
    assert [one.item_id for one in asked] == [item.id for item in chosen_items(ITEMS, PLAN) for _ in range(7)]


def test_paraphrases_are_asked_greedily_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = chosen_items(ITEMS, PLAN)
    asked, seen = _ask(monkeypatch, PLAN, paraphrased={first.id: ["in other words", "otherwise said"], second.id: ["again"]})
    told = [one for one in asked if one.way == "paraphrased"]
    assert [(one.item_id, one.name, one.shown) for one in told] == [
        (first.id, "paraphrase 1", "in other words"),
        (first.id, "paraphrase 2", "otherwise said"),
        (second.id, "paraphrase 1", "again"),
    ]
    assert len(seen) == 5 * 7 + 3
    assert [request.messages[-1].content for _, request in seen[-3:]] == ["in other words", "otherwise said", "again"]
    assert {request.temperature for _, request in seen[-3:]} == {0.0}


def test_samples_and_temperature_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    _, seen = _ask(monkeypatch, AskPlan(items=2, samples=5, temperature=1.3, style_rows=0, seed=0))
    samples = [request for _, request in seen if request.temperature > 0]
    assert len(samples) == 10 and {request.temperature for request in samples} == {1.3}


def test_few_shot_prompts_are_asked_in_another_order_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, seen = _ask(monkeypatch, PLAN, shots=SHOTS)
    assert sum(one.way == "order" for one in asked) == 5
    plain = [[m.content for m in request.messages if m.role == "user"][:-1] for _, request in seen[:15]]
    other = [[m.content for m in request.messages if m.role == "user"][:-1] for _, request in seen[-5:]]
    assert all(turns == ["shot 0", "shot 1", "shot 2"] for turns in plain)
    assert all(sorted(turns) == plain[0] and turns != plain[0] for turns in other) and other[0] == other[1]


@pytest.mark.parametrize(("own", "sent"), [(0.0, 0.7), (None, None)])
def test_a_server_is_told_the_temperature_unless_it_takes_none(
    monkeypatch: pytest.MonkeyPatch, own: float | None, sent: float | None
) -> None:
    server = Endpoint(url="http://127.0.0.1:1/v1", model="m", name="m at x", temperature=own)
    _, seen = _ask(monkeypatch, PLAN, model=server)
    assert {model.temperature for model, request in seen if request.temperature > 0} == {sent}
    assert {model.temperature for model, request in seen if request.temperature == 0} == {own}
