"""The arms with documents: what is put before an item, what it supports, and that it costs what the other arms cost."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tests.fixtures.hostile import HOSTILE

from luthier.arms.catalogue import plan_arms
from luthier.arms.documents import INTRODUCTION
from luthier.arms.prompts import Arm, num_chars
from luthier.core.errors import ConfigError
from luthier.core.types import Example, Generation, TaskProfile
from luthier.data.documents import Documents, read_documents
from luthier.evaluate.run import Bench, score_generations
from luthier.metrics.catalogue import score_answer
from luthier.metrics.closed_world import known_facts
from luthier.pipeline.settings import load_settings

TEXT_TASK = TaskProfile(kind="text", evidence="")


def _row(n: int, text: str = "", response: str = "It depends.") -> Example:
    return Example(
        id=f"{n:03d}", path="t", line=n, kind="instruct", instruction="Answer.", input=text or f"question {n}", response=response
    )


TRAIN = tuple(_row(n) for n in range(12))
ITEM = _row(900, "A new card costs what?", "4.50 EUR")


@pytest.fixture
def documents(tmp_path: Path) -> Documents:
    (tmp_path / "cards.md").write_text("# Cards\nA new card costs 4.50 EUR.\n\n# Post\nA new card comes by post.\n", encoding="utf-8")
    (tmp_path / "other.txt").write_text("Opening hours are nine to five.", encoding="utf-8")
    return read_documents(tmp_path)


def _arms(documents: Documents | None, **more: object) -> dict[str, Arm]:
    given: dict[str, object] = {"seed": 0, "max_prompt_chars": 8_000, "documents": documents, **more}
    return {arm.name: arm for arm in plan_arms(TRAIN, TEXT_TASK, **given)}  # type: ignore[arg-type]


def _candidate(arm: Arm, k: int, order: str = "first"):
    return next(c for c in arm.candidates if c.params["retrieved passages"] == str(k) and c.params["order"].endswith(order))


def test_passages_stand_before_the_item_best_first_or_last(documents: Documents) -> None:
    arms = _arms(documents)
    system, user = _candidate(arms["documents"], 2).build(ITEM)
    assert (system.role, system.content, user.role) == ("system", "Answer.", "user")
    cost, post = "Cards\nA new card costs 4.50 EUR.", "Post\nA new card comes by post."
    assert user.content == f"{INTRODUCTION}\n\n[1] {cost}\n\n[2] {post}\n\n{ITEM.input}"
    last = _candidate(arms["documents"], 2, "last").build(ITEM)[-1].content
    assert last == f"{INTRODUCTION}\n\n[1] {post}\n\n[2] {cost}\n\n{ITEM.input}"
    [tuned] = _candidate(arms["tuned + documents"], 1).build(ITEM)  # its turn as it was trained, behind the passages
    assert tuned.content == f"{INTRODUCTION}\n\n[1] {cost}\n\n{ITEM.user_text}"
    four = _candidate(arms["documents"], 4).passages
    assert four is not None and len(four(ITEM)) == 2  # hours have no word in common with the question
    assert [m.content for m in _candidate(arms["documents"], 4).build(_row(1, "zebra"))] == ["Answer.", "zebra"]  # nothing matches


def test_the_same_effort_as_the_other_arms(documents: Documents) -> None:
    arms = _arms(documents)
    assert len(arms["documents"].candidates) == len(arms["few-shot"].candidates) == len(arms["tuned + documents"].candidates) == 6
    params = [tuple(c.params.items()) for c in arms["documents"].candidates]
    assert len(set(params)) == 6 and all(documents.digest in dict(p).values() for p in params)
    assert "2 files, 3 passages" in arms["documents"].description
    assert "documents" not in _arms(None)
    with pytest.raises(ConfigError, match="as many numbers"):
        load_settings(None, {"arms.documents": "x", "arms.shots": [1, 2]})
    load_settings(None, {"arms.shots": [1, 2]})


def test_a_long_item_gets_fewer_passages_and_a_limit_leaves_out(documents: Documents) -> None:
    way = _candidate(_arms(documents)["documents"], 2)
    whole = num_chars(way.build(ITEM))
    tight = _candidate(_arms(documents, max_prompt_chars=whole - 1)["documents"], 2)
    assert tight.passages is not None and [p.id for p in tight.passages(ITEM)] == ["cards.md:2"]
    assert num_chars(tight.build(ITEM)) <= whole - 1


def _bench(train: tuple[Example, ...]) -> Bench:
    return Bench(
        score=partial(score_answer, profile=TEXT_TASK, world=known_facts(train), markers=frozenset()), metric="rouge_l",
        max_new_tokens=5, stop="", choices=(), batch=1, store=None, clusters={}, on_progress=lambda *a: None, should_stop=lambda: False,
    )  # type: ignore[arg-type]  # fmt: skip


def _generation(text: str) -> Generation:
    return Generation(item_id=ITEM.id, text=text, finish="stop", num_prompt_tokens=1, num_cached_tokens=0, num_new_tokens=1, latency_s=0.1)


def test_a_value_in_the_passages_shown_is_supported_and_recorded(documents: Documents) -> None:
    way = _candidate(_arms(documents)["documents"], 1)
    [shown] = score_generations([ITEM], [_generation("It costs 4.50 EUR.")], _bench(TRAIN), way)
    assert shown.values["unsupported"] == 0.0 and shown.sources == ("cards.md:2",)
    [bare] = score_generations([ITEM], [_generation("It costs 4.50 EUR.")], _bench(TRAIN))
    assert bare.values["unsupported"] == 1.0 and bare.sources == ()  # an arm that was shown nothing is not excused
    [invented] = score_generations([ITEM], [_generation("It costs 9.99 EUR.")], _bench(TRAIN), way)
    assert invented.values["unsupported"] == 1.0


def test_hostile_documents_stay_in_the_items_turn(tmp_path: Path) -> None:
    for number, text in enumerate(HOSTILE):
        (tmp_path / f"{number}.txt").write_bytes(f"card {text}".encode("utf-8", "surrogatepass"))
    arm = _arms(read_documents(tmp_path))["documents"]
    for candidate in arm.candidates:
        messages = candidate.build(ITEM)
        assert [m.role for m in messages] == ["system", "user"] and messages[-1].content.endswith(ITEM.input)


def test_a_changed_document_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one", encoding="utf-8")
    settings = load_settings(None, {"arms.documents": str(tmp_path)})
    before = settings.identity()["arms.documents"]
    (tmp_path / "a.md").write_text("two", encoding="utf-8")
    assert settings.identity()["arms.documents"] != before != str(tmp_path)
