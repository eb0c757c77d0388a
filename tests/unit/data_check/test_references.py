"""Rows that ask the same and answer in other words are one item with several references."""

from __future__ import annotations

from tests.unit.data_check.make_rows import pairs, sentences

from luthier.core.types import TaskProfile
from luthier.data.references import merge_references
from luthier.data.split import split_examples
from luthier.metrics.catalogue import score_answer
from luthier.metrics.closed_world import ClosedWorld

TEXT = TaskProfile(kind="text", evidence="")
LONG = sentences(60, name="references")


def test_one_item_for_one_prompt() -> None:
    given = pairs(("a", "one way"), ("b", "alone"), ("A ", "another way"), ("a", "one way"), ("a", "a third"))
    merged = merge_references(given, TEXT)
    assert [(row.input, row.response, row.references) for row in merged] == [
        ("a", "one way", ("another way", "a third")),
        ("b", "alone", ()),
    ]


def test_labels_in_conflict_and_plain_repeats_stay_rows() -> None:
    conflict = pairs(("a", "yes"), ("a", "no"))
    assert merge_references(conflict, TaskProfile(kind="label", evidence="", labels=("yes", "no"))) == conflict
    repeat = pairs(("a", "the same"), ("a", "The same."))
    assert merge_references(repeat, TEXT) == repeat


def test_the_split_counts_items_not_references() -> None:
    train = pairs(*((text, f"{text} it was said and written down in many words again") for text in LONG[:40]))
    test = pairs(*((text, f"{way} way to say that {text} in quite a few more words") for text in LONG[40:] for way in ("one", "another")))
    split = split_examples(train, seed=0, test=test, test_rows=10, dev_rows=5)
    assert len(split.test) == 10
    assert all(len(item.references) == 1 for item in split.test)
    assert any(note.startswith("20 test rows left out as items") for note in split.notes)


def test_the_reference_that_fits_best_counts() -> None:
    [item] = merge_references(pairs(("a", "it is red"), ("a", "its colour is red")), TEXT)
    world = ClosedWorld(known=frozenset())
    for answer, exact in (("It is red.", 1.0), ("its colour is red", 1.0), ("it is blue", 0.0)):
        assert score_answer(item, answer, profile=TEXT, world=world, markers=frozenset()).values["exact"] == exact
