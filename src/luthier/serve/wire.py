"""The bodies clients send, as OpenAI's API defines them, with every cap in the schema.

Three kinds of fields: those that are honoured; those that by definition change no answer (`user`, `metadata` …), which are taken and
dropped; and those this server cannot do, which are known by name so that the refusal says so. Anything else is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_BODY_BYTES = 2**20
MAX_N = 8
MAX_MESSAGES = 512
MAX_STOPS = 8
MAX_STOP_CHARS = 256
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 64
MAX_TOKENS = 2**20  # no model sees more; the model's own context is looked at before anything is tokenised
MAX_SEED = 2**63 - 1

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARS)]
Count = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(_Body):
    """A piece of a message. Pictures, sounds and files are not understood."""

    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)]
Content = str | Parts


class InstructionMessage(_Body):
    """What the model is told about its job. `developer` is the newer word for `system`."""

    role: Literal["system", "developer"]
    content: Content
    name: None = None


class UserMessage(_Body):
    """A user's turn."""

    role: Literal["user"]
    content: Content
    name: None = None


class AssistantMessage(_Body):
    """An earlier answer. The fields of null are what clients send back with it."""

    role: Literal["assistant"]
    content: Content
    name: None = None
    refusal: None = None
    audio: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


ChatMessage = Annotated[InstructionMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class FunctionDefinition(_Body):
    """What a tool is called, does and takes."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, StringConstraints(max_length=16_384)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    """A tool that is shown to the model, through its chat template."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedSchema(_Body):
    """A JSON schema the answer is held to."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    description: Annotated[str, StringConstraints(max_length=16_384)] | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class FreeFormat(_Body):
    """Text as the model writes it."""

    type: Literal["text"]


class JsonFormat(_Body):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(_Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[FreeFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(_Body):
    """What a stream tells besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Generation(_Body):
    """What both kinds of completion take."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    max_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    # Not computed here: only the value that means "not used".
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    # Without a bearing on the answer.
    user: Annotated[str, StringConstraints(max_length=512)] | None = None

    @property
    def num_choices(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    metadata: Annotated[dict[str, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=16)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Annotated[str, StringConstraints(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, StringConstraints(max_length=512)] | None = None


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=MAX_TOKENS)]], Field(min_length=1)]
OneText = Annotated[list[str], Field(min_length=1, max_length=1)]
OneTokenIds = Annotated[list[TokenIds], Field(min_length=1, max_length=1)]


class CompletionRequest(_Generation):
    """POST /v1/completions: one prompt, as text (control tokens spelled in it are text) or as token ids."""

    prompt: str | TokenIds | OneText | OneTokenIds
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
