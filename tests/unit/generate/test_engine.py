"""The running engine: the same tokens as transformers' own whatever enters and leaves, and nothing of one answer in another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM

from luthier.core.errors import InputError, ModelError
from luthier.core.types import GenerationRequest, Message, Order, Piece, Sampling
from luthier.generate.admission import MAX_READ, choose, shared_lengths
from luthier.generate.engine import Engine
from luthier.generate.local import generate
from luthier.generate.prefix_cache import PrefixCache
from luthier.generate.sampling import draw, probabilities, random_stream
from luthier.generate.store import NoStore
from luthier.generate.writing import Writing
from luthier.models.backbone import use_layout_attention
from luthier.models.load import inspect_folder, open_model
from luthier.models.lora import LoraSettings, add_lora, save_adapter
from luthier.models.tokenizer import open_tokenizer
from luthier.models.voices import Voices
from luthier.pipeline.open import open_engine, open_local
from luthier.tokens.template import ChatEncoder, open_chat
from luthier.train.precision import choose_precision

TEXTS = ["Which kind of request is this? " * (k % 4) + f"I have {k * 37} quick brown foxes" for k in range(11)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ChatEncoder:
    return open_chat(open_tokenizer(folder))


@pytest.fixture(scope="module")
def voices(folder: Path) -> Voices:
    model = open_model(folder, dtype=torch.float32)
    use_layout_attention(model)
    return Voices(model)


def _engine(voices: Voices, encoder: ChatEncoder, **given: int) -> Engine:
    return Engine(voices, encoder, context=512, base_name="tiny", **given)


def _order(text: str = "Which foxes?", **given: object) -> Order:
    return Order(**{"messages": (Message(role="user", content=text),), "max_new_tokens": 12, **given})  # type: ignore[arg-type]


def _run(engine: Engine) -> dict[int, list[Piece]]:
    found: dict[int, list[Piece]] = {}
    for _ in range(2000):
        if engine.idle:
            return found
        for piece in engine.step():
            found.setdefault(piece.ticket, []).append(piece)
    raise AssertionError("the engine does not come to an end")


def _tokens(pieces: Sequence[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.tokens]


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _reference(folder: Path, ids: Sequence[int], new: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    x = torch.tensor([list(ids)])
    out = model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=2)
    return out[0, len(ids) :].tolist()


def test_greedy_equals_transformers_while_rows_enter_and_leave(folder: Path, voices: Voices, encoder: ChatEncoder) -> None:
    engine = _engine(voices, encoder, max_active=4)
    want = [_reference(folder, encoder.encode_prompt(_order(text).messages), 3 + 7 * k % 15) for k, text in enumerate(TEXTS)]
    for turn in range(2):  # the second time, prompts come from the cache
        tickets = [engine.submit(_order(text, max_new_tokens=3 + 7 * k % 15)) for k, text in enumerate(TEXTS)]
        found = _run(engine)
        assert [_tokens(found[ticket]) for ticket in tickets] == want
        assert all(pieces[-1].num_new_tokens == len(_tokens(pieces)) for pieces in found.values())
        cached = [found[ticket][-1].num_cached_tokens for ticket in tickets]
        prompts = [found[ticket][-1].num_prompt_tokens for ticket in tickets]
        assert all(0 <= c < p for c, p in zip(cached, prompts, strict=True))
        assert turn == 0 or sum(c > 10 for c in cached) > 5
    assert len({len(tokens) for tokens in want}) > 5


def test_rows_that_enter_later_join_the_prefix_that_stands(folder: Path, voices: Voices, encoder: ChatEncoder) -> None:
    engine = _engine(voices, encoder, max_active=8)
    block = "The quick brown fox jumps over the lazy dog. " * 4
    tickets = [engine.submit(_order(block + text)) for text in TEXTS[:3]]
    found: dict[int, list[Piece]] = {}
    for _ in range(3):
        for piece in engine.step():
            found.setdefault(piece.ticket, []).append(piece)
    tickets += [engine.submit(_order(block + text)) for text in TEXTS[3:5]]
    for ticket, pieces in _run(engine).items():
        found.setdefault(ticket, []).extend(pieces)
    for text, ticket in zip(TEXTS, tickets, strict=False):
        assert _tokens(found[ticket]) == _reference(folder, encoder.encode_prompt(_order(block + text).messages), 12)
    assert found[tickets[-1]][-1].num_cached_tokens > 40


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base, info = tmp_path_factory.mktemp("adapters"), inspect_folder(folder)
    for n, targets in enumerate(("all-linear", ("q_proj", "down_proj"), ("v_proj",))):
        adapted = add_lora(open_model(folder, dtype=torch.float32), LoraSettings(r=4 * (n + 1), alpha=8, dropout=0.0, targets=targets), n)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n))
        save_adapter(adapted, base / f"a{n}", base_info=info)
    return {f"v.{n}": base / f"a{n}" for n in range(3)}


@pytest.mark.parametrize("is_fast", [True, False])
def test_several_adapters_in_one_batch_answer_as_each_alone(
    folder: Path, adapters: dict[str, Path], is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision = choose_precision("float32")
    request = [GenerationRequest(item_id="i", messages=_order(text).messages, max_new_tokens=9) for text in TEXTS[:3]]
    if not is_fast:
        monkeypatch.setattr("luthier.models.voices.open_fast_body", lambda body, adapters: None)
    engine = open_engine(folder, precision, base_name="base", adapters=adapters)
    assert engine._model.mixes == is_fast
    tickets = {(v, k): engine.submit(_order(text, voice=v, max_new_tokens=9)) for k, text in enumerate(TEXTS[:3]) for v in engine.voices}
    found = _run(engine)
    monkeypatch.setattr("luthier.models.voices.open_fast_body", lambda body, adapters: None)  # peft's own arithmetic as the reference
    answers: dict[str, list[str]] = {}
    for voice in engine.voices:
        local = open_local(folder, precision, adapter=adapters.get(voice))
        answers[voice] = [g.text for g in generate(local, request, batch=3, store=NoStore(), on_progress=lambda done, total: None)]
        assert [_text(found[tickets[voice, k]]) for k in range(3)] == answers[voice]
    assert len({tuple(texts) for texts in answers.values()}) == 4


def test_a_voice_that_is_not_there_is_named(voices: Voices, encoder: ChatEncoder) -> None:
    with pytest.raises(ModelError, match="tiny") as caught:
        _engine(voices, encoder).submit(_order(voice="tinny"))
    assert '"tiny"' in caught.value.fix


def test_sampling_depends_on_its_seed_and_not_on_its_neighbours(voices: Voices, encoder: ChatEncoder) -> None:
    hot = Sampling(temperature=1.5, top_p=0.95, seed=7)
    alone = _engine(voices, encoder)
    first = alone.submit(_order(TEXTS[4], sampling=hot))
    want = _tokens(_run(alone)[first])
    crowd = _engine(voices, encoder, max_active=3)
    others = [crowd.submit(_order(text, sampling=Sampling(temperature=1.0, seed=k))) for k, text in enumerate(TEXTS)]
    same = crowd.submit(_order(TEXTS[4], sampling=hot))
    other = crowd.submit(_order(TEXTS[4], sampling=Sampling(temperature=1.5, top_p=0.95, seed=8)))
    found = _run(crowd)
    assert _tokens(found[same]) == want and _tokens(found[other]) != want and len(others) == 11


def test_a_stop_text_across_tokens_ends_the_answer_and_is_not_shown(voices: Voices, encoder: ChatEncoder) -> None:
    engine = _engine(voices, encoder)
    hot = Sampling(temperature=1.0, seed=2)  # greedily, the tiny model says the same again and again
    ticket = engine.submit(_order(max_new_tokens=20, sampling=hot))
    pieces = _run(engine)[ticket]
    whole, tokens = _text(pieces), _tokens(pieces)
    assert whole == encoder.decode(tokens)
    at = len(encoder.decode(tokens[:6])) - 1
    stop = whole[at : at + 4]  # from inside one token into the next
    want = whole[: whole.index(stop)]
    ticket = engine.submit(_order(max_new_tokens=20, sampling=hot, stop=("never", stop)))
    cut = _run(engine)[ticket]
    assert _text(cut) == want and want and cut[-1].finish == "stop" and len(cut) < len(pieces)
    shown = ""
    for piece in cut:
        shown += piece.text
        assert want.startswith(shown)  # nothing had to be taken back


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(alphabet="aäß€日\U0001f600 stop", max_size=24), st.lists(st.sampled_from(["st", "top", "日", "€ "]), max_size=3))
def test_text_comes_whole_whatever_the_tokens(text: str, stops: list[str]) -> None:
    encoder = _tiny_encoder()
    writing, shown = Writing(encoder, stops), ""
    for token in encoder.tokenizer(text, add_special_tokens=False)["input_ids"]:
        if not writing.stopped:
            fresh = writing.add(token)
            assert "\ufffd" not in fresh
            shown += fresh
    shown += writing.end()
    assert shown == min((text.partition(stop)[0] for stop in stops), key=len, default=text)


_ENCODERS: list[ChatEncoder] = []


def _tiny_encoder() -> ChatEncoder:
    return _ENCODERS[0]


@pytest.fixture(scope="module", autouse=True)
def _known(encoder: ChatEncoder) -> None:
    _ENCODERS[:] = [encoder]


def test_half_a_character_at_the_end_is_shown_as_replaced(encoder: ChatEncoder) -> None:
    ids = encoder.tokenizer("a€", add_special_tokens=False)["input_ids"]
    writing = Writing(encoder, ())
    shown = "".join(writing.add(token) for token in ids[:-1])
    assert shown == "a" and writing.end() == encoder.decode(ids[:-1])[1:]


def test_cancel_frees_the_row_at_once(folder: Path, voices: Voices, encoder: ChatEncoder) -> None:
    engine = _engine(voices, encoder, max_active=2)
    tickets = [engine.submit(_order(text, max_new_tokens=40)) for text in TEXTS[:3]]
    engine.step()
    assert (engine.num_active, engine.num_waiting) == (2, 1)
    engine.cancel(tickets[0])
    assert engine.num_active == 1
    engine.cancel(999)
    pieces = engine.step()
    assert {piece.ticket for piece in pieces} == set(tickets[1:])
    engine.cancel(tickets[1])
    found = _run(engine)[tickets[2]]
    assert _tokens(found)[-3:] == _reference(folder, encoder.encode_prompt(_order(TEXTS[2]).messages), 40)[-3:]
    assert engine.idle


SCHEMA = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["lost_card", "größe"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["intent", "n", "words"],
    "additionalProperties": False,
}


def test_answers_held_to_a_schema_parse_and_fit_it(voices: Voices, encoder: ChatEncoder) -> None:
    engine = _engine(voices, encoder)
    tickets = [
        engine.submit(_order(json_schema=json.dumps(SCHEMA), max_new_tokens=120, sampling=Sampling(temperature=float(k % 3), seed=k)))
        for k in range(12)
    ]
    digits = engine.submit(_order(regex="[0-9]{4}-[0-9]{2}", max_new_tokens=40))
    label = engine.submit(_order(choices=("lost_card", "top_up"), max_new_tokens=40))
    found = _run(engine)
    rows = [json.loads(_text(found[ticket])) for ticket in tickets]
    assert all(set(row) == {"intent", "n", "words"} and row["intent"] in ("lost_card", "größe") and 0 <= row["n"] <= 99 for row in rows)
    assert all(len(row["words"]) <= 2 and all(len(word) <= 3 for word in row["words"]) for row in rows)
    assert all(found[ticket][-1].finish == "stop" for ticket in tickets) and len({_text(found[t]) for t in tickets}) > 3
    assert len(_text(found[digits])) == 7 and _text(found[digits])[4] == "-"
    assert _text(found[label]).strip() in ("lost_card", "top_up")


@pytest.mark.parametrize(
    "form",
    [
        {"json_schema": "{"}, {"json_schema": '{"type": "foo"}'}, {"json_schema": "[]"}, {"json_schema": '{"$ref": "http://x.example/s"}'},
        {"json_schema": '{"a":' * 3000}, {"json_schema": "[" * 70_000}, {"regex": "(["}, {"regex": "a", "choices": ("b",)},
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_held_to_is_refused_at_once(voices: Voices, encoder: ChatEncoder, form: dict[str, object]) -> None:
    engine = _engine(voices, encoder)
    with pytest.raises(InputError) as caught:
        engine.submit(_order(**form))
    assert caught.value.fix and caught.value.where in ("json_schema", "regex") and len(str(caught.value)) < 600
    assert engine.idle


def test_orders_out_of_range_are_refused(voices: Voices, encoder: ChatEncoder) -> None:
    engine = _engine(voices, encoder)
    for bad in (
        {"max_new_tokens": 0}, {"sampling": Sampling(temperature=-1.0)}, {"sampling": Sampling(top_p=0.0)},
        {"sampling": Sampling(min_p=2.0)}, {"sampling": Sampling(top_k=-1)}, {"sampling": Sampling(repetition_penalty=0.0)},
        {"num_logprobs": 21}, {"stop": ("",)},
        {"sampling": Sampling(temperature=float("nan"))}, {"prompt_ids": (5,)}, {"messages": ()}, {"max_new_tokens": 600},
    ):  # fmt: skip
        with pytest.raises(InputError, match=" "):
            raise AssertionError(f"{bad} was taken as {engine.submit(_order(**bad))}")
    with pytest.raises(InputError, match="the model sees 512"):
        engine.submit(_order("fox " * 600))
    assert engine.idle


def test_logprobs_are_those_of_the_model(folder: Path, voices: Voices, encoder: ChatEncoder) -> None:
    engine = _engine(voices, encoder)
    ticket = engine.submit(_order(num_logprobs=3, sampling=Sampling(temperature=2.0, seed=1), max_new_tokens=6))
    pieces = _run(engine)[ticket]
    prompt = encoder.encode_prompt(_order().messages)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = [*prompt, *_tokens(pieces)]
    with torch.no_grad():
        want = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
    for t, piece in enumerate(pieces):
        [found] = piece.logprobs
        row = want[len(prompt) + t - 1]
        assert found.logprob == pytest.approx(float(row[ids[len(prompt) + t]]), abs=1e-4)
        assert [p for _, p in found.likeliest] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert found.spelled == encoder.spell(ids[len(prompt) + t])


def test_the_next_turn_of_a_chat_is_read_from_the_cache(folder: Path, voices: Voices, encoder: ChatEncoder) -> None:
    engine = _engine(voices, encoder)
    talk = _order("Which kind of request is this? I have ordered a new card.").messages
    first = engine.submit(Order(messages=talk, max_new_tokens=10))
    answer = _text(_run(engine)[first])
    talk = (*talk, Message(role="assistant", content=answer), Message(role="user", content="And when will it arrive?"))
    second = engine.submit(Order(messages=talk, max_new_tokens=10))
    last = _run(engine)[second]
    assert last[-1].num_cached_tokens >= 20
    assert _tokens(last) == _reference(folder, encoder.encode_prompt(talk), 10)


def test_the_cache_is_bounded_and_still_right(folder: Path, voices: Voices, encoder: ChatEncoder) -> None:
    one = 2 * 2 * 2 * 32 * 4  # bytes of a token: layers, keys and values, key heads, head size, float32
    engine = _engine(voices, encoder, max_active=2, cache_bytes=60 * one)
    for _ in range(2):
        tickets = [engine.submit(_order(text)) for text in TEXTS]
        found = _run(engine)
        assert engine._cache.num_bytes <= 60 * one
        for ticket, text in zip(tickets, TEXTS, strict=True):
            assert _tokens(found[ticket]) == _reference(folder, encoder.encode_prompt(_order(text).messages), 12)


PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(PATHS, st.integers(5, 60))
def test_the_tree_gives_back_what_was_put_in(paths: list[list[int]], room: int) -> None:
    """Keys that are a function of the tokens before them, so that a wrong place shows."""
    cache = PrefixCache(room * 8)

    def kv(ids: list[int]) -> torch.Tensor:
        codes = [float(sum((token + 1) * 4**n for n, token in enumerate(ids[: t + 1]))) for t in range(len(ids))]
        return torch.tensor(codes)[None, None, :, None, None].expand(1, 2, len(ids), 1, 1).clone()

    for ids in paths:
        cache.add("a", ids, kv(ids))
        assert cache.num_bytes <= room * 8
        for other in paths:
            n = cache.match("a", other)
            found = cache.read("a", other)
            assert (found is None) == (n == 0)
            if found is not None:
                assert torch.equal(found, kv(other)[:, :, :n])
        assert cache.match("b", ids) == 0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 1500), max_size=40), st.integers(0, 12))
def test_the_first_to_wait_enters_and_passes_stay_small(lengths: list[int], room: int) -> None:
    chosen = choose(lengths, room)
    assert len(chosen) == len(set(chosen)) <= room
    assert not lengths or not room or 0 in chosen
    assert len(chosen) < 2 or len(chosen) * max(lengths[i] for i in chosen) <= MAX_READ


def test_shared_beginnings() -> None:
    head, a, b = list(range(100, 130)), list(range(200, 520)), list(range(600, 640))
    assert shared_lengths([]) == [] and shared_lengths([head]) == [0]
    assert shared_lengths([[*head, 1], [*head, 2], [5]]) == [30, 30, 0]
    assert shared_lengths([[1, 2], [1, 2], [1, 3]]) == [0, 0, 0]  # too short to be worth it
    assert shared_lengths([[*head, *a, 1], [*head, *a, 2], [*head, *b, 1], [*head, *b, 2]]) == [350, 350, 30, 30]
    assert shared_lengths([head, head]) == [29, 29]  # one token at least is left to read


def test_what_is_drawn_from() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    one = {"temperature": 1.0}
    assert probabilities(logits, Sampling(**one)).tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert probabilities(logits, Sampling(**one, top_k=2)).nonzero()[:, 0].tolist() == [0, 1]
    assert probabilities(logits, Sampling(**one, top_p=0.69)).nonzero()[:, 0].tolist() == [0, 1]
    assert probabilities(logits, Sampling(**one, top_p=0.71)).nonzero()[:, 0].tolist() == [0, 1, 2]
    assert probabilities(logits, Sampling(**one, min_p=0.6)).nonzero()[:, 0].tolist() == [0, 1]
    stream = random_stream(Sampling(seed=5))
    drawn = [draw(logits, Sampling(temperature=1.0), stream) for _ in range(4000)]
    assert [drawn.count(n) / 4000 for n in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.03)
    assert {draw(logits, Sampling(temperature=5.0), stream, allowed=torch.tensor([1, 3])) for _ in range(50)} == {1, 3}
    assert draw(logits, Sampling(repetition_penalty=5.0), stream, seen=(0,)) == 1  # negative logits are multiplied
