"""Who puts items in other words: the base model, or the model of a server that is named already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import ConfigError
from luthier.evaluate.run import Model
from luthier.generate.endpoint import Endpoint
from luthier.pipeline.endpoint import endpoint_of, server_of
from luthier.pipeline.open import open_local
from luthier.pipeline.settings import Settings
from luthier.train.precision import Precision

KEY = "arms.paraphraser"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paraphraser:
    """Named, and not opened yet."""

    name: str
    server: Endpoint | None  # None: the base model

    def open(self, base: Path, precision: Precision) -> Model:
        """The model, ready to write."""
        return open_local(base, precision) if self.server is None else self.server


def find_paraphraser(settings: Settings) -> Paraphraser | None:
    """Who it is, or None. Raises ConfigError, before anything computes, where it is a server that is not named."""
    wanted = settings.arms.paraphraser
    if wanted == "none":
        return None
    if wanted == "model":
        return Paraphraser(name=settings.model.name, server=None)
    server = endpoint_of(settings) if wanted == "endpoint" else server_of(settings.judge, "judge")
    if server is None:
        flag = "--endpoint URL --endpoint-model NAME" if wanted == "endpoint" else "--judge-endpoint URL --judge-model NAME"
        raise ConfigError(f"found {wanted}, and no address of one is named", where=KEY, fix=f"{flag}, or --set {KEY}=model")
    return Paraphraser(name=server.name, server=server)
