"""Retrieval by embeddings: one more arm beside each that looks something up, off by default, shown as failed where the server fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.fixtures.fake_embeddings import letters

from luthier.arms.catalogue import Embeddings, plan_arms
from luthier.arms.index import build_index, retrieval_texts
from luthier.arms.prompts import Arm
from luthier.core.errors import EndpointError
from luthier.core.types import Example, TaskProfile
from luthier.data.documents import read_documents

BY = "m at fake"


class Letters:
    """Embeds by letters, and remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        self.seen += texts
        found = [np.array(letters(text), dtype=np.float32) for text in texts]
        return [vector / np.linalg.norm(vector) for vector in found]


def _fails(texts: Sequence[str]) -> list[np.ndarray]:
    raise EndpointError("status 500", where=BY)


def _row(n: int, text: str) -> Example:
    return Example(id=f"{n:03d}", path="t", line=n, kind="instruct", instruction="Answer.", input=text, response=f"answer {n}")


TRAIN = (_row(0, "aaaa"), _row(1, "bbbb"), _row(2, "cccc"), _row(3, "dddd"), _row(4, "eeee"))
ITEM = _row(900, "c cc c")  # no word in common with any row


def _plan(embeddings: Embeddings | None, **more: object) -> dict[str, Arm]:
    profile = TaskProfile(kind="text", evidence="")
    return {arm.name: arm for arm in plan_arms(TRAIN, profile, seed=0, shots=(1, 2), max_prompt_chars=4000, embeddings=embeddings, **more)}  # type: ignore[arg-type]


def test_off_by_default_and_the_other_arms_are_the_same_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\nzzz one\n\n# C\nccc two\n", encoding="utf-8")
    documents = read_documents(tmp_path)
    without, with_ = (
        _plan(None, documents=documents, num_passages=(1, 2)),
        _plan(Embeddings(by=BY, embed=Letters()), documents=documents, num_passages=(1, 2)),
    )
    more = ["few-shot by embeddings", "documents by embeddings", "tuned + embeddings"]
    assert [name for name in with_ if name not in without] == more
    for name, arm in without.items():
        assert [dict(c.params) for c in arm.candidates] == [dict(c.params) for c in with_[name].candidates]
        assert [c.build(ITEM) for c in arm.candidates] == [c.build(ITEM) for c in with_[name].candidates]
    for name in more:
        arm = with_[name]
        assert len(arm.candidates) == len(with_["few-shot retrieved"].candidates) == 4  # the same effort
        assert {c.params["retrieved by"] for c in arm.candidates} == {BY} and "not in the waiting times" in arm.description
    assert (with_["tuned + embeddings"].family, with_["tuned + embeddings"].model) == ("tuned", "tuned")


def test_what_is_near_by_letters_is_found_where_no_word_is_shared(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\nzzz one\n\n# Z\nccc ccc\n", encoding="utf-8")
    arms = _plan(Embeddings(by=BY, embed=Letters()), documents=read_documents(tmp_path), num_passages=(1, 2))

    def first(name: str) -> str:
        return "\n".join(message.content for message in arms[name].candidates[0].build(ITEM))

    assert "answer 2" in first("few-shot by embeddings") and "answer 2" in first("tuned + embeddings")
    assert "ccc ccc" in first("documents by embeddings") and "ccc ccc" not in first("documents")


def test_the_item_itself_is_never_a_shot() -> None:
    arms = _plan(Embeddings(by=BY, embed=Letters()))
    for candidate in arms["few-shot by embeddings"].candidates:
        assert "answer 2" not in "".join(message.content for message in candidate.build(TRAIN[2]))


def test_a_server_that_fails_fails_its_arms_alone() -> None:
    arms = _plan(Embeddings(by=BY, embed=_fails))
    for name, arm in arms.items():
        assert (arm.failed is not None) == ("embeddings" in name), name
    assert "status 500" in (arms["few-shot by embeddings"].failed or "")


def test_a_server_that_fails_on_an_item_raises_what_fails_the_arm() -> None:
    calls = Letters()

    def once(texts: Sequence[str]) -> list[np.ndarray]:
        return calls(texts) if set(texts) <= {row.input for row in TRAIN} else _fails(texts)

    arm = _plan(Embeddings(by=BY, embed=once))["few-shot by embeddings"]
    with pytest.raises(EndpointError):
        arm.candidates[0].build(ITEM)


def test_what_is_embedded_beforehand_is_what_is_looked_for() -> None:
    told, used = Letters(), Letters()
    told(retrieval_texts(TRAIN, [ITEM]))
    index = build_index(TRAIN, used)
    index.search(index.query_text(ITEM), 2)
    assert set(told.seen) == set(used.seen) and len(told.seen) == len(set(told.seen))
    varied = (*TRAIN, Example(id="x", path="t", line=1, kind="instruct", instruction="Other.", input="ffff", response="r"))
    assert all("\n" in text for text in retrieval_texts(varied, []))  # instructions differ, so they take part
