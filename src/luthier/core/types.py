"""The nouns that cross a package border, each a frozen dataclass.

Data flows one way:

    SourceRow -> Example -> Split -> TokenRow -> checkpoint -> Generation -> ItemScore -> ArmResult -> Comparison -> Verdict

Conventions: `None` means "not measured" or "not applicable", never zero. Scores are in [0, 1]; what people see is x100,
"points". Times are seconds, costs US dollars. Collections are tuples so that a value can be shared without being copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from luthier.core.tried import Tried

Role = Literal["system", "user", "assistant"]
ExampleKind = Literal["instruct", "preference", "kto", "text"]
SplitName = Literal["train", "dev", "test"]
TaskKind = Literal["label", "json", "short", "text"]
ArmFamily = Literal["floor", "prompt", "tuned"]
Severity = Literal["error", "warning", "info"]


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """One record as read from a file, before its format is known. `line` is 1-based in `path`."""

    path: str
    line: int
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """One record that could not be used: where, what was found, and how to mend it."""

    path: str
    line: int
    code: str
    reason: str
    fix: str
    excerpt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat turn. Content is untrusted text."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training or test example in the project's own form.

    `instruction` is what stays the same from item to item (may be empty), `input` what changes; a model is shown
    `system`, then `history`, then `user_text`, and is to answer `response`.
    `id` is a content hash, so the same row has the same id whatever file or position it comes from; a second row
    with the same content has "-2" appended, and so on.
    """

    id: str
    path: str
    line: int
    kind: ExampleKind
    input: str
    response: str
    instruction: str = ""
    system: str = ""
    history: tuple[Message, ...] = ()
    rejected: str | None = None  # preference: the answer that is not wanted
    desirable: bool | None = None  # kto: whether `response` is wanted
    group: str | None = None  # user-given group; rows of one group never straddle splits
    given_split: SplitName | None = None  # an official split named by the user or a field of the row
    references: tuple[str, ...] = ()  # test and dev items: other right answers, from rows with the same prompt

    @property
    def user_text(self) -> str:
        """The last user turn: instruction and input, a blank line between."""
        return "\n\n".join(part for part in (self.instruction, self.input) if part)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What a model is shown, without the response. Empty for raw text."""
        if self.kind == "text":
            return ()
        system = (Message(role="system", content=self.system),) if self.system else ()
        return (*system, *self.history, Message(role="user", content=self.user_text))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """What came of reading the user's files: kept + rejected = read, always."""

    examples: tuple[Example, ...]
    rejects: tuple[Reject, ...]
    num_read: int
    format: str
    evidence: str  # one sentence: why this format was chosen
    num_blank: int = 0  # blank lines, neither kept nor rejected nor counted as read


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing `check` noticed. `where` holds (path, line) of up to 20 rows; `count` is the true number."""

    code: str
    severity: Severity
    message: str
    fix: str
    count: int
    where: tuple[tuple[str, int], ...] = ()
    detail: tuple[str, ...] = ()  # up to 20 lines of evidence, untrusted text


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProfile:
    """What kind of answer the training responses are, found on train only, with the evidence."""

    kind: TaskKind
    evidence: str
    labels: tuple[str, ...] = ()  # label tasks: the closed set, most frequent first
    json_keys: tuple[str, ...] = ()  # json tasks: keys present in >= 95 % of the responses, in their usual order
    json_enums: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])  # key -> closed set of values (as text)
    max_response_chars: int = 0
    number_form: str = ""  # answers that come to a number: how they mark it, with 42 for the number


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Train, dev and the locked test set. `clusters` maps every example id to its near-duplicate group."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    clusters: Mapping[str, str]
    seed: int
    official_test: bool
    test_sha256: str  # over the ids and contents of the test items, in order
    notes: tuple[str, ...] = ()  # what was moved, capped or left out, and why


# ---------------------------------------------------------------- tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One example as tokens. `is_label[t]` is True where token t is to be predicted (response tokens and their EOS)."""

    example_id: str
    input_ids: tuple[int, ...]
    is_label: tuple[bool, ...]

    @property
    def num_labels(self) -> int:
        """How many tokens are trained."""
        return sum(self.is_label)


# ---------------------------------------------------------------- generation


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt to complete, greedily unless `temperature` > 0.

    `stop` ends the answer of a model without chat training, which has never learnt to end a turn; other models do not need it.
    A model is held to `choices` while it writes, where there are any, or to a JSON schema; a server, where it is found to do so.
    """

    item_id: str
    messages: tuple[Message, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stop: str = ""
    choices: tuple[str, ...] = ()
    json_schema: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a model wrote. `text` is untrusted. `latency_s` is the item's share of the batched wall time, or a request's own time.

    Token counts are None where a server does not state them.
    """

    item_id: str
    text: str
    finish: Literal["stop", "length"]
    num_prompt_tokens: int | None
    num_cached_tokens: int | None  # prompt tokens that came from the shared prefix
    num_new_tokens: int | None
    latency_s: float
    num_retries: int = 0  # requests to a server that failed before this answer
    served_by: str = ""  # the model a server says has answered, untrusted
    choice_logprob: float | None = None  # of an answer held to choices: its log-probability when nothing else can be written, in nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How each next token is drawn: the likeliest at temperature 0, else from a private random stream of `seed`.

    Applied in this order: repetition penalty, temperature, top-k, top-p, min-p. `top_k` 0, `top_p` 1 and `min_p` 0 leave all tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0  # only tokens at least so probable as this share of the likeliest one
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a client of the running engine asks for; an item of an evaluation is a `GenerationRequest`.

    Either `messages`, or `text` as it is (no template), or the tokens of a prompt. `stop` texts end the answer and are no part of it.
    At most one of `choices`, `json_schema` and `regex` holds the answer to a form while it is written.
    """

    max_new_tokens: int | None = None  # None: what the prompt leaves of the context
    messages: tuple[Message, ...] = ()
    tools: str = ""  # a JSON list of tool definitions, shown through the chat template
    text: str | None = None
    prompt_ids: tuple[int, ...] = ()
    voice: str = ""  # "": the base model
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    num_logprobs: int | None = None  # None: none; 0..20: of the token written, and of so many of the likeliest
    choices: tuple[str, ...] = ()
    json_schema: str | None = None  # as JSON text
    regex: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token that was written, its log-probability as the model gave it (before sampling), and the likeliest at its place."""

    spelled: bytes  # perhaps a part of a character
    logprob: float
    likeliest: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one step added to one answer. The texts of an answer's pieces, joined, are the answer; untrusted.

    Held back are half a character and what may become a stop text, so `text` can be empty. The last piece alone has a `finish`.
    """

    ticket: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one a token, where asked for
    finish: Literal["stop", "length"] | None = None
    num_prompt_tokens: int
    num_cached_tokens: int  # prompt tokens that were not computed again
    num_new_tokens: int  # up to now, the end token included


# ---------------------------------------------------------------- scores and arms

BROKE = "answers broke it"  # where a server said it would hold them, and did not hold all
HELD = "held to the"  # how `ArmResult.params["answers"]` begins where a model could write nothing but a label, or an object of the schema


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemScore:
    """One arm's answer to one locked item, scored. `values[name]` is in [0, 1], or None where it could not be scored."""

    item_id: str
    cluster: str
    text: str  # the answer, untrusted
    gold: str
    values: Mapping[str, float | None]
    latency_s: float | None = None
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_new_tokens: int | None = None
    note: str = ""  # e.g. "slot `date` invented"
    sources: tuple[str, ...] = ()  # the passages of the documents it was shown, "path:line", in the order shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its interval and its n. `value` None: not measured."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str  # "Wilson 95 %", "cluster bootstrap BCa 95 %", ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm on one set of items. A failed arm has `failed` set and no items; it is shown as failed, never as zero."""

    name: str
    family: ArmFamily
    model: str  # "" for arms without a model
    description: str
    items: tuple[ItemScore, ...]
    params: Mapping[str, str] = field(default_factory=dict[str, str])  # what was chosen on dev: k, order, instruction, ...
    dev_score: float | None = None
    dev_n: int = 0
    effort: Mapping[str, float] = field(default_factory=dict[str, float])  # the equal-effort ledger: dev evaluations, tokens, seconds
    tried: tuple[Tried, ...] = ()  # what dev was asked, in that order
    train_seconds: float | None = None  # tuned arms: one-off, the search of the learning rate included
    peak_mem_gib: float | None = None  # of the process; of the GPU where one computes
    latencies_s: tuple[float, ...] = ()  # single requests one after another, shared prefix warm; unlike ItemScore.latency_s
    first_tokens_s: tuple[float, ...] = ()  # of these requests: until the first token
    token_rates: tuple[float, ...] = ()  # and tokens a second behind it
    seed: int = 0
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Paired difference `a - b` on the items both answered, in score units (x100 = points)."""

    a: str
    b: str
    metric: str
    n: int
    num_clusters: int
    difference: float
    low95: float
    high95: float
    low90: float
    high90: float
    p_value: float | None
    method: str  # "Tango score interval, McNemar mid-p" | "paired cluster bootstrap BCa, sign-flip permutation" | ...
    discordance: float | None = None  # share of items where exactly one is right; None for graded scores
    p_holm: float | None = None  # secondary comparisons only


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One veto on the tuned arm. "not shown": the interval is too wide to say; it neither passes nor fails."""

    name: str
    state: Literal["pass", "fail", "not shown", "not measured"]
    message: str
    fix: str = ""
    vetoes: bool = True  # False: shown, but about other work than the user says the model is for


VerdictCode = Literal[
    "fine_tune_better",
    "prompt_better",
    "fine_tune_as_good_cheaper",
    "prompt_as_good_simpler",
    "equivalent_prompt",
    "neither_needed",
    "neither_yet",
    "blocked",
    "inconclusive",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision and everything behind it; recomputable from the records without a model."""

    code: VerdictCode
    strength: Literal["strong", "clear", "leaning", "none"]
    headline: str  # "FINE-TUNE: better quality"
    sentence: str  # one plain sentence with effect, interval, n and margin
    next_steps: tuple[str, ...]  # what to do now; for inconclusive: what would settle it
    primary: Comparison | None
    secondary: tuple[Comparison, ...]
    gates: tuple[GateResult, ...]
    best_prompt: str | None  # arm names
    best_tuned: str | None
    best_floor: str | None
    metric: str
    margin: float
    break_even_requests_per_month: Estimate | None
    min_detectable_effect: float | None
    remarks: tuple[str, ...] = ()  # power, sensitivity, training seeds, optimism, learning curve, error slices: plain sentences
    reasons: tuple[str, ...] = ()  # the rows of the table that were tried, in order, and why each did or did not match
