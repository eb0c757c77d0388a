from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data_check.make_rows import pairs, row, rows, sentences

from luthier.core.errors import InputError
from luthier.core.types import Example, Split
from luthier.data.split import content_sha256, default_dev_rows, default_test_rows, split_examples

TEXTS = sentences(400, name="split")
PROPERTY = settings(derandomize=True, max_examples=60, deadline=None)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[Example, ...]:
    """Rows with labels, near-duplicates, repeats and groups."""
    number = draw(st.integers(12, 60))
    rng = random.Random(draw(st.integers(0, 1000)))
    made = [row(TEXTS[i], f"label {rng.randrange(4)}", group=rng.choice([None, None, None, "g1", "g2"])) for i in range(number)]
    twins = [replace(rng.choice(made), input=rng.choice(made).input.upper() + " !") for _ in range(draw(st.integers(0, 10)))]
    return rows([*made, *twins, *made[: draw(st.integers(0, 5))]])


def parts(split: Split) -> dict[str, set[str]]:
    return {name: {e.id for e in getattr(split, name)} for name in ("train", "dev", "test")}


def assert_no_straddle(split: Split) -> None:
    seen: dict[str, str] = {}
    for name in ("train", "dev", "test"):
        for example in getattr(split, name):
            assert seen.setdefault(split.clusters[example.id], name) == name


@PROPERTY
@given(data_sets(), st.integers(0, 5))
def test_every_row_once_and_no_cluster_straddles(data: tuple[Example, ...], seed: int) -> None:
    split = split_examples(data, seed=seed)
    ids = [e.id for part in (split.train, split.dev, split.test) for e in part]
    assert Counter(ids) == Counter(e.id for e in data)
    assert all((split.train, split.dev, split.test))
    assert_no_straddle(split)
    assert set(split.clusters) == {e.id for e in data}


@PROPERTY
@given(data_sets(), st.integers(0, 5), st.integers(0, 5))
def test_the_order_of_the_rows_does_not_matter(data: tuple[Example, ...], seed: int, shuffle: int) -> None:
    other = list(data)
    random.Random(shuffle).shuffle(other)
    assert split_examples(other, seed=seed) == split_examples(data, seed=seed)


@PROPERTY
@given(data_sets(), st.integers(1, 20), st.integers(1, 10))
def test_left_out_rows_are_counted(data: tuple[Example, ...], train_rows: int, num_test: int) -> None:
    test = [replace(e, path="test.jsonl") for e in data[:num_test]]
    try:
        split = split_examples(data, seed=0, train_rows=train_rows, test=test, test_rows=3)
    except InputError:  # the groups of the test rows can be all there is
        return
    left_out = sum(int(note.split(" ")[0]) for note in split.notes if "left out" in note)
    assert len(split.train) + len(split.dev) + len(split.test) + left_out == len(data) + len(test)
    assert len(split.train) <= train_rows
    assert_no_straddle(split)


def test_seed_changes_the_split_and_the_hash_seed_does_not() -> None:
    data = pairs(*((text, "x") for text in TEXTS))
    assert parts(split_examples(data, seed=1)) != parts(split_examples(data, seed=2))
    code = (
        "from tests.unit.data_check.test_split import *\n"
        "print(split_examples(pairs(*((t, 'ab'[len(t) % 2]) for t in TEXTS)), seed=3).test_sha256)"
    )
    command, root = [sys.executable, "-c", code], Path(__file__).resolve().parents[3]
    hashes = {
        subprocess.run(command, env={"PYTHONHASHSEED": hash_seed}, cwd=root, capture_output=True, text=True, check=True).stdout
        for hash_seed in ("0", "1")
    }
    assert len(hashes) == 1


def test_default_sizes() -> None:
    assert [default_test_rows(n) for n in (3, 30, 60, 100, 150, 1000, 2500, 50_000)] == [1, 10, 20, 30, 30, 200, 500, 500]
    assert [default_dev_rows(n) for n in (3, 30, 60, 100, 1000, 50_000)] == [1, 6, 10, 10, 100, 300]
    split = split_examples(pairs(*((text, "x") for text in TEXTS)), seed=0)
    assert (len(split.train), len(split.dev), len(split.test)) == (280, 40, 80)


def test_labels_keep_their_shares() -> None:
    data = pairs(*((text, "rare" if i % 10 == 0 else "common") for i, text in enumerate(TEXTS)))
    split = split_examples(data, seed=0, train_rows=100)
    for part in (split.train, split.dev, split.test):
        assert sum(e.response == "rare" for e in part) == len(part) // 10


def test_official_test_is_kept_and_its_twins_leave_training() -> None:
    data = pairs(*((text, "x") for text in TEXTS[:100]))
    test = rows([row(TEXTS[0], "x"), row(TEXTS[1].upper() + "!", "x"), row(TEXTS[2] + " s", "x"), row(TEXTS[300], "x")], path="test.jsonl")
    assert test[0].id == data[0].id  # the same row read from two files
    split = split_examples(data, seed=0, test=test)
    assert split.test == test
    assert split.official_test
    kept = {e.input for e in (*split.train, *split.dev)}
    assert not kept & set(TEXTS[:3])
    assert len(kept) == 97
    assert any(note.startswith("3 train rows left out") and "rows.jsonl:1, rows.jsonl:2, rows.jsonl:3" in note for note in split.notes)
    assert split.test_sha256 == content_sha256([replace(e, path="elsewhere", line=9) for e in test])


def test_a_prompt_inside_a_longer_training_prompt_leaves_training() -> None:
    data = pairs(*((text, "x") for text in TEXTS[:50]), (f"{TEXTS[60]} {TEXTS[61]} {TEXTS[62]}", "x"))
    split = split_examples(data, seed=0, test=rows([row(TEXTS[61], "x")], path="test.jsonl"))
    assert data[-1].id not in parts(split)["train"] | parts(split)["dev"]


def test_official_dev_loses_what_is_in_test() -> None:
    data = pairs(*((text, "x") for text in TEXTS[:50]))
    test, dev = (
        rows([row(TEXTS[60], "x"), row(TEXTS[61], "x")], "test.jsonl"),
        rows([row(TEXTS[60], "x"), row(TEXTS[70], "x")], "dev.jsonl"),
    )
    split = split_examples(data, seed=0, test=test, dev=dev)
    assert [e.input for e in split.dev] == [TEXTS[70]]
    assert len(split.train) == 50
    assert any(note.startswith("1 dev rows left out") for note in split.notes)


def test_given_split_of_rows_is_honoured() -> None:
    marks = {**dict.fromkeys(range(5), "test"), **dict.fromkeys(range(5, 9), "dev"), **dict.fromkeys(range(9, 30), "train")}
    data = rows([row(text, "x", given_split=marks.get(i)) for i, text in enumerate(TEXTS[:60])])
    split = split_examples(data, seed=0)
    assert [e.line for e in split.test] == [1, 2, 3, 4, 5]
    assert sorted(e.line for e in split.dev) == [6, 7, 8, 9]  # in an order of its own: choices are made on the first so many
    marked = rows([row(text, "x", given_split="train" if i < 30 else None) for i, text in enumerate(TEXTS[:60])])
    carved = split_examples(marked, seed=0)
    assert all(e.line > 30 for e in (*carved.dev, *carved.test))
    all_train = split_examples([replace(e, given_split="train") for e in marked], seed=0)
    assert all_train.dev
    assert all_train.test


def test_sizes_asked_for() -> None:
    data = pairs(*((text, "x") for text in TEXTS))
    split = split_examples(data, seed=0, train_rows=50, dev_rows=20, test_rows=70)
    assert (len(split.train), len(split.dev), len(split.test)) == (50, 20, 70)
    assert any("260 train rows left out" in note for note in split.notes)
    capped = split_examples(data, seed=0, test=rows([row(text, "x") for text in sentences(30, name="other")], "test.jsonl"), test_rows=10)
    lines = [e.line for e in capped.test]
    assert len(lines) == 10
    assert lines == sorted(lines)


def test_given_clusters_are_used() -> None:
    data = pairs(*((text, "x") for text in TEXTS[:100]))
    clusters = {e.id: f"c{i % 10}" for i, e in enumerate(data)}
    split = split_examples(data, seed=0, clusters=clusters)
    assert split.clusters == clusters
    assert len(split.test) == 30
    assert_no_straddle(split)


def test_one_large_cluster_stays_in_training() -> None:
    data = rows([row(text, "x", group="big" if i < 80 else None) for i, text in enumerate(TEXTS[:100])])
    split = split_examples(data, seed=0)
    assert "big" not in {e.group for e in (*split.dev, *split.test)}
    assert any("instead of 30" in note for note in split.notes)
    assert split.dev


@pytest.mark.parametrize("number", [0, 1, 2])
def test_too_few_rows(number: int) -> None:
    with pytest.raises(InputError, match=f"{number} rows") as caught:
        split_examples(pairs(*((text, "x") for text in TEXTS[:number])), seed=0)
    assert caught.value.fix


def test_three_rows_are_three_parts() -> None:
    split = split_examples(pairs(*((text, "x") for text in TEXTS[:3])), seed=0)
    assert [len(part) for part in (split.train, split.dev, split.test)] == [1, 1, 1]


@pytest.mark.parametrize("change", ["all duplicates", "all in test", "too many asked for"])
def test_no_split_possible(change: str) -> None:
    data = pairs(*((TEXTS[0], "x") if change == "all duplicates" else (text, "x") for text in TEXTS[:40]))
    with pytest.raises(InputError) as caught:
        split_examples(
            data, seed=0, test=data if change == "all in test" else None, test_rows=39 if change == "too many asked for" else None
        )
    assert caught.value.fix
    assert caught.value.where
