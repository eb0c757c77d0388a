"""The search of an arm on dev: an order is found where it matters, within the answers that the candidates alone would have cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.fixtures.fake_server import Answer, fake_server

from luthier.arms.catalogue import plan_arms
from luthier.arms.prompts import Arm
from luthier.arms.search import Chosen, find_candidate, num_orders
from luthier.core.errors import InputError, RunError
from luthier.core.types import Example, Generation, TaskProfile
from luthier.evaluate import choice
from luthier.evaluate.choice import choose_candidate
from luthier.evaluate.run import Bench
from luthier.generate.endpoint import Endpoint
from luthier.metrics.catalogue import Scored

LABELS = ("card", "money", "close")
Messages = list[dict[str, str]]


def _row(n: int) -> Example:
    return Example(id=f"{n:03d}", path="t", line=n, kind="instruct", input=f"text number {n}", response=LABELS[n % 3])


TRAIN = tuple(_row(n) for n in range(30))
DEV = tuple(_row(n) for n in range(100, 112))


class _Memory(dict[str, Generation]):
    def put(self, key: str, generation: Generation) -> None:
        self[key] = generation


def _bench(store: _Memory | None = None, should_stop: Callable[[], bool] = lambda: False) -> Bench:
    return Bench(
        score=lambda item, text: Scored(values={"exact": float(text == item.response)}, note=""), metric="exact", max_new_tokens=5, stop="",
        choices=(), batch=4, store=_Memory() if store is None else store, clusters={}, on_progress=lambda label, done, total: None,
        should_stop=should_stop,
    )  # fmt: skip


def _arm(shots: tuple[int, ...] = (3, 4, 5)) -> Arm:
    arms = plan_arms(TRAIN, TaskProfile(kind="label", evidence="", labels=LABELS), seed=0, shots=shots, max_prompt_chars=9_000)
    return next(arm for arm in arms if arm.name == "few-shot")


def _last_shot(messages: Messages) -> str:
    return messages[-3]["content"]


def _model(knows: Callable[[Messages, int], bool]) -> Callable[[dict, int], Answer]:
    """Answers rightly what it knows, given its prompt and the number of the item."""

    def script(request: dict, number: int) -> Answer:
        n = int(request["messages"][-1]["content"].split()[-1])
        return Answer(text=LABELS[n % 3] if knows(request["messages"], n) else "?")

    return script


def _search(arm: Arm, script: Callable[[dict, int], Answer], bench: Bench | None = None) -> tuple[Chosen, int]:
    with fake_server(script) as server:
        model = Endpoint(url=server.url, model="m", name="m", concurrency=1, retries=0, backoff_s=0.01)
        return choose_candidate(arm, DEV, model, bench or _bench()), len(server.seen)


def test_the_order_that_matters_is_found_in_an_unchanged_budget() -> None:
    arm = _arm()
    first_shot = arm.candidates[0].build(DEV[0])[0].content  # last only where another order puts it there
    chosen, num_asked = _search(arm, _model(lambda messages, n: _last_shot(messages) == first_shot or n % 2 == 0))
    assert chosen.candidate is not None and chosen.candidate.params == {"k": "3", "draw": "1", "order": "reversed"}
    assert chosen.dev_score == 1.0 and chosen.dev_n == 12
    assert num_asked == chosen.effort.num_dev_evaluations == len(arm.candidates) * len(DEV) == 72
    assert chosen.effort.num_candidates == len(chosen.tried) == 10  # 6 draws and 4 orders
    assert [one.params["order"] for one in chosen.tried[:6]] == ["as drawn"] * 6
    assert [one.dev_n for one in chosen.tried].count(12) == 2 and sum(one.dev_n for one in chosen.tried) == 72
    told = next(one for one in chosen.tried if one.params == chosen.candidate.params)
    assert told.dev_score == 1.0 and told.num_prompt_tokens == 12 * 40 and told.num_new_tokens == 12 * 3
    assert sum(one.seconds for one in chosen.tried) == pytest.approx(chosen.effort.seconds)
    assert find_candidate(arm, {**chosen.candidate.params, "answers": "free"}).build(DEV[0]) == chosen.candidate.build(DEV[0])


def test_what_is_as_good_stays_as_drawn() -> None:
    chosen, _ = _search(_arm(), _model(lambda messages, n: n % 2 == 0))
    assert chosen.candidate is not None and chosen.candidate.params == {"k": "3", "draw": "1", "order": "as drawn"}
    assert chosen.dev_score == 0.5


def test_the_second_half_can_overturn_the_first() -> None:
    """An order that shines on half of the items alone is not chosen: finalists are compared on all of them."""
    arm = _arm()
    first_shot = arm.candidates[0].build(DEV[0])[0].content

    def knows(messages: Messages, n: int) -> bool:
        return n < 106 if _last_shot(messages) == first_shot else n > 101

    chosen, _ = _search(arm, _model(knows))
    assert chosen.candidate is not None and chosen.candidate.params["order"] == "as drawn" and chosen.dev_score == pytest.approx(10 / 12)


def test_without_other_orders_all_candidates_are_scored_on_all_items() -> None:
    chosen, num_asked = _search(_arm((1, 2)), _model(lambda messages, n: True))
    assert num_asked == chosen.effort.num_dev_evaluations == 48
    assert [one.dev_n for one in chosen.tried] == [12, 12, 12, 12]  # the best has one example, and the others take its part
    one_shot, _ = _search(_arm((1,)), _model(lambda messages, n: True))
    assert one_shot.candidate is not None and dict(one_shot.candidate.params) == {"k": "1", "draw": "1"}


@pytest.mark.parametrize("num_items", [1, 2, 3, 7])
@pytest.mark.parametrize("shots", [(2,), (3,), (2, 3), (2, 3, 4, 5)])
def test_never_more_answers_than_the_candidates_alone(num_items: int, shots: tuple[int, ...]) -> None:
    arm = _arm(shots)
    with fake_server(_model(lambda messages, n: n % 2 == 0)) as server:
        model = Endpoint(url=server.url, model="m", name="m", concurrency=1, retries=0, backoff_s=0.01)
        chosen = choose_candidate(arm, DEV[:num_items], model, _bench())
    budget = len(arm.candidates) * num_items
    assert budget - num_orders(len(arm.candidates)) <= chosen.effort.num_dev_evaluations <= budget
    assert chosen.dev_n == num_items and max(one.dev_n for one in chosen.tried) == num_items


def test_a_search_that_was_stopped_goes_on_and_ends_as_if_it_had_not() -> None:
    arm = _arm()
    first_shot = arm.candidates[0].build(DEV[0])[0].content
    script = _model(lambda messages, n: _last_shot(messages) == first_shot or n % 2 == 0)
    whole, num_asked = _search(arm, script)
    for stop_at in (5, 41, 66):  # among the draws, the orders, the finalists
        store = _Memory()
        with fake_server(script) as server:
            model = Endpoint(url=server.url, model="m", name="m", concurrency=1, retries=0, backoff_s=0.01)
            with pytest.raises(KeyboardInterrupt):
                choose_candidate(arm, DEV, model, _bench(store, lambda store=store, stop_at=stop_at: len(store) >= stop_at))
            num_before = len(server.seen)
            resumed = choose_candidate(arm, DEV, model, _bench(store))
            assert stop_at <= num_before < num_asked == len(server.seen)  # none was asked twice
        assert resumed.candidate is not None and whole.candidate is not None and resumed.candidate.params == whole.candidate.params
        assert [replace(one, seconds=0.0) for one in resumed.tried] == [replace(one, seconds=0.0) for one in whole.tried]


def test_a_finalist_that_does_not_fit_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = _arm()
    answer = choice.answer

    def tight(candidate, items, *more):
        if items[0].id == "106" and candidate.params["draw"] == "1":
            raise InputError("too long", fix="shorter")
        return answer(candidate, items, *more)

    monkeypatch.setattr(choice, "answer", tight)
    chosen, _ = _search(arm, _model(lambda messages, n: True))
    assert chosen.candidate is not None and chosen.candidate.params["draw"] == "2" and chosen.dev_score == 1.0
    assert all(
        one.failed is not None and one.dev_score is None for one in chosen.tried if one.params["draw"] == "1" and one.params["k"] == "3"
    )


def test_records_from_before_orders_were_searched_are_found() -> None:
    arm = _arm()
    assert find_candidate(arm, {"k": "4", "draw": "2"}) is arm.candidates[4]
    with pytest.raises(RunError, match="can be made again"):
        find_candidate(arm, {"k": "4", "draw": "2", "order": "alphabetical"})
