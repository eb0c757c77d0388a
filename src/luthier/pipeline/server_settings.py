"""Settings of the servers a user may name: the model that is prompted beside, and the judge. Without an address there is no network."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from luthier.pipeline.setting_groups import Count, Group


class ServerSettings(Group):
    """A server that speaks the OpenAI API, and a model on it."""

    url: str | None = Field(default=None, description="base address of an OpenAI-compatible server; null: none, and no network")
    model: str | None = Field(default=None, description="name of the model there")
    # In capitals, as such names are: a key given here by mistake has other letters too, and is refused before it is recorded.
    key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="environment variable that holds the key; the key itself is written nowhere",
    )
    concurrency: Annotated[int, Field(strict=True, ge=1, le=64)] = Field(default=4, description="requests on their way at once")
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=3600)] = Field(
        default=60.0, description="seconds for one request; then it is tried again"
    )
    retries: Annotated[int, Field(strict=True, ge=0, le=20)] = Field(
        default=5, description="further attempts after a refusal that may pass (429, 5xx, no answer); then it has failed"
    )

    @property
    def shown_name(self) -> str:
        """The model and whose it is, as tables show it; empty without an address."""
        return f"{self.model} at {urlsplit(self.url).netloc}" if self.url else ""


class ChatServerSettings(ServerSettings):
    """A server whose model answers."""

    length_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="what the server calls the longest answer; newer OpenAI models want max_completion_tokens"
    )
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = Field(
        default=0.0, description="sent with each request; null: not sent, for models that refuse it"
    )


class EmbeddingSettings(ServerSettings):
    """A server whose model turns texts into vectors, for retrieval."""

    model: str | None = Field(default=None, description="name of the embedding model there")

    @model_validator(mode="after")
    def _address_and_model(self) -> Self:
        if bool(self.url) != bool(self.model):
            raise ValueError("embeddings.url and embeddings.model, both or neither | --embeddings-endpoint URL --embeddings-model NAME")
        return self


class EndpointSettings(ChatServerSettings):
    """A server whose model is prompted beside the local ones."""

    context: Annotated[int, Field(strict=True, ge=256)] = Field(
        default=8192, description="tokens that prompt and answer may take there, as this model's tokenizer counts them"
    )

    @model_validator(mode="after")
    def _address_and_model(self) -> Self:
        if bool(self.url) != bool(self.model):
            raise ValueError("endpoint.url and endpoint.model, both or neither | --endpoint URL --endpoint-model NAME")
        return self


class JudgeSettings(ChatServerSettings):
    """A model that says which of two answers is better."""

    url: str | None = Field(default=None, description="base address of an OpenAI-compatible server whose model judges; null: a local model")
    model: str | None = Field(
        default=None, description="the judge: name of the model there; without an address, name or folder of a local one; null: no judge"
    )
    items: Count | None = Field(default=None, description="at most so many locked test rows are judged, chosen by seed; null: all")
    max_new_tokens: Annotated[int, Field(strict=True, ge=8)] = Field(
        default=256, description="longest reply in tokens; a judge that thinks before it speaks needs more"
    )

    @model_validator(mode="after")
    def _address_and_model(self) -> Self:
        if self.url and not self.model:
            raise ValueError("judge.model with judge.url: the name of the model there | --judge-model NAME")
        if not self.url:
            fields = type(self).model_fields
            for key in ("key_env", "concurrency", "timeout_s", "retries", "length_field", "temperature"):
                if getattr(self, key) != fields[key].default:
                    raise ValueError(f"judge.{key} only with judge.url: a local model has no use for it | --judge-endpoint URL")
        return self
