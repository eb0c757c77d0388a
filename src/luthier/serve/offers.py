"""The names clients can ask for, and what stands behind each.

A name shows the model exactly what the client sent. The one exception says so in its name and in /v1/models: `NAME-prompted` puts the
system text and the instruction that all training rows of the run share in front, as training and `luthier chat` do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from luthier.core.errors import ConfigError
from luthier.core.types import Example, Message
from luthier.serve.problems import Problem

_NAME = re.compile(r"[\w.:@/+-]{1,128}")  # what a URL, a shell and a metrics label take as it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One name of /v1/models. `voice` is what the engine calls its weights, "" for the base model as it is."""

    name: str
    voice: str
    description: str
    root: str = ""  # the name of the same weights without a prompt; "": its own
    parent: str | None = None  # the name of the model the adapter belongs to
    system: str = ""  # put in front where the client sends no system message
    instruction: str = ""  # put in front of each user turn

    @property
    def is_prompted(self) -> bool:
        """Whether something is put in front of what the client sends."""
        return bool(self.system or self.instruction)

    def conversation(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """What the model is shown."""
        if not self.is_prompted:
            return tuple(messages)
        has_system = any(message.role == "system" for message in messages)
        head = (Message(role="system", content=self.system),) if self.system and not has_system else ()
        return (*head, *(self._turn(message) for message in messages))

    def _turn(self, message: Message) -> Message:
        if message.role != "user":
            return message
        row = Example(id="", path="", line=0, kind="instruct", instruction=self.instruction, input=message.content, response="")
        return Message(role="user", content=row.user_text)


def check_offers(offers: Sequence[Offer]) -> None:
    """Raise ConfigError for a name twice, or one that cannot be written everywhere."""
    names = [offer.name for offer in offers]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be the name of a model", where="--adapter", fix="letters, digits and . _ - only: --adapter intents=FOLDER"
            )
        if names.count(name) > 1:
            raise ConfigError(f"two models would be called {name}", where="--adapter", fix=f"--adapter {name}-2=FOLDER")


def find_offer(offers: Sequence[Offer], name: str) -> Offer:
    """The offer of this name. Raises Problem 404 with the nearest one."""
    for offer in offers:
        if offer.name == name:
            return offer
    known = [offer.name for offer in offers]
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"served here: {', '.join(known[:8])}"
    raise Problem(404, "model_not_found", f"there is no model of this name; {hint}", param="model")
