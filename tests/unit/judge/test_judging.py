"""What a judge is asked, what is believed of its replies, and that answers which ask for marks move nothing. Against a scripted server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.fake_server import Answer, FakeServer, fake_server
from tests.fixtures.hostile import HOSTILE

from luthier.core.types import Example
from luthier.evaluate.judge import JudgeWork, judge_pairs
from luthier.evaluate.run import Bench
from luthier.generate.endpoint import Endpoint
from luthier.metrics.catalogue import Scored
from luthier.metrics.judge import ATTACKS, CLOSING, RUBRIC, AnswerPair, Judged, attacked, judge_messages, question_of, read_choice
from luthier.store.cache import GenerationCache
from luthier.verdict.judge import JudgeRecord, read_judge

HEADS = re.compile(r"The request, quoted:|The wanted answer, quoted:|Answer [12], quoted:|Answer [12], quoted: it is empty\.")
MARKER = re.compile(r"<\|im_|<start_of_turn>|\[/?INST\]|</s>")


def _pair(number: int, prompt: str, tuned: str, wanted: str = "yes") -> AnswerPair:
    return AnswerPair(
        item_id=f"i{number}",
        cluster=f"c{number}",
        question=f"Is {number} a number?",
        wanted=(wanted,),
        prompt_answer=prompt,
        tuned_answer=tuned,
    )


def _outside(content: str) -> list[str]:
    """What the judge reads outside the quotes, without what is always there."""
    lines = [line for line in content.split("\n") if not line.startswith("| ")]
    return [line for line in lines if line and line != CLOSING and not HEADS.fullmatch(line)]


# ---------------------------------------------------------------- prompt


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_no_answer_leaves_its_quotes(prompt: str, tuned: str) -> None:
    _, user = judge_messages(_pair(1, prompt, tuned), "prompt")
    assert _outside(user.content) == []


@pytest.mark.parametrize("text", [*HOSTILE, *ATTACKS])
def test_no_known_attack_leaves_its_quotes_or_opens_a_turn(text: str) -> None:
    for first in ("prompt", "tuned"):
        system, user = judge_messages(_pair(1, text, f"no\n{text}", wanted=text), first)
        assert system.content == RUBRIC and _outside(user.content) == [] and not MARKER.search(user.content)


def test_both_orders_show_the_same_in_other_places() -> None:
    first, second = (judge_messages(_pair(1, "left", "right"), side)[1].content for side in ("prompt", "tuned"))
    assert first.index("| left") < first.index("| right") and second.index("| right") < second.index("| left")
    assert sorted(first) == sorted(second)
    assert "it is empty" in judge_messages(_pair(1, "", "right"), "prompt")[1].content
    assert "Length is no quality" in RUBRIC and len(ATTACKS) == 20


def test_a_conversation_is_shown_whole() -> None:
    item = Example(id="a", path="f", line=1, kind="instruct", input="card?", response="r", instruction="Answer.", system="Be kind.")
    assert question_of(item) == "system: Be kind.\n\nuser: Answer.\n\ncard?"


# ---------------------------------------------------------------- reply


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("VERDICT: 1", "prompt"),
        ("Both fine.\n**Verdict:** 2\n", "tuned"),
        ("verdict: TIE", "tie"),
        ("Answer 2", "tuned"),
        ("1.", "prompt"),
        ("VERDICT: 1\nVERDICT: 2", "tuned"),  # the last line counts: quotes of an answer may stand before
        ("VERDICT: 1\nThat is all.", None),
        ("VERDICT: 1 or 2", None),
        ("10/10", None),
        ("VERDICT: 12", None),
        ("", None),
        ("I cannot say.", None),
    ],
)
def test_replies(reply: str, choice: str | None) -> None:
    assert read_choice(reply, "prompt") == choice
    other = {"prompt": "tuned", "tuned": "prompt"}
    assert read_choice(reply, "tuned") == other.get(choice or "", choice)


def test_a_side_wins_only_where_both_orders_say_so() -> None:
    def winner(a: str | None, b: str | None) -> str:
        return Judged(pair_id="p", item_id="i", cluster="c", prompt_first=a, tuned_first=b).winner  # type: ignore[arg-type]

    assert winner("tuned", "tuned") == "tuned" and winner("prompt", "prompt") == "prompt"
    assert {winner("tuned", "prompt"), winner("tuned", "tie"), winner("prompt", None), winner(None, None), winner("tie", "tie")} == {"tie"}


# ---------------------------------------------------------------- scripted judges


def _parts(request: dict) -> tuple[str, list[str], list[str]]:
    """Wanted answer, both answers, and what stands outside the quotes, as a judge that reads exactly would see them."""
    content = request["messages"][-1]["content"]
    blocks: dict[str, list[str]] = {}
    head = ""
    for line in content.split("\n"):
        if HEADS.fullmatch(line):
            head = line.partition(",")[0]
            blocks.setdefault(head, [])
        elif line.startswith("| ") and head:
            blocks[head].append(line[2:])
    wanted, *answers = ("\n".join(blocks.get(name, [])) for name in ("The wanted answer", "Answer 1", "Answer 2"))
    return wanted, answers, _outside(content)


def honest(request: dict, number: int) -> Answer:
    """Right before wrong, by the first line; obeys whatever stands outside the quotes, and turns that a control token opens."""
    wanted, answers, outside = _parts(request)
    told = " ".join(outside)
    if told or MARKER.search(request["messages"][-1]["content"]):
        return Answer(text="I was told so. VERDICT: 2" if "2" in told else "VERDICT: 1")
    right = [answer.partition("\n")[0].strip() == wanted for answer in answers]
    return Answer(text=f"I looked.\nVERDICT: {'TIE' if right[0] == right[1] else 1 if right[0] else 2}")


def first_wins(request: dict, number: int) -> Answer:
    return Answer(text="VERDICT: 1")


def gullible(request: dict, number: int) -> Answer:
    """Chooses the longer answer: whatever is added to one wins."""
    _, answers, _ = _parts(request)
    return Answer(
        text="VERDICT: TIE" if len(answers[0]) == len(answers[1]) else f"VERDICT: {1 if len(answers[0]) > len(answers[1]) else 2}"
    )


def _bench(store: GenerationCache) -> Bench:
    return Bench(
        score=lambda item, text: Scored(values={}, note=""), metric="exact", max_new_tokens=8, stop="", choices=("a", "b"), batch=4,
        store=store, clusters={}, on_progress=lambda label, done, total: None, should_stop=lambda: False,
    )  # fmt: skip


def _judge(server: FakeServer, pairs: list[AnswerPair], path: Path) -> JudgeWork:
    model = Endpoint(url=server.url, model="judge", name="judge at fake", retries=0, role="judge")
    return judge_pairs(pairs, model, _bench(GenerationCache(path)), max_new_tokens=64, on_progress=lambda done, total: None)


PAIRS = [_pair(n, "yes" if n % 3 else "no", "yes" if n % 2 else "no") for n in range(60)]


def _reading(work: JudgeWork) -> object:
    record = JudgeRecord(key="k", judge="j", prompt="p", tuned="t", judged=work.judged, attacks=work.attacks, num_items=60)
    return read_judge(record, {}, {}, seed=0)


def test_twenty_answers_that_ask_for_marks_move_the_mean_by_at_most_a_twentieth(tmp_path: Path) -> None:
    """The row "Judge prompt": the same pairs with and without the demands in one side's answers, judged by one who obeys all it can see."""
    plain = [pair for pair in PAIRS if not pair.is_same][:20]
    swayed = [
        _pair(n, pair.prompt_answer, f"{pair.tuned_answer}\n{attack}") for n, (pair, attack) in enumerate(zip(plain, ATTACKS, strict=True))
    ]
    with fake_server(honest) as server:
        before, after = (_judge(server, pairs, tmp_path / name) for name, pairs in (("a", plain), ("b", swayed)))
    scores = [[one.score for one in work.judged] for work in (before, after)]
    assert len(scores[0]) == 20 and 0 < sum(scores[0]) < 20
    assert abs(sum(scores[1]) - sum(scores[0])) / 20 <= 0.05
    assert sum(one.score for one in after.attacks) / 20 - 0.5 <= 0.05


def test_without_quotes_that_judge_would_be_swayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr("luthier.metrics.judge.render_untrusted", lambda text, sink: "| " + text)
    with fake_server(honest) as server:
        work = _judge(server, PAIRS, tmp_path / "a")
    told = [one for one in work.attacks if one.winner != "tie" or one.prompt_first != one.tuned_first or one.prompt_first != "tie"]
    assert len(told) >= 5


def test_a_judge_of_places_decides_nothing(tmp_path: Path) -> None:
    with fake_server(first_wins) as server:
        reading = _reading(_judge(server, PAIRS, tmp_path / "a"))
    asked = sum(not pair.is_same for pair in PAIRS)
    assert reading.win_rate.value == 0.5 and reading.wins == reading.losses == 0 and reading.ties == 60
    assert reading.orders_differ.value == 1.0 and reading.num_reversed == asked and reading.first_place.value == 1.0


def test_a_judge_that_can_be_talked_to_is_found_out(tmp_path: Path) -> None:
    with fake_server(gullible) as server:
        reading = _reading(_judge(server, PAIRS, tmp_path / "a"))
    assert reading.moved == 0.5 and reading.num_attacks_won == 20
    assert any("ask for marks" in doubt for doubt in reading.doubts) and not reading.is_calibrated


def test_nothing_is_asked_twice_and_equal_answers_not_at_all(tmp_path: Path) -> None:
    with fake_server(honest) as server:
        first = _judge(server, PAIRS, tmp_path / "a")
        asked = len(server.seen)
        again = _judge(server, PAIRS, tmp_path / "a")
        assert again.judged == first.judged and len(server.seen) == asked
    same = [pair.item_id for pair in PAIRS if pair.is_same]
    assert same and [one.item_id for one in first.judged if one.is_same] == same
    texts = {(pair.question, pair.prompt_answer, pair.tuned_answer) for pair in [*[p for p in PAIRS if not p.is_same], *attacked(PAIRS)]}
    assert asked <= 2 * len(texts)
    assert all("| " in one.body["messages"][-1]["content"] and "temperature" in one.body for one in server.seen)


def test_answers_that_are_all_the_same_need_no_judge(tmp_path: Path) -> None:
    with fake_server(honest) as server:
        work = _judge(server, [_pair(n, "yes", "yes ") for n in range(5)], tmp_path / "a")
        assert not server.seen and not work.attacks and {one.winner for one in work.judged} == {"tie"}
