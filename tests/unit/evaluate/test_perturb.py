"""The same question another way: what carries meaning stays, nothing is left to chance."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.types import Example, Message
from luthier.evaluate.perturb import REWORDINGS, input_changed, keeps_meaning, reworded, shots_shuffled


def _example(text: str, response: str = "yes", instruction: str = "Name the kind.") -> Example:
    return Example(id=f"id {text[:20]}", path="", line=1, kind="instruct", input=text, response=response, instruction=instruction)


PIECES = st.lists(
    st.one_of(
        st.sampled_from(["where", "delivery", "Please", "address", "I am", "don't", "Osprey", "USA", "größe", "日本"]),
        st.sampled_from(
            ['"The Eagle"', "near[Burger King]", "name:", "key=value", "https://a.b/c", "a@b.de", "`code`", '{"k": 1}', "x_y", "#7"]
        ),
        st.integers(-9999, 99999).map(str),
        st.floats(0, 9999).map(lambda x: f"£{x:.2f}"),
        st.text(max_size=12),
    ),
    max_size=14,
).map(" ".join)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(text=PIECES, number=st.sampled_from([0, 1]), seed=st.integers(0, 3))
def test_numbers_quotes_and_keys_stay_and_it_is_the_same_every_time(text: str, number: int, seed: int) -> None:
    example = _example(text, response="The delivery address")
    changed = input_changed(example, number, seed=seed)
    assert changed == input_changed(example, number, seed=seed)
    if changed is None:
        return
    new = changed.input or changed.instruction
    old = text or example.instruction
    assert new != old
    assert re.findall(r"\d+", new) == re.findall(r"\d+", old)
    for kept in ('"The Eagle"', "near[Burger King]", "https://a.b/c", "a@b.de", "`code`", '{"k": 1}', "USA"):
        assert new.count(kept) == old.count(kept)
    for word in ("delivery", "address"):  # words of the wanted answer
        assert new.lower().count(word) == old.lower().count(word)
    assert (changed.response, changed.id) == (example.response, example.id)


def test_by_hand() -> None:
    example = _example("I am waiting for 2 parcels from Leeds.", response="x")
    lower, typo = (input_changed(example, n, seed=0) for n in (0, 1))
    assert lower is not None and lower.input == "i am waiting for 2 parcels from leeds."
    assert typo is not None and typo.input.startswith("I'm ") and typo.input.endswith(" from Leeds.") and " 2 " in typo.input
    assert sorted(typo.input.removeprefix("I'm")) == sorted(example.input.removeprefix("I am"))  # letters changed places, none is lost
    capital = input_changed(_example("where is it. tell me"), 0, seed=0)
    assert capital is not None and capital.input == "Where is it. Tell me"
    assert input_changed(_example("name[The Eagle], food[French]"), 1, seed=0) is None
    assert input_changed(_example("いつ届きますか"), 0, seed=0) is None


def test_the_check_itself_can_fail() -> None:
    assert keeps_meaning("pay 12 now", "pya 12 now")
    assert not keeps_meaning("pay 12 now", "pay 21 now")
    assert not keeps_meaning('say "a b"', 'say "a c"')
    assert not keeps_meaning("the red box", "the rde box", frozenset({"red"}))


def test_an_instruction_is_reworded_wherever_it_stands() -> None:
    example = _example("where is it")
    head = (Message(role="system", content="Name the kind.\n\nOne of a, b."), Message(role="user", content="where is it"))
    turn = (Message(role="user", content="Name the kind.\n\nwhere is it"),)
    for number in range(len(REWORDINGS)):
        a, b = reworded(example, head, number), reworded(example, turn, number)
        assert a.shown == b.shown and "Name the kind." in a.shown and a.shown != "Name the kind."
        assert a.messages[1] == head[1] and a.messages[0].content == f"{a.shown}\n\nOne of a, b."
        assert b.messages[0].content == f"{b.shown}\n\nwhere is it"
    bare = reworded(_example("where is it", instruction=""), (Message(role="user", content="where is it"),), 0)
    assert bare.messages[0].content.endswith("where is it") and bare.messages[0].content != "where is it"


def _shots(n: int) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=f"{role} {i}") for i in range(n) for role in ("user", "assistant"))  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [2, 3, 8])
def test_shots_change_places_as_pairs(n: int) -> None:
    system, last = Message(role="system", content="s"), Message(role="user", content="q")
    found = shots_shuffled(_example("q"), (system, *_shots(n), last), seed=0)
    assert found is not None and found[0] == system and found[-1] == last
    pairs = [(found[i].content, found[i + 1].content) for i in range(1, len(found) - 1, 2)]
    assert pairs != [(f"user {i}", f"assistant {i}") for i in range(n)]
    assert sorted(pairs) == sorted((f"user {i}", f"assistant {i}") for i in range(n))
    assert found == shots_shuffled(_example("another"), (system, *_shots(n), last), seed=0)  # shared prefixes stay shared


def test_no_shots_no_other_order() -> None:
    last = Message(role="user", content="q")
    assert shots_shuffled(_example("q"), (last,), seed=0) is None
    assert shots_shuffled(_example("q"), (*_shots(1), last), seed=0) is None
