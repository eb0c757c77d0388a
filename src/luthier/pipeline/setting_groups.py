"""The groups of settings: every key with its type, bounds, default and what it means. `settings.py` puts them together and loads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from luthier.pipeline.absent import refuse_absent


def as_list(value: object) -> object:
    """One value where a list is expected is a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def _different(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) != len(values):
        raise ValueError("each number once")
    return values


Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Texts = Annotated[tuple[str, ...], BeforeValidator(as_list)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(as_list), AfterValidator(_different), Field(min_length=1)]
Price = Annotated[Real, Field(ge=0)] | None
Rate = Annotated[Real, Field(gt=0, le=1)]
Rates = Annotated[tuple[Rate, ...], BeforeValidator(as_list), AfterValidator(_different), Field(min_length=1)]
DataFormat = Literal["auto", "alpaca", "messages", "sharegpt", "completion", "preference", "kto", "text", "columns"]


class Group(BaseModel):
    """Some settings under one name. Unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=False, protected_namespaces=())


class DataSettings(Group):
    """The examples: which files, which fields, how many rows."""

    paths: Texts = Field(default=(), description="files with your examples: JSONL, JSON, CSV, TSV, Parquet or text")
    test: str | None = Field(default=None, description="file with your own test rows; else test rows are split off")
    dev: str | None = Field(default=None, description="file with your own dev rows, on which choices are made; else dev rows are split off")
    format: DataFormat = Field(default="auto", description="form of the rows; auto looks at the fields and says what it found")
    instruction: str | None = Field(
        default=None, description="a field with the instruction, or the instruction itself when no field has that name"
    )
    input: str | None = Field(default=None, description="field with what changes from row to row")
    output: str | None = Field(default=None, description="field with the wanted answer")
    system: str | None = Field(default=None, description="field with the system prompt")
    group: str | None = Field(default=None, description="field whose equal values must stay on one side of the split (customer, document)")
    folds: Annotated[int, Field(strict=True, ge=1, le=20)] = Field(
        default=1, description="cross-fitting for few rows: so many trainings, each row a test row of one; 1: one split (below 150 rows: 5)"
    )
    train_rows: Count | None = Field(default=None, description="at most so many training rows, chosen by seed; null takes all")
    dev_rows: Count | None = Field(default=None, description="so many dev rows; null: 10 %, at most 300")
    test_rows: Count | None = Field(
        default=None, description="so many locked test rows; null: 20 %, at most 500, or all rows of the test file"
    )


class ModelSettings(Group):
    """The model to prompt and to fine-tune."""

    name: str = Field(default="smollm2-135m", min_length=1, description="name from `luthier models list`, or a folder")
    larger: Texts = Field(default=(), description="larger models (names or folders) whose prompting arms are measured beside")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto", description="number format of the computation; auto measures which is faster here"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="what computes; auto is an NVIDIA GPU where torch can use one"
    )
    max_length: Count = Field(default=1024, description="longest row in tokens; longer rows are listed")
    allow_truncation: bool = Field(
        default=False, strict=True, description="go on although more than 10 % of the rows are too long; their ends are cut and counted"
    )


class TrainSettings(Group):
    """Fine-tuning."""

    method: Literal["lora", "dora", "freeze", "full"] = Field(
        default="lora",
        description="what is trained: adapters on all linear layers (lora, dora), the last layers (freeze) or every weight (full)",
    )
    lora_r: Count = Field(default=16, le=1024, description="rank of the adapters")
    lora_alpha: Count = Field(default=32, description="scale of the adapters; its effect is alpha / r")
    lora_dropout: Real = Field(default=0.0, ge=0, lt=1, description="dropout before the adapters")
    lora_rslora: bool = Field(default=False, strict=True, description="scale by alpha / sqrt(r) instead, for high ranks (rsLoRA)")
    lora_init: Literal["uniform", "pissa"] = Field(
        default="uniform", description="start of the adapters: nothing, or the largest singular directions of the weights (PiSSA)"
    )
    last_layers: Count = Field(default=2, description="how many of the last layers freeze trains; the others stay as they are")
    neftune_alpha: Real = Field(default=0.0, ge=0, le=100, description="noise on the embeddings while training (NEFTune: 5 to 15); 0: none")
    optimiser: Literal["adamw", "adafactor", "muon"] = Field(
        default="adamw", description="how gradients become updates; muon is for matrices, AdamW does the rest"
    )
    checkpoint_activations: bool = Field(
        default=False, strict=True, description="keep less for the backward pass and compute it again: less memory, about a third slower"
    )
    shard: bool = Field(
        default=False,
        strict=True,
        description="under torchrun: each process holds only its share of weights, gradients and moments (FSDP2); same result to rounding",
    )
    lr: Rate | None = Field(default=None, description="learning rate; null tries the candidates and takes the best on dev")
    lr_candidates: Rates | None = Field(
        default=None,
        description="learning rates to try when lr is null; null: 5e-4, 1e-3, 2e-3 for adapters, 3e-5, 1e-4, 3e-4 for whole weights",
    )
    lr_probe_steps: Count = Field(default=30, description="updates of each trial")
    epochs: Annotated[Real, Field(gt=0, le=1000)] | None = Field(
        default=None, description="passes over the training rows; null: as the number of rows asks for"
    )
    batch: Count = Field(default=16, description="rows in one update")
    micro_batch: Count | None = Field(
        default=None, description="rows computed at once; null: as many as 1,280 tokens hold; same result to rounding"
    )
    warmup_ratio: Real = Field(default=0.05, ge=0, lt=1, description="share of the updates over which the learning rate rises")
    weight_decay: Real = Field(default=0.0, ge=0, le=1, description="weight decay on the trained weights")
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(
        default="linear", description="how the learning rate falls after that; wsd: not at all until the last fifth"
    )
    max_grad_norm: Real = Field(default=1.0, gt=0, description="gradients longer than this are shortened to it")
    eval_every: CountOrZero | None = Field(
        default=None, description="updates between looks at the dev loss; null: five looks in all; 0: only at the end"
    )
    patience: CountOrZero = Field(default=3, description="looks without a better dev loss before stopping early; 0: never")
    save_every: CountOrZero = Field(default=50, description="updates between checkpoints; 0: only at the end")

    @model_validator(mode="before")
    @classmethod
    def _nothing_absent(cls, values: Any) -> Any:
        if isinstance(values, dict):
            refuse_absent(cast("dict[str, object]", values))
        return values

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Self:
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(f"train.micro_batch at most train.batch ({self.batch})")
        return self

    @model_validator(mode="after")
    def _options_fit_the_method(self) -> Self:
        """An option that the method has no use for would be ignored: it is refused instead."""
        fields = type(self).model_fields
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_rslora", "lora_init"):
            if self.method in ("freeze", "full") and getattr(self, key) != fields[key].default:
                raise ValueError(f"train.{key} only with adapters, and train.method {self.method} has none | --set train.method=lora")
        if self.shard and self.optimiser != "adamw":
            raise ValueError(
                f"train.optimiser adamw with train.shard: {self.optimiser} works on whole matrices, and each process holds some rows"
                " | --set train.optimiser=adamw"
            )
        if self.method == "dora" and self.lora_init == "pissa":
            raise ValueError(
                "train.lora_init uniform with train.method dora: PiSSA changes the weights whose lengths DoRA measures"
                " | --set train.lora_init=uniform"
            )
        for key in ("lr_candidates", "lr_probe_steps"):
            if self.lr is not None and getattr(self, key) != fields[key].default:
                raise ValueError(
                    f"train.{key} only without a learning rate: train.lr {self.lr:g} leaves nothing to try | --set train.lr=null"
                )
        if self.method != "freeze" and self.last_layers != fields["last_layers"].default:
            raise ValueError(f"train.last_layers only with train.method freeze, not {self.method} | --set train.method=freeze")
        return self


class ArmSettings(Group):
    """What is measured against what."""

    shots: Counts = Field(default=(2, 4, 8), description="numbers of solved examples that the few-shot arms try on dev")
    documents: str | None = Field(
        default=None, description="folder of text and Markdown files; arms with their passages before each item are measured too"
    )
    passages: Counts = Field(
        default=(1, 2, 4), description="numbers of passages that the arms with documents try on dev; as many numbers as arms.shots"
    )
    skip: Texts = Field(default=(), description="names of arms to leave out")
    max_new_tokens: Count | None = Field(
        default=None, description="longest answer in tokens; null: the 99th percentile of the training answers and a quarter more"
    )
    dev_items: Count = Field(default=100, description="dev rows on which each arm's variants are compared")
    proposer: Literal["none", "model", "endpoint"] = Field(
        default="none", description="who proposes instructions for the arm instruction optimised: the model itself, the endpoint's, nobody"
    )
    instructions: Texts = Field(
        default=(),
        description="files with instructions to try in that arm instead: text, or what DSPy saved as JSON; at most 2 x arms.shots",
    )
    constrained: bool = Field(
        default=True,
        strict=True,
        description="hold models to the labels, or to the JSON schema of the training answers, while they write, in every arm alike",
    )
    latency_items: Count = Field(default=10, description="test rows sent one at a time to measure waiting time")
    batch: Count = Field(default=64, description="prompts answered at once")
    vllm: bool = Field(default=False, strict=True, description="vLLM answers for local models, prompted and tuned; it has to be installed")
    vllm_memory: Annotated[Real, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of the device's memory that vLLM sets aside for itself; null: as vLLM does"
    )
    consistency_items: CountOrZero = Field(
        default=40, description="locked test rows that the best prompt and the tuned model are asked again, reworded and sampled; 0: none"
    )
    consistency_samples: Annotated[int, Field(strict=True, ge=2, le=10)] = Field(default=3, description="samples of each of these rows")
    consistency_temperature: Annotated[Real, Field(gt=0, le=2)] = Field(
        default=0.7, description="temperature these samples are drawn at; all other answers are greedy"
    )
    paraphraser: Literal["none", "model", "endpoint", "judge"] = Field(
        default="none",
        description="who puts these rows in other words too, checked: the base model, the endpoint's model, the judge's, nobody",
    )
    paraphrases: Annotated[int, Field(strict=True, ge=1, le=4)] = Field(default=2, description="paraphrases of each of these rows")
    style_rows: CountOrZero = Field(
        default=60,
        description="free text: training rows the base model answers, so that its style can be told from that of your answers; 0: none",
    )
    train_seeds: Count = Field(
        default=1, description="trainings from so many seeds; their spread says whether the recipe wins, not only one of them"
    )
    learning_curve: bool = Field(
        default=False, strict=True, description="train on an eighth, a quarter and half of the rows as well: would more examples help?"
    )

    @model_validator(mode="after")
    def _same_effort(self) -> Self:
        if self.vllm_memory is not None and not self.vllm:
            raise ValueError("arms.vllm_memory only with arms.vllm | --vllm, or leave it out")
        most = 2 * len(self.shots)
        if len(self.instructions) > most:
            raise ValueError(
                f"arms.instructions at most {most} files, as many as the other arms have candidates; found {len(self.instructions)}"
                " | leave some out"
            )
        if self.instructions and self.proposer != "none":
            raise ValueError("arms.instructions or arms.proposer, not both: they are one arm with one budget | --set arms.proposer=none")
        if self.documents is not None and len(self.passages) != len(self.shots):
            some = ",".join(str(2**n) for n in range(len(self.shots)))
            raise ValueError(
                f"arms.passages as many numbers as arms.shots ({len(self.shots)}), so that every arm gets the same effort on dev"
                f" | --set arms.passages=[{some}]"
            )
        return self


class ProbeSettings(Group):
    """What is measured of base and tuned model beside the test items: refusals, general text."""

    safety: bool = Field(
        default=True,
        strict=True,
        description="let both answer unsafe and safe-looking requests: does the tuned model still refuse, and not more?",
    )
    safety_prompts: str | None = Field(
        default=None,
        description="file with your own requests, fields prompt and label (safe, unsafe), XSTest's for instance; null: those shipped",
    )
    safety_items: Count | None = Field(
        default=None, description="at most so many of each kind, the first ones; null: all, 60 + 60 are shipped"
    )
    max_new_tokens: Count = Field(default=32, description="tokens of each of these answers; a refusal shows in the first few")
    retention: bool = Field(
        default=True, strict=True, description="compare how likely both find general text and general answers: what was forgotten?"
    )

    constraint_prompts: str | None = Field(
        default=None,
        description="JSONL file in IFEval's form (prompt, instruction_id_list, kwargs): does the tuned model still follow instructions?",
    )
    constraint_items: Count = Field(default=50, description="the first so many of these requests")
    constraint_tokens: Count = Field(default=256, description="tokens of each of these answers")

    @model_validator(mode="after")
    def _file_is_used(self) -> Self:
        if self.safety_prompts is not None and not self.safety:
            raise ValueError("probes.safety_prompts only with probes.safety | --set probes.safety=true")
        return self


class DecideSettings(Group):
    """What the verdict weighs. All but the metric can be changed afterwards: `luthier decide RUN`."""

    metric: str | None = Field(
        default=None, description="score the verdict is about, or your own code as module:function; null: as the task asks for"
    )
    margin: Real = Field(default=5.0, gt=0, lt=100, description="smallest difference that matters to you, in points (0 to 100)")
    min_quality: Annotated[Real, Field(ge=0, le=100)] | None = Field(
        default=None, description="score in points below which neither way is good enough"
    )
    volume: CountOrZero | None = Field(default=None, description="requests a month, for the break-even")
    usd_per_hour: Real = Field(default=0.10, ge=0, description="price of this machine for an hour, in US dollars")
    prices: str | None = Field(
        default=None,
        description="YAML file with the token prices of several models, by the endpoint's name of each; instead of the next three",
    )
    usd_per_m_input: Price = Field(default=None, description="price of a million prompt tokens at the endpoint, in US dollars")
    usd_per_m_cached_input: Price = Field(default=None, description="the same for prompt tokens it has cached; null: no cheaper")
    usd_per_m_output: Price = Field(default=None, description="price of a million answer tokens at the endpoint, in US dollars")
    hosting: Real = Field(default=0.0, ge=0, description="extra cost of serving a tuned model, in US dollars a month")
    labelling: Real = Field(default=0.0, ge=0, description="cost of making the examples, in US dollars")
    months: Annotated[Real, Field(gt=0)] = Field(default=6.0, description="months between two trainings")
    serves_other_work: bool = Field(
        default=False, strict=True, description="the tuned model will be asked other things too: what it has forgotten may then veto it"
    )
