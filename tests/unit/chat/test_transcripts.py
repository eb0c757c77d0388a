"""Conversations on disk, and the rows that marks make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.chat import ChatAnswer, ChatTurn
from luthier.core.errors import InputError, LuthierError, RunError
from luthier.core.types import Message
from luthier.data.load import load_examples
from luthier.pipeline.feedback import list_answers, mark_answer, write_rows
from luthier.pipeline.transcripts import held, latest_transcript, new_path, transcript_folders
from luthier.store.transcript import add_mark, add_reset, add_turn, new_transcript, read_transcript

PAST = (Message(role="user", content="before"), Message(role="assistant", content="then"))


def _turn(talk_id: str, number: int, prompt: str, *texts: str, history: tuple[Message, ...] = (), finish: str = "stop") -> ChatTurn:
    answers = tuple(
        ChatAnswer(
            id=f"{talk_id}-{number}" + (f":v{i}" if i else ""),
            voice=f"v{i}",
            model=f"f{i}",
            text=text,
            finish=finish,  # type: ignore[arg-type]
            history=history,
            num_prompt_tokens=3,
            num_new_tokens=2,
            seconds=0.5,
        )
        for i, text in enumerate(texts)
    )
    return ChatTurn(
        number=number,
        time="2026-11-24T12:00:00+00:00",
        system="",
        instruction="Sort.",
        prompt=prompt,
        answers=answers,
        sampling={"seed": 0.0},
    )


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five turns: good, edited, bad beside good, unmarked, good with history."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "talk.jsonl"
    found = new_transcript(path, target="some/run", system="", instruction="Sort.")
    turns = [
        _turn(found.id, 1, "hello\x1b[2J", "greeting"),
        _turn(found.id, 2, "card?", "no idea"),
        _turn(found.id, 3, "lost", "lost_card", "I am sorry"),
        _turn(found.id, 4, "more", "cut off he", finish="length"),
        _turn(found.id, 5, "again", "yes", history=PAST),
    ]
    for turn in turns:
        found = add_turn(found, turn)
    for suffix, mark, edited in (("1", "good", None), ("2", "edited", "card_arrival"), ("3", "good", None), ("3:v1", "bad", None)):
        found = add_mark(found, f"{found.id}-{suffix}", mark, edited)  # type: ignore[arg-type]
    add_mark(found, f"{found.id}-5", "good")
    return path


def test_what_is_read_is_what_was_said(talk: Path) -> None:
    found = read_transcript(talk)
    assert [turn.prompt for turn in found.turns] == ["hello\x1b[2J", "card?", "lost", "more", "again"]
    assert [a.mark for turn in found.turns for a in turn.answers] == ["good", "edited", "good", "bad", None, "good"]
    assert found.turns[1].answers[0].wanted == "card_arrival" and found.turns[4].answers[0].history == PAST
    assert found.turns[0] == add_mark(found, "nobody", "bad").turns[0]
    assert add_reset(found).num_forgotten == 5 == read_transcript(talk).num_forgotten


@pytest.mark.parametrize("line", ["{}", "[1]", '{"event": "turn"}', "\x00\xff", '{"event": "opened", "schema": 9}'])
def test_other_files_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(line + "\n", encoding="latin-1")
    with pytest.raises(RunError, match="no chat transcript"):
        read_transcript(path)


@pytest.mark.parametrize(
    "change",
    [
        {"answers": 3},
        {"number": "one"},
        {"prompt": None},
        {"event": "boom"},
        {"answers": [{"id": "x"}]},
        {
            "answers": [
                {"id": "x", "voice": "v", "text": "t", "finish": "stop", "history": [{"role": "system", "content": ""}], "num_dropped": 0}
            ]
        },
    ],
)
def test_a_damaged_turn_is_named_with_its_line(talk: Path, change: dict[str, Any]) -> None:
    lines = talk.read_text(encoding="utf-8").splitlines()
    talk.write_text("\n".join([lines[0], json.dumps({**json.loads(lines[1]), **change})]) + "\n", encoding="utf-8")
    with pytest.raises(RunError) as error:
        read_transcript(talk)
    assert error.value.where.endswith("talk.jsonl:2")


def test_training_rows_read_cleanly(talk: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    said = write_rows(str(talk), out, "training")
    assert said["json"]["rows"] == 4 and "1 left out" in said["lines"][1]  # type: ignore[index]
    found = load_examples([out])
    assert found.format == "alpaca" and not found.rejects
    assert [(e.instruction, e.input, e.response) for e in found.examples] == [
        ("Sort.", "hello\x1b[2J", "greeting"),
        ("Sort.", "card?", "card_arrival"),
        ("Sort.", "lost", "lost_card"),
        ("Sort.", "again", "yes"),
    ]
    assert found.examples[3].history == PAST
    meta = json.loads(out.read_text(encoding="utf-8").splitlines()[1])["meta"]
    assert meta["mark"] == "edited" and meta["model"] == "f0" and meta["target"] == "some/run" and meta["id"].endswith("-2")


def test_preference_rows_come_from_edits_and_from_pairs(talk: Path, tmp_path: Path) -> None:
    write_rows(str(talk), tmp_path / "rows.jsonl", "preference")
    found = load_examples([tmp_path / "rows.jsonl"])
    assert found.format == "preference" and not found.rejects
    assert [(e.input, e.response, e.rejected) for e in found.examples] == [
        ("card?", "card_arrival", "no idea"),
        ("lost", "lost_card", "I am sorry"),
    ]


def test_kto_rows_keep_the_bad_ones(talk: Path, tmp_path: Path) -> None:
    write_rows(str(talk), tmp_path / "rows.jsonl", "kto")
    found = load_examples([tmp_path / "rows.jsonl"])
    assert found.format == "kto" and not found.rejects
    assert sorted((e.response, e.desirable) for e in found.examples) == [
        ("I am sorry", False),
        ("card_arrival", True),
        ("greeting", True),
        ("lost_card", True),
        ("no idea", False),
        ("yes", True),
    ]


def test_marks_after_the_fact(talk: Path, tmp_path: Path) -> None:
    talk_id = read_transcript(talk).id
    assert mark_answer(str(talk), f"{talk_id}-1", None)["lines"] == [f"{talk_id}-1 is no longer marked"]
    with pytest.raises(InputError, match="cut off"):  # a model would learn to stop there
        mark_answer(str(talk), f"{talk_id}-4", "good")
    mark_answer(str(talk), f"{talk_id}-4", "edited", "whole")
    with pytest.raises(RunError, match="no answer has the id"):
        mark_answer(str(talk), "x-1", "good")
    with pytest.raises(InputError, match="empty"):
        mark_answer(str(talk), f"{talk_id}-4", "edited", " ")
    lines = list_answers(str(talk))["lines"]
    assert "6 answers, 5 marked" in lines[-1] and f"{talk_id}-4  2026-11-24 12:00  edited  more → whole" in lines  # type: ignore[index, operator]


def test_only_a_file_of_its_own_is_written_over(talk: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    write_rows(str(talk), out, "training")
    write_rows(str(talk), out, "training")
    for content in ('{"text": "mine"}\n', "not json\n"):
        out.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match="holds other things"):
            write_rows(str(talk), out, "training")
        assert out.read_text(encoding="utf-8") == content


def test_nothing_marked_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    with pytest.raises(RunError, match="nobody has talked"):
        list_answers("some-model")
    path = tmp_path / "t.jsonl"
    add_turn(new_transcript(path, target="x", system="", instruction=""), _turn("x", 1, "a", "b"))
    for kind in ("training", "preference", "kto"):
        with pytest.raises(InputError, match=f"no marked answer makes a {kind} row"):
            write_rows(str(path), tmp_path / "rows.jsonl", kind)  # type: ignore[arg-type]
    assert not (tmp_path / "rows.jsonl").exists()


def test_rows_of_a_run_carry_its_columns(talk: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "chat").mkdir(parents=True)
    (run / "config.yaml").write_text(
        "data:\n  paths: [q.csv]\n  input: text\n  output: category\n  instruction: Sort this.\n", encoding="utf-8"
    )
    (run / "chat" / "talk.jsonl").write_bytes(talk.read_bytes())
    said = write_rows(str(run), tmp_path / "rows.jsonl", "training")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row.get("text"), row.get("category")) for row in rows][1] == ("card?", "card_arrival")
    assert "text" not in rows[3] and "1 of them with earlier turns, which columns (text, category) cannot hold" in said["lines"][2]  # type: ignore[index]


def test_where_conversations_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    run.mkdir()
    [cached] = transcript_folders(str(run))
    assert cached.parent == tmp_path / "cache" / "chat" and cached.name.startswith("run-")
    (run / "config.yaml").write_text("", encoding="utf-8")
    assert transcript_folders(str(run)) == (run / "chat", cached)
    assert transcript_folders("../../etc/passwd")[0].parent == tmp_path / "cache" / "chat"  # a name never leads elsewhere
    with pytest.raises(RunError, match="no conversation to go on with"):
        latest_transcript(str(run))
    path = new_path(str(run))
    with held(path), pytest.raises(LuthierError, match="another chat"), held(path):
        pass
    assert not list(path.parent.glob(".*"))
