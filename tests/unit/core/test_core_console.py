from __future__ import annotations

import io
import json
import sys

import pytest

from luthier.core import console


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_plain_progress_writes_at_most_one_line_in_five_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = console.plain_progress(stream, clock=clock)
    for step in range(1, 1001):
        clock.now += 0.1
        progress("fine-tune", step, 1000, f"loss {1 / step:.3f}")
    lines = lines_of(stream)
    assert len(lines) <= 100 / 5 + 2
    assert lines[0].startswith("fine-tune: 1 of 1,000, loss 1.000")
    assert lines[-1] == "fine-tune: 1,000 of 1,000, loss 0.001"


def test_time_left_is_proportional() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = console.plain_progress(stream, clock=clock)
    progress("s", 0, 100, "")
    clock.now = 10
    progress("s", 25, 100, "")
    assert lines_of(stream) == ["s: 0 of 100", "s: 25 of 100, about 30 s left"]


def test_time_left_of_a_resumed_stage_counts_from_where_it_was_taken_up() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = console.plain_progress(stream, clock=clock)
    progress("s", 800, 1000, "")
    clock.now = 10
    progress("s", 810, 1000, "")
    assert lines_of(stream)[-1] == "s: 810 of 1,000, about 4 min left"  # 190 at one a second, rounded up


def test_stages_are_told_apart_and_the_end_is_said_once() -> None:
    stream = io.StringIO()
    progress = console.plain_progress(stream, clock=Clock())
    progress("a", 1, 1, "")
    progress("a", 1, 1, "")
    progress("b", 1, 2, "")
    assert lines_of(stream) == ["a: 1 of 1", "b: 1 of 2"]


def test_unknown_total() -> None:
    stream = io.StringIO()
    console.plain_progress(stream, clock=Clock())("model", 0, 0, "downloading")
    assert lines_of(stream) == ["model: downloading"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (59.5, "1 min"), (61, "2 min"), (3600, "1 h 0 min"), (12000, "3 h 20 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_untrusted_text_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x1b]52;c;aGk=\x07\u202e[/red][link=file:///etc/passwd]"
    console.note(evil)
    console.result_lines([evil])
    console.result_pieces([[(evil, True)]])
    console.plain_progress(sys.stderr)("s" + evil, 1, 2, evil)
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not any(ord(c) < 32 and c != "\n" for c in text) and "\u202e" not in text
        assert "[/red]" in text  # shown as it is, not taken for markup


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.result_lines(["verdict"])
    console.note("note")
    assert capsys.readouterr() == ("verdict\n", "note\n")


def test_json_is_one_ascii_line_that_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "é\x7f\x1b\n\ud800⟨U+", "n": None}
    console.result_json(value)
    out = capsys.readouterr().out
    assert out.isascii() and out.count("\n") == 1 and "\x7f" not in out
    assert json.loads(out) == value


def test_json_refuses_what_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="JSON"):
        console.result_json({"x": float("nan")})


def test_a_code_page_without_the_character_does_not_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    console.result_lines(["é ≤ 漢"])
    stream.flush()
    assert raw.getvalue().decode("cp1252") == "é \\u2264 \\u6f22\n"


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert console.wants_colour(Tty())
    assert not console.wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not console.wants_colour(Tty())


def test_pieces_without_colour_stand_between_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    console.result_pieces([[("Hi ", False), ("yes", True), ("<end>", True)], [("a", True), ("b", False)]])
    assert capsys.readouterr().out == "\nHi [yes<end>]\n\n[a]b\n"


def test_live_bars_show_untrusted_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Tty()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with console.show_progress() as progress:
        progress("tune", 1, 2, "[/red] \x1b]52;c;x\x07")
        progress("tune", 2, 2, "[bold]done")
    text = stream.getvalue()
    assert "[bold]done" in text and "\x1b]52" not in text


def test_disabled_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with console.show_progress(enabled=False) as progress:
        progress("s", 1, 1, "x")
    assert capsys.readouterr() == ("", "")


def test_not_a_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.show_progress() as progress:
        progress("s", 1, 1, "x")
    assert capsys.readouterr().err == "s: 1 of 1, x\n"


def test_ask_reads_lines_until_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\r\n\ntwo"))
    assert [console.ask("> ") for _ in range(4)] == ["one", "", "two", None]
    assert capsys.readouterr().err == ""


def test_a_second_round_is_timed_from_its_own_start() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = console.plain_progress(stream, clock=clock)
    progress("measure", 64, 100, "instructed")
    clock.now += 10
    progress("measure", 100, 100, "instructed")
    clock.now += 10
    progress("measure", 50, 300, "few-shot")
    assert stream.getvalue().splitlines()[-1] == "measure: 50 of 300, few-shot, about 50 s left"
