"""Answers held to labels: the same tokens as brute force over the whole vocabulary, and nothing changed where the answer was valid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from luthier.core.types import GenerationRequest, Message
from luthier.generate.choices import Choices, open_choices
from luthier.generate.local import LocalModel, generate
from luthier.generate.store import NoStore
from luthier.models.backbone import use_layout_attention
from luthier.models.load import open_model
from luthier.models.tokenizer import open_tokenizer
from luthier.tokens.spelling import read_spelling
from luthier.tokens.template import open_chat

EOS = frozenset({2})
BYTE_LEVEL = PreTrainedTokenizerFast(
    tokenizer_object=make_tiny_tokenizer(), eos_token="<|im_end|>", bos_token="<|im_start|>", unk_token="<|endoftext|>"
)


def _sentence_piece() -> PreTrainedTokenizerFast:
    vocab = {"<s>": 0, "</s>": 1, **{f"<0x{byte:02X}>": byte + 2 for byte in range(256)}}
    for piece in ("▁", "c", "a", "r", "d", "▁ca", "rd", "card", "_", "lost", "é", "▁card", "\n", "\n\n", "d\n"):
        vocab.setdefault(piece, len(vocab))
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


SENTENCE_PIECE = _sentence_piece()


def _brute(tokenizer: PreTrainedTokenizerFast, labels: list[str], stop: str, written: bytes) -> set[int]:
    """Every token whose bytes keep the text within the language: slow, and nothing but the definition."""
    spelling = read_spelling(tokenizer)
    assert spelling is not None
    whole = [pad + label.encode() for label in labels for pad in (b"", b" ")]
    ends = [text + stop.encode() for text in whole]
    found = set()
    for token, spelled in spelling.of_id.items():
        text = written + spelled
        if any(end.startswith(text) for end in ends) or (
            stop and any(text.startswith(end) and not written.startswith(end) for end in ends)
        ):
            found.add(token)
    return found | (EOS if written in whole else set()) or set(EOS)


LABELS = st.lists(st.text(alphabet="card_lost é日\U0001f600", min_size=1, max_size=8), min_size=1, max_size=6, unique=True)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(labels=LABELS, stop=st.sampled_from(["", "\n\n"]), kind=st.sampled_from(["bytes", "pieces"]), data=st.data())
def test_allowed_tokens_are_those_of_brute_force(labels: list[str], stop: str, kind: str, data: st.DataObject) -> None:
    tokenizer = BYTE_LEVEL if kind == "bytes" else SENTENCE_PIECE
    held = open_choices(tokenizer, tuple(labels), stop, EOS)
    assert held is not None
    written = b""
    for _ in range(12):
        allowed = held.allowed(written).tolist()
        assert allowed == sorted(allowed) and set(allowed) == _brute(tokenizer, labels, stop, written), (written, labels)
        text = [token for token in allowed if token not in EOS]
        if not text:
            assert held.is_complete(written)
            return
        written = held.after(written, data.draw(st.sampled_from(text)))
        if stop and stop.encode() in written:
            return


def test_a_label_that_begins_another_can_be_ended_or_gone_on() -> None:
    held = open_choices(BYTE_LEVEL, ("card", "card_lost"), "", EOS)
    assert held is not None
    assert 2 in held.allowed(b"card").tolist() and len(held.allowed(b"card")) > 1
    assert not held.is_complete(b"card") and held.is_complete(b"card_lost") and held.is_complete(b" card_lost")
    assert held.allowed(b"card_lost").tolist() == [2]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCE_PIECE], ids=["bytes", "pieces"])
def test_bytes_are_what_the_tokenizer_decodes(tokenizer: PreTrainedTokenizerFast) -> None:
    spelling = read_spelling(tokenizer)
    assert spelling is not None
    for token, spelled in spelling.of_id.items():
        decoded = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        assert spelled.decode("utf-8", "replace") == decoded or "\ufffd" in decoded, (token, spelled, decoded)
    assert not set(tokenizer.added_tokens_decoder) & set(spelling.of_id)


def test_another_kind_of_tokenizer_is_left_free() -> None:
    core = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    assert read_spelling(tokenizer) is None
    assert open_choices(tokenizer, ("a",), "", EOS) is None


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder: Path = make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3)
    model = open_model(folder, dtype=torch.float32)
    use_layout_attention(model)
    return LocalModel(model=model, encoder=open_chat(open_tokenizer(folder)), fingerprint="tiny", context=512)


def _requests(choices: tuple[str, ...], **changes: object) -> list[GenerationRequest]:
    return [
        GenerationRequest(item_id=f"i{k}", messages=(Message(role="user", content=f"Which kind is {k * 37}?"),), max_new_tokens=12,
                          choices=choices, **changes)  # type: ignore[arg-type]
        for k in range(12)
    ]  # fmt: skip


def _texts(local: LocalModel, requests: list[GenerationRequest], batch: int = 5) -> list[str]:
    return [g.text for g in generate(local, requests, batch=batch, store=NoStore(), on_progress=lambda done, total: None)]


def test_every_answer_is_a_label_whatever_the_model(local: LocalModel) -> None:
    labels = ("card_arrival", "card", "top up", "größe", "日本")
    found = generate(local, _requests(labels), batch=5, store=NoStore(), on_progress=lambda done, total: None)
    assert {g.text.strip() for g in found} <= set(labels) and all(g.finish == "stop" for g in found)
    hot = _texts(local, [replace(request, temperature=50.0, seed=k) for k, request in enumerate(_requests(labels))])
    assert {text.strip() for text in hot} <= set(labels) and len(set(hot)) > 1
    assert _texts(local, _requests(labels), batch=12) == [g.text for g in found]


def test_an_answer_that_was_valid_stays_the_same(local: LocalModel) -> None:
    free = _texts(local, _requests(()))
    labels = tuple(dict.fromkeys(text for text in free if "\ufffd" not in text))  # half a character is no text
    assert len(labels) > 3
    held = _texts(local, _requests(labels))
    assert [text for text, before in zip(held, free, strict=True) if before in labels] == [text for text in free if text in labels]
    assert set(held) <= set(labels)


def test_a_model_without_chat_training_ends_at_the_stop_text(local: LocalModel) -> None:
    plain = replace(local, encoder=replace(local.encoder, is_chat=False))
    labels = ("card", "card_arrival")
    assert {text.strip() for text in _texts(plain, _requests(labels, stop="\n\n"))} <= set(labels)


def test_probability_of_a_label_is_that_of_all_tokens_that_lead_to_it(local: LocalModel, tmp_path: Path) -> None:
    """Recomputed a prompt at a time with the plain forward pass, other tokens impossible."""
    labels = ("card_arrival", "card", "top up")
    held = open_choices(local.encoder.tokenizer, labels, "", local.encoder.eos_ids)
    spelling = read_spelling(local.encoder.tokenizer)
    assert held is not None and spelling is not None
    requests = _requests(labels)
    found = generate(local, requests, batch=5, store=NoStore(), on_progress=lambda done, total: None)
    plain = open_model(make_tiny_model(tmp_path / "model", seed=3), dtype=torch.float32).eval()
    for request, generation in zip(requests, found, strict=True):
        ids, written, total = list(local.encoder.encode_prompt(request.messages)), b"", 0.0
        wanted = [pad + generation.text.strip().encode() for pad in (b"", b" ")]
        while not held.is_complete(written):
            logits = plain(torch.tensor([ids])).logits[0, -1].double().detach()
            allowed = held.allowed(written)
            p = torch.softmax(logits[allowed], dim=-1)
            leads = [
                (written in wanted)
                if token in local.encoder.eos_ids
                else any(w.startswith(written + spelling.of_id[token]) for w in wanted)
                for token in allowed.tolist()
            ]
            total += float(torch.log(p[torch.tensor(leads)].sum()))
            token = int(allowed[logits[allowed].argmax()])
            if token in local.encoder.eos_ids:
                break
            ids.append(token)
            written = held.after(written, token)
        assert written.decode() == generation.text and generation.choice_logprob == pytest.approx(total, abs=1e-4)
        assert generation.choice_logprob <= 0
    assert any((generation.choice_logprob or 0) < -0.1 for generation in found)


@pytest.mark.parametrize("stop", ["", "\n\n"])
def test_a_single_label_is_certain_and_a_free_answer_has_no_probability(local: LocalModel, stop: str) -> None:
    plain = replace(local, encoder=replace(local.encoder, is_chat=not stop))
    for labels, wanted in ((("card",), 0.0), ((), None)):
        for generation in generate(plain, _requests(labels, stop=stop)[:3], batch=3, store=NoStore(), on_progress=lambda done, total: None):
            assert generation.choice_logprob == (wanted if wanted is None else pytest.approx(wanted, abs=1e-5))


def test_an_answer_cut_off_within_a_label_has_no_probability(local: LocalModel) -> None:
    requests = [replace(request, max_new_tokens=1) for request in _requests(("a long label that takes many tokens", "another long one"))]
    for generation in generate(local, requests, batch=4, store=NoStore(), on_progress=lambda done, total: None):
        assert generation.choice_logprob is None and generation.finish == "length"


def test_what_a_row_is_held_to_is_part_of_its_key(local: LocalModel) -> None:
    class Memory(dict):
        def put(self, key: str, generation: object) -> None:
            self[key] = generation

    store = Memory()
    for labels in ((), ("card",), ("lost",)):
        generate(local, _requests(labels)[:1], batch=1, store=store, on_progress=lambda done, total: None)
    assert len(store) == 3 and sum(g.text.strip() in ("card", "lost") for g in store.values()) == 2


def test_long_label_lists_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held = open_choices(BYTE_LEVEL, tuple(f"label_{n}" for n in range(300)), "", EOS)
    assert held is not None
    first = held.allowed(b"label_1")
    monkeypatch.setattr(Choices, "_find", lambda self, written: 1 / 0)
    assert held.allowed(b"label_1") is first
