"""From tokens to text that may be shown at once: no half character, nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

from luthier.tokens.template import ChatEncoder


class Writing:
    """The text of one answer. What `add` and `end` return, joined, is the answer: `encoder.decode` of its tokens up to a stop text."""

    def __init__(self, encoder: ChatEncoder, stops: Sequence[str]) -> None:
        self._encoder = encoder
        self._stops = tuple(stops)
        self._tokens: list[int] = []
        self._backend: Any = getattr(encoder.tokenizer, "backend_tokenizer", None)
        self._stream = None if self._backend is None else DecodeStream(skip_special_tokens=True)
        self._spelled = ""  # decoded so far
        self._held = ""  # decoded, not shown: it may become a stop text
        self.stopped = False

    def add(self, token: int) -> str:
        """What may be shown after one more token; `stopped` says whether a stop text ended the answer."""
        self._tokens.append(token)
        fresh = self._fresh(token)
        self._spelled += fresh
        return self._show(fresh)

    def end(self) -> str:
        """What was held back, once it is known that nothing follows."""
        if self.stopped:
            return ""
        whole = self._encoder.decode(self._tokens)
        rest = whole[len(self._spelled) :] if whole.startswith(self._spelled) else ""  # half a character, as a replacement sign
        shown = self._show(rest)
        if self.stopped:
            return shown
        shown, self._held = shown + self._held, ""
        return shown

    def _fresh(self, token: int) -> str:
        if self._stream is not None:
            return self._stream.step(self._backend, token) or ""
        whole = self._encoder.decode(self._tokens)
        return "" if whole.endswith("\ufffd") else whole[len(self._spelled) :]

    def _show(self, fresh: str) -> str:
        text = self._held + fresh
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[0]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        shown, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """The longest proper beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
