"""Conversations and examples as token ids, through the model's own chat template.

Which tokens are trained is found by prefix difference: the prompt is rendered as the model will see it when it is to answer,
the whole example as its template writes it, and what the second has more than the first is what the model has to write. No
marker strings, so any template works whose answers begin the way its own generation prompt ends.

Trained are the tokens of `response` and the one token that ends the turn; earlier assistant turns in `history` are context.
What a template writes after the end of the turn (SmolLM2: a line break) the model never has to write: it is cut off.
Labels are positions, never ids, so a padding token that is also the end token stays trained where it ends an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from luthier.core.errors import InputError, ModelError
from luthier.core.types import Example, Message, TokenRow
from luthier.tokens.controls import Controls, Marks, find_controls, mark_content, pick_marks, tokenise
from luthier.tokens.render import chat_template, check_template, fold_system, render_chat, render_plain
from luthier.tokens.spelling import read_spelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER, _ANSWER = "Wq7sys1Wq", "Wq7usr2Wq", "Wq7ans3Wq"  # stand-ins no template writes or changes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatEncoder:
    """A tokenizer with its template, read and tried. `eos_ids`: what ends an answer, at generation too."""

    tokenizer: PreTrainedTokenizerBase
    is_chat: bool  # False: no template, `render_plain`
    folds_system: bool  # the template has no system role: system text goes in front of the first user turn
    controls: Controls
    bos_ids: tuple[int, ...]  # put in front of plain text; a chat template writes its own
    eos_ids: frozenset[int]
    end_id: int  # the trained end of an answer
    head_controls: int  # control tokens the template writes between generation prompt and answer
    tail: str | None  # what it writes behind the answer, where that holds no control token; None where it does

    def encode_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]] = ()) -> tuple[int, ...]:
        """Ids up to where the model begins to answer, with exactly one BOS if the model has one. Raises InputError.

        `tools` are shown as the model's template shows them; a template without a place for them is an error, for they would be lost.
        """
        if not tools:
            marked, marks = self._mark(messages)
            return tuple(self._encode_prompt_text(self._render(marked, is_prompt=True), marks))
        return tuple(self._encode_with_tools(messages, tools))

    def encode_example(self, example: Example) -> TokenRow:
        """Prompt, response and end of turn; of a preference pair the wanted response. Raises InputError with file and line.

        Raw text is trained whole, from its first token after BOS (without BOS: from its second, which is the first that can be
        predicted) to EOS.
        """
        try:
            if example.kind == "text":
                return self._encode_text(example)
            return self._encode_pair(example)
        except InputError as error:
            raise InputError(error.message, where=f"{example.path}:{example.line}", fix=error.fix) from error

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Ids of a text that is to be gone on with as it stands: no template, control spellings read as text. Raises InputError."""
        _refuse_surrogates([text])
        marks = pick_marks([text])
        ids = tokenise(self.tokenizer, self.controls, mark_content(self.controls, text, marks), marks)
        if not (ids or self.bos_ids):
            raise InputError("the prompt is empty", where="prompt", fix='"prompt": "Once upon a time"')
        return (*self.bos_ids, *ids)

    def encode_bare(self, text: str) -> list[int]:
        """Ids of a bare text, control spellings read as text."""
        marks = pick_marks([text])
        return tokenise(self.tokenizer, self.controls, mark_content(self.controls, text, marks), marks)

    def count_tokens(self, text: str) -> int:
        """Tokens of a bare text."""
        return len(self.encode_bare(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without control tokens. Untrusted."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def spell(self, token: int) -> bytes:
        """The bytes a token stands for; of a control token its name."""
        spelling = read_spelling(self.tokenizer)
        spelled = None if spelling is None else spelling.of_id.get(token)
        return spelled if spelled is not None else self._spell([token]).encode("utf-8", "surrogatepass")

    def _mark(self, messages: Sequence[Message]) -> tuple[list[Message], Marks]:
        contents = [message.content for message in messages]
        _refuse_surrogates(contents)
        marks = pick_marks(contents)
        return [Message(role=m.role, content=mark_content(self.controls, m.content, marks)) for m in messages], marks

    def _render(self, messages: Sequence[Message], *, is_prompt: bool) -> str:
        if not self.is_chat:
            return render_plain(messages)
        turns = fold_system(messages) if self.folds_system else messages
        return render_chat(self.tokenizer, turns, add_generation_prompt=is_prompt)

    def _encode_with_tools(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> list[int]:
        strings = [text for tool in tools for text in _strings(tool)]
        contents = [*(message.content for message in messages), *strings]
        _refuse_surrogates(contents)
        marks = pick_marks(contents)
        marked = [Message(role=m.role, content=mark_content(self.controls, m.content, marks)) for m in messages]
        shown = [cast("dict[str, object]", _mark_strings(tool, self.controls, marks)) for tool in tools]
        turns = fold_system(marked) if self.folds_system else marked
        text = render_chat(self.tokenizer, turns, add_generation_prompt=True, tools=shown) if self.is_chat else ""
        if text == (render_chat(self.tokenizer, turns, add_generation_prompt=True) if self.is_chat else ""):
            raise InputError("the model's chat template has no place for tools", fix="describe them in the system message")
        return tokenise(self.tokenizer, self.controls, text, marks)

    def _encode_prompt_text(self, text: str, marks: Marks) -> list[int]:
        ids = tokenise(self.tokenizer, self.controls, text, marks)
        return ids if self.is_chat else [*self.bos_ids, *ids]

    def _encode_text(self, example: Example) -> TokenRow:
        _refuse_surrogates([example.response])
        marks = pick_marks([example.response])
        ids = tokenise(self.tokenizer, self.controls, mark_content(self.controls, example.response, marks), marks)
        num_context = max(1, len(self.bos_ids))
        row = (*self.bos_ids, *ids, self.end_id)
        return TokenRow(example_id=example.id, input_ids=row, is_label=(False,) * num_context + (True,) * (len(row) - num_context))

    def _encode_pair(self, example: Example) -> TokenRow:
        answer = Message(role="assistant", content=example.response)
        marked, marks = self._mark((*example.prompt, answer))
        prompt = self._render(marked[:-1], is_prompt=True)
        if self.is_chat:
            whole = self._render(marked, is_prompt=False)
            if not whole.startswith(prompt):
                raise InputError(
                    "the chat template renders this prompt differently once the answer follows, so the answer cannot be told apart",
                    fix="remove markup the template interprets (such as <think> blocks) from this row",
                )
        else:
            whole = prompt + marked[-1].content
        prompt_ids = self._encode_prompt_text(prompt, marks)
        answer_ids = self._end_turn(self._behind(prompt, whole, prompt_ids, marks))
        return TokenRow(
            example_id=example.id,
            input_ids=(*prompt_ids, *answer_ids),
            is_label=(False,) * len(prompt_ids) + (True,) * len(answer_ids),
        )

    def _behind(self, prompt: str, whole: str, prompt_ids: list[int], marks: Marks) -> list[int]:
        """Ids of the text behind the prompt, as the model would have to write them behind exactly `prompt_ids`."""
        if self.tail:
            whole = whole.removesuffix(self.tail)
        whole_ids = self._encode_prompt_text(whole, marks)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return whole_ids[len(prompt_ids) :]
        # The tokenizer joined the last character of the prompt with the first of the answer. At generation the prompt is
        # closed when the answer starts, so the answer is tokenised on its own; the text must come out the same.
        ids = tokenise(self.tokenizer, self.controls, whole[len(prompt) :], marks)
        if self._spell([*prompt_ids, *ids]) != self._spell(whole_ids):
            raise InputError(
                "the tokenizer joins the end of the prompt with the start of the response",
                fix="remove the leading white space of the response",
            )
        return ids

    def _spell(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _end_turn(self, ids: list[int]) -> list[int]:
        """Cut behind the control token that ends the turn; where the template writes none, append EOS."""
        if self.tail is not None:
            return [*ids, self.end_id]
        at = [t for t, token in enumerate(ids) if token in self.controls.counted]
        return ids[: at[self.head_controls] + 1]


def open_chat(tokenizer: PreTrainedTokenizerBase) -> ChatEncoder:
    """Try the tokenizer's template (or the plain one) and learn how it writes turns. Raises ModelError with the reason."""
    where = str(tokenizer.name_or_path)
    controls = find_controls(tokenizer)
    eos = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else None
    template = chat_template(tokenizer)
    if template is None:
        if eos is None:
            raise _no_eos(where)
        return ChatEncoder(
            tokenizer=tokenizer,
            is_chat=False,
            folds_system=False,
            controls=controls,
            bos_ids=_bos_ids(tokenizer),
            eos_ids=frozenset({eos}),
            end_id=eos,
            head_controls=0,
            tail="",
        )
    check_template(template, where=where, bos_token=str(tokenizer.bos_token or ""), eos_token=str(tokenizer.eos_token or ""))
    folds_system = not _shows_system(tokenizer)
    head, tail = _around_answer(tokenizer, controls, where)
    ends = [controls.ids[spelling] for spelling in controls.whole.findall(tail) if controls.ids[spelling] in controls.counted]
    if not ends and eos is None:
        raise _no_eos(where)
    end_id = ends[0] if ends else eos
    assert end_id is not None
    return ChatEncoder(
        tokenizer=tokenizer,
        is_chat=True,
        folds_system=folds_system,
        controls=controls,
        bos_ids=_bos_ids(tokenizer),
        eos_ids=frozenset({end_id} if eos is None else {end_id, eos}),
        end_id=end_id,
        head_controls=sum(controls.ids[spelling] in controls.counted for spelling in controls.whole.findall(head)),
        tail=None if ends else tail,
    )


def _no_eos(where: str) -> ModelError:
    return ModelError(
        "the tokenizer has no end-of-sequence token and the chat template writes none, so the model could never learn to stop",
        where=where,
        fix='name one in tokenizer_config.json: "eos_token": "…"',
    )


def _around_answer(tokenizer: PreTrainedTokenizerBase, controls: Controls, where: str) -> tuple[str, str]:
    """What the template writes between its generation prompt and the answer, and behind the answer."""
    question, answer = Message(role="user", content=_USER), Message(role="assistant", content=_ANSWER)
    try:
        prompt = render_chat(tokenizer, (question,), add_generation_prompt=True)
        whole = render_chat(tokenizer, (question, answer), add_generation_prompt=False)
    except InputError as error:
        raise ModelError(f"the chat template cannot render a question and its answer: {error.message}", where=where) from error
    fix = "use the model's original chat_template.jinja, or delete it to train on plain text"
    if _USER not in prompt:
        raise ModelError("the chat template does not show the user's message to the model", where=where, fix=fix)
    if not whole.startswith(prompt):
        raise ModelError("the chat template's generation prompt is not how its answers begin", where=where, fix=fix)
    if whole[len(prompt) :].count(_ANSWER) != 1:
        raise ModelError("the chat template does not show the assistant's message exactly once", where=where, fix=fix)
    ids = tokenise(tokenizer, controls, prompt, pick_marks((prompt,)))
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise ModelError("the chat template writes the BOS token twice", where=where, fix=fix)
    head, _, tail = whole[len(prompt) :].partition(_ANSWER)
    return head, tail


def _shows_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    talk = (Message(role="system", content=_SYSTEM), Message(role="user", content=_USER))
    try:
        return _SYSTEM in render_chat(tokenizer, talk, add_generation_prompt=True)
    except InputError:
        return False


def _bos_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer itself puts in front of a text."""
    ids: list[int] = tokenizer("a")["input_ids"]  # pyright: ignore[reportAssignmentType]
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    at = next((n for n in range(len(ids) - len(bare) + 1) if ids[n : n + len(bare)] == bare), 0)
    return tuple(ids[:at])


def _strings(value: object) -> list[str]:
    """Every text in a JSON value, keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value)
        return [text for key, inner in pairs.items() for text in (key, *_strings(inner))]
    return [text for inner in cast("list[object]", value) for text in _strings(inner)] if isinstance(value, list) else []


def _mark_strings(value: object, controls: Controls, marks: Marks) -> object:
    """A JSON value with the control spellings of its texts marked."""
    if isinstance(value, str):
        return mark_content(controls, value, marks)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value)
        return {mark_content(controls, key, marks): _mark_strings(inner, controls, marks) for key, inner in pairs.items()}
    return [_mark_strings(inner, controls, marks) for inner in cast("list[object]", value)] if isinstance(value, list) else value


def _refuse_surrogates(contents: Sequence[str]) -> None:
    for content in contents:
        try:
            content.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds half of a character (U+{ord(content[error.start]):04X}), which no tokenizer can read",
                fix="save the file as UTF-8 and repair this row",
            ) from error
