"""The demo data set is what its README says: schema, counts, tone, facts, and exactly the flaws that are meant to be there."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "support_desk"
UNKNOWN_REPLY = "We do not have that information. A colleague will reply within one working day."
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")
# Numbers with their sign or unit prefix, part and discount codes: what a model could invent.
FACT = re.compile(r"£\d+(?:,\d{3})*|[A-Z]+\d+|\d+(?::\d+)?(?:-year|-month|-minute)?")
NAME = re.compile(r"(?<!^)(?<!\. )\b[A-Z][\w']+")


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_support_desk", ROOT / "examples" / "build_support_desk.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    return load_builder()


@pytest.fixture(scope="module")
def lines() -> list[dict[str, str]]:
    text = (FOLDER / "examples.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def good(builder: ModuleType) -> list:  # type: ignore[type-arg]
    return [row for row in builder.build_rows() if not row.flaw]


@pytest.fixture(scope="module")
def flaws(builder: ModuleType) -> list:  # type: ignore[type-arg]
    return [row for row in builder.build_rows() if row.flaw]


def shingles(text: str) -> frozenset[str]:
    text = " ".join(text.lower().split())
    return frozenset(text[i : i + 5] for i in range(max(1, len(text) - 4)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def facts_by_intent() -> dict[str, str]:
    sections = re.split(r"^## ", (FOLDER / "facts.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: " ".join(body.split()) for name, _, body in (section.partition("\n") for section in sections)}


def invented(reply: str, facts: str) -> set[str]:
    """The numbers, codes and names of a reply that its facts do not hold."""
    known = {*FACT.findall(facts), *re.findall(r"[A-Z][\w']+", facts)}
    return {item for item in (*FACT.findall(reply), *NAME.findall(reply)) if item not in known}


def test_files_are_up_to_date_with_the_source(builder: ModuleType) -> None:
    for path, text in builder.build_files().items():
        assert path.read_bytes() == text.encode("utf-8"), f"{path.name}: run python examples/build_support_desk.py"


def test_check_notices_a_stale_file(builder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "examples.jsonl"
    stale.write_text("old\n", encoding="utf-8")
    monkeypatch.setattr(builder, "build_files", lambda: {stale: "new\n"})
    assert builder.main(["--check"]) == 1
    assert stale.read_text(encoding="utf-8") == "old\n"
    assert builder.main([]) == 0
    assert builder.main(["--check"]) == 0


def test_every_row_has_the_schema(builder: ModuleType, lines: list[dict[str, str]], good: list) -> None:  # type: ignore[type-arg]
    intents = {row.intent for row in good}
    for row in lines:
        assert list(row) == ["instruction", "input", "output"]
        assert row["instruction"] == builder.INSTRUCTION
        assert row["input"] == row["input"].strip()
        assert 6 <= len(row["input"].split()) <= 35, row["input"]
        assert "\n" not in row["output"]
        answer = json.loads(row["output"])
        assert list(answer) == ["intent", "reply", "handover"]
        assert answer["intent"] in intents
        assert isinstance(answer["handover"], bool)
        assert json.dumps(answer, ensure_ascii=False) == row["output"]
        assert len(row["output"]) <= 150
    assert len(builder.INSTRUCTION.split()) <= 20


def test_counts(lines: list[dict[str, str]], good: list, flaws: list) -> None:  # type: ignore[type-arg]
    assert len(good) >= 640
    assert len(lines) == len(good) + len(flaws)
    by_intent = Counter(row.intent for row in good)
    assert len(by_intent) == 24
    assert min(by_intent.values()) >= 26
    assert 90 <= len({row.reply for row in good}) <= 110
    assert min(Counter(row.reply for row in good).values()) >= 6
    assert 0.11 <= by_intent["unknown"] / len(good) <= 0.13
    assert 0.14 <= sum(row.handover for row in good) / len(good) <= 0.25


def test_replies_are_consistent(good: list) -> None:  # type: ignore[type-arg]
    meaning: dict[str, set[tuple[str, bool]]] = defaultdict(set)
    replies: dict[str, set[str]] = defaultdict(set)
    for row in good:
        meaning[row.reply].add((row.intent, row.handover))
        replies[row.intent].add(row.reply)
    assert all(len(found) == 1 for found in meaning.values()), "a reply belongs to one intent and one handover"
    assert replies["unknown"] == {UNKNOWN_REPLY}
    assert all(row.handover for row in good if row.intent in {"unknown", "escalation"})
    assert all(3 <= len(found) <= 5 for intent, found in replies.items() if intent != "unknown")
    assert len({row.message for row in good}) == len(good)


def test_tone(good: list) -> None:  # type: ignore[type-arg]
    american = re.compile(r"\b(color|gray|center|catalog|favorite|customize|check)\b", re.IGNORECASE)
    for reply in {row.reply for row in good}:
        assert reply.endswith(".")
        assert "!" not in reply
        assert "?" not in reply
        assert not re.search(r"\b(sorry|apolog\w*|unfortunately|regret\w*|I|my|me)\b", reply)
        assert not re.search(r"n't|'ll|'re|'ve", reply), "no contractions"
        assert re.search(r"\b(we|us|our)\b", reply, re.IGNORECASE), reply
        assert len(re.findall(r"\.(?:\s|$)", reply)) <= 2
        assert not american.search(reply)


def test_facts_in_replies_stand_in_their_section_of_the_facts(good: list) -> None:  # type: ignore[type-arg]
    facts = facts_by_intent()
    assert set(facts) == {row.intent for row in good}
    assert {row.reply: found for row in good if (found := invented(row.reply, facts[row.intent]))} == {}


@pytest.mark.parametrize("reply", ["We sell the Wren 40 for £179.", "We sell the Falcon for £74.", "We sell it as part R32."])
def test_an_invented_fact_is_noticed(reply: str) -> None:
    assert invented(reply, "Wren 40: £189. Dipper 25: £74. Pawl R31.")


def test_the_flaws_are_there_and_only_there(builder: ModuleType, lines: list[dict[str, str]], good: list, flaws: list) -> None:  # type: ignore[type-arg]
    assert Counter(row.flaw for row in flaws) == {"duplicate": 2, "leak": 3, "conflict": 1, "email": 1}
    by_message = {row.message: row for row in good}
    for row in flaws:
        twin = by_message.get(row.of)
        if row.flaw == "duplicate":
            assert row.as_json() == twin.as_json()
        elif row.flaw == "conflict":
            assert row.message == twin.message
            assert row.reply != twin.reply
            assert row.reply not in {other.reply for other in good}
        elif row.flaw == "leak":
            assert row.message != twin.message
            assert re.sub(r"\W", "", row.message.lower()) == re.sub(r"\W", "", twin.message.lower())
            assert (row.intent, row.reply, row.handover) == (twin.intent, twin.reply, twin.handover)
        else:
            assert EMAIL.search(row.message)
            assert ".example" in row.message
    # Nothing of the kind by accident: repeats, one message with two answers, addresses.
    repeats = {text: n for text, n in Counter(json.dumps(row) for row in lines).items() if n > 1}
    assert len(repeats) == 2
    answers: dict[str, set[str]] = defaultdict(set)
    for row in lines:
        answers[row["input"]].add(row["output"])
    assert sum(len(found) > 1 for found in answers.values()) == 1
    assert sum(bool(EMAIL.search(row["input"])) for row in lines) == 1
    assert not any(EMAIL.search(row["output"]) for row in lines)


def test_flaws_are_far_from_their_twins_and_listed_in_the_readme(builder: ModuleType) -> None:
    rows = builder.build_rows()
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for line, row in enumerate(rows, start=1):
        if row.flaw:
            assert f"| {row.flaw} | {line} |" in readme
        if row.of:
            twin = next(n for n, other in enumerate(rows, start=1) if other.message == row.of and not other.flaw)
            assert abs(line - twin) >= builder.MIN_FLAW_DISTANCE


def near_pairs(messages: Iterable[str], *, threshold: float) -> list[tuple[str, str]]:
    """Pairs with a character 5-gram Jaccard similarity of at least `threshold`; size bounds skip most pairs."""
    found = sorted(((shingles(message), message) for message in messages), key=lambda pair: len(pair[0]))
    near: list[tuple[str, str]] = []
    for index, (a, text_a) in enumerate(found):
        candidates = itertools.takewhile(lambda pair, a=a: len(a) >= threshold * len(pair[0]), found[index + 1 :])
        near += [(text_a, text_b) for b, text_b in candidates if jaccard(a, b) >= threshold]
    return near


def test_no_near_duplicate_is_there_by_accident(good: list, flaws: list) -> None:  # type: ignore[type-arg]
    assert near_pairs((row.message for row in good), threshold=0.7) == []
    # The leaks are near, so the same search finds something where there is something.
    for row in flaws:
        if row.flaw == "leak":
            assert near_pairs([row.message, row.of], threshold=0.8)


def test_the_order_mixes_the_intents(builder: ModuleType) -> None:
    rows = builder.build_rows()
    same_as_next = sum(a.intent == b.intent for a, b in itertools.pairwise(rows))
    assert same_as_next < len(rows) / 10
    assert [row.as_json() for row in rows] == [row.as_json() for row in builder.build_rows()]


def test_quickstart_points_at_the_data() -> None:
    settings = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text(encoding="utf-8"))
    assert [(ROOT / path).is_file() for path in settings["data"]["paths"]] == [True]
