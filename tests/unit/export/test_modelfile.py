"""The Modelfile: what Ollama reads in it, and what it would send to the model."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.hostile import HOSTILE
from tests.fixtures.tiny_model import CHATML, make_tiny_model
from tests.unit.test_untrusted import ollama_values

from luthier.core.errors import InputError, ModelError
from luthier.core.types import Message
from luthier.export.modelfile import expected_prompt, find_turns, go_template, read_modelfile, render_modelfile, run_template
from luthier.models.tokenizer import open_tokenizer
from luthier.tokens.template import ChatEncoder, open_chat

DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe \"kind\" {x}.<|im_end|>\n' }}{% endif %}" + CHATML
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
NUMBERED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + loop.index|string + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' + (messages|length + 1)|string + '\n' }}{% endif %}"
)
TALKS = (
    [("user", "hello")],
    [("system", "Be brief."), ("user", "hello")],
    [("user", "hello"), ("assistant", "yes?"), ("user", "bye {{ .System }}")],
    [("system", 'Say "no".'), ("user", "hello\n\nthere"), ("assistant", "yes"), ("user", "bye")],
)


def _encoder(root: Path, template: str | None, *, bos_first: bool = False) -> ChatEncoder:
    return open_chat(open_tokenizer(make_tiny_model(root, chat_template=template, bos_first=bos_first)))


def _messages(talk: list[tuple[str, str]]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in talk]  # type: ignore[arg-type]


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, GEMMA, None], ids=["chatml", "default system", "folded system", "plain"])
def test_go_template_writes_what_the_models_own_template_writes(template: str | None, tmp_path: Path) -> None:
    strip = template == GEMMA
    encoder = _encoder(tmp_path, template, bos_first=strip)
    written = go_template(find_turns(encoder, strip_bos=strip))
    for talk in TALKS:
        messages = _messages(list(talk))
        assert run_template(written, messages) == expected_prompt(encoder, messages, strip_bos=strip), talk


def test_a_template_that_counts_turns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="more than words around each turn"):
        find_turns(_encoder(tmp_path, NUMBERED), strip_bos=False)


def _write(system: str, stop: str = "<|im_end|>") -> str:
    template = '{{ "<s>\\n" }}{{ range .Messages }}{{ .Content }}{{ end }}'
    return render_modelfile(gguf_file="model-q8_0.gguf", template=template, system=system, stops=[stop], context=8192)


@settings(derandomize=True, max_examples=2000, deadline=None)
@given(st.text(max_size=60) | st.sampled_from(HOSTILE) | st.text(alphabet='"\n FROM/.', max_size=30))
def test_modelfile_reads_back_as_meant_or_is_refused(system: str) -> None:
    """Read by our reader and by a second one, written from Ollama's source: no text of a user becomes a command."""
    try:
        text = _write(system, stop=system or "x")
    except InputError:
        return
    read = read_modelfile(text)
    assert read.system == system and read.stops == (system or "x",) and read.source == "./model-q8_0.gguf"
    assert dict(read.parameters)["repeat_penalty"] == "1"
    again = ollama_values(_write(system))
    assert [name for name, _ in again] == ["from", "template", *(["system"] if system else []), *["parameter"] * 4]
    assert not system or dict(again)["system"] == system


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.text(max_size=80))
def test_reading_any_text_as_modelfile_or_template_ends_in_a_typed_error_or_a_value(text: str) -> None:
    for read in (read_modelfile, lambda t: run_template(t, [Message(role="user", content="x")])):
        with contextlib.suppress(InputError):
            read(text)


def test_words_of_a_template_are_never_actions(tmp_path: Path) -> None:
    hostile = '{ {.System}}""" FROM /etc/passwd " 🚀'
    roles = CHATML.replace("<|im_start|>' + message", f"<|im_start|>{hostile}' + message")
    encoder = _encoder(tmp_path, roles.replace("<|im_start|>assistant", f"<|im_start|>{hostile}assistant"))
    written = go_template(find_turns(encoder, strip_bos=False))
    assert "FROM /etc" in written and '"""' not in written and ".System}}" not in written
    messages = _messages(list(TALKS[3]))
    text = render_modelfile(gguf_file="a.gguf", template=written, system="", stops=[], context=100)
    assert run_template(read_modelfile(text).template, messages) == expected_prompt(encoder, messages, strip_bos=False)
