"""Settings of a model behind an OpenAI-compatible address. Nothing is sent anywhere unless `url` is given."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EndpointSettings(BaseModel):
    """A server whose model is prompted beside the local ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=False, protected_namespaces=())

    url: str | None = Field(default=None, description="base address of an OpenAI-compatible server; null: none, and no network")
    model: str | None = Field(default=None, description="name of the model there")
    # In capitals, as such names are: a key given here by mistake has other letters too, and is refused before it is recorded.
    key_env: str | None = Field(
        default=None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="environment variable that holds the key; the key itself is written nowhere",
    )
    context: Annotated[int, Field(strict=True, ge=256)] = Field(
        default=8192, description="tokens that prompt and answer may take there, as this model's tokenizer counts them"
    )
    concurrency: Annotated[int, Field(strict=True, ge=1, le=64)] = Field(default=4, description="requests on their way at once")
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=3600)] = Field(
        default=60.0, description="seconds for one request; then it is tried again"
    )
    retries: Annotated[int, Field(strict=True, ge=0, le=20)] = Field(
        default=5, description="further attempts after a refusal that may pass (429, 5xx, no answer); then the arm has failed"
    )
    length_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="what the server calls the longest answer; newer OpenAI models want max_completion_tokens"
    )
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = Field(
        default=0.0, description="sent with each request; null: not sent, for models that refuse it"
    )

    @model_validator(mode="after")
    def _address_and_model(self) -> Self:
        if bool(self.url) != bool(self.model):
            raise ValueError("endpoint.url and endpoint.model, both or neither | --endpoint URL --endpoint-model NAME")
        return self

    @property
    def shown_name(self) -> str:
        """The model and whose it is, as tables show it; empty without an address."""
        return f"{self.model} at {urlsplit(self.url).netloc}" if self.url else ""
