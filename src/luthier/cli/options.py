"""The flags, as tables: one row a flag, shared by the commands that take it. Adding a flag is adding a row.

Help texts are plain ASCII, so that they can be shown in any code page. Both `--test-rows` and `--test_rows` are understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from keyword import iskeyword


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option. `key` is the setting it overrides, or "" for what only the command itself looks at.

    `words` names the values of an option that takes more than one.
    """

    names: tuple[str, ...]
    type: type
    help: str
    key: str = ""
    many: bool = False
    words: tuple[str, ...] = ()

    @property
    def parameter(self) -> str:
        """The name of the Python parameter; words that Python keeps for itself get a `_`."""
        name = self.names[0].lstrip("-").replace("-", "_")
        return f"{name}_" if iskeyword(name) else name


def _setting(key: str, names: str, kind: type, text: str, *, many: bool = False) -> Flag:
    return Flag(names=tuple(names.split()), type=kind, help=text, key=key, many=many)


DATA = (
    _setting("data.test", "--test", str, "File with your own test rows; else test rows are split off."),
    _setting("data.dev", "--dev", str, "File with your own dev rows; else dev rows are split off."),
    _setting("data.format", "--format", str, "alpaca, messages, sharegpt, completion, preference, kto, text, columns; default: auto."),
    _setting("data.instruction", "--instruction", str, "Field with the instruction, or the instruction itself."),
    _setting("data.input", "--input", str, "Field with what changes from row to row."),
    _setting("data.output", "--output", str, "Field with the wanted answer."),
    _setting("data.system", "--system", str, "Field with the system prompt."),
    _setting("data.group", "--group", str, "Field whose equal values must stay on one side of the split."),
    _setting("data.train_rows", "--train-rows --rows", int, "At most so many training rows, chosen by seed."),
    _setting("data.dev_rows", "--dev-rows", int, "So many dev rows."),
    _setting("data.test_rows", "--test-rows", int, "So many locked test rows."),
    _setting("model.name", "--model", str, "Model to prompt and to fine-tune: a name of `luthier models list`, or a folder."),
    _setting("model.max_length", "--max-length", int, "Longest row in tokens."),
    _setting("model.allow_truncation", "--allow-truncation", bool, "Go on although more than 10 % of the rows are too long."),
    _setting("model.device", "--device", str, "What computes: auto, cpu or cuda; default: an NVIDIA GPU where there is one."),
    _setting("seed", "--seed", int, "Seed of every random choice."),
    _setting("threads", "--threads", int, "CPU threads."),
)

TRAIN = (
    _setting("train.epochs", "--epochs", float, "Passes over the training rows."),
    _setting("train.batch", "--batch", int, "Rows in one update."),
    _setting("train.method", "--method", str, "lora, dora, freeze or full; default: lora."),
    _setting("train.lora_r", "--lora-r", int, "Rank of the adapters."),
    _setting("train.lr", "--lr", float, "Learning rate; without it the best of a few is found on dev."),
    _setting("train.save_every", "--save-every", int, "Updates between checkpoints."),
    _setting("train.shard", "--shard", bool, "Under torchrun: each process holds its share of the weights (FSDP2)."),
    _setting("run_dir", "--run-dir", str, "Folder of the run; default: runs/ and the name of the first file."),
    _setting("fresh", "--fresh", bool, "Throw away what is in the run folder and start over."),
)

MEASURE = (
    _setting("model.larger", "--larger-model", str, "A larger model to prompt, for comparison; can be repeated.", many=True),
    _setting("data.folds", "--folds", int, "Cross-fitting for few rows: so many trainings, each row tested once; 5 below 150 rows."),
    _setting("arms.vllm", "--vllm", bool, "Let vLLM answer for the arms, prompted and tuned; it has to be installed."),
    _setting("arms.train_seeds", "--train-seeds", int, "Train from so many seeds, to tell the recipe from one lucky training; default: 1."),
    _setting(
        "arms.learning_curve", "--learning-curve", bool, "Train on parts of the rows as well, to say whether more examples would help."
    ),
    _setting("endpoint.url", "--endpoint", str, "Address of an OpenAI-compatible server whose model is prompted beside."),
    _setting("endpoint.model", "--endpoint-model", str, "Name of the model there."),
    _setting("endpoint.key_env", "--endpoint-key-env", str, "Name of the environment variable that holds the key."),
    _setting("judge.url", "--judge-endpoint", str, "Address of an OpenAI-compatible server whose model compares the answers."),
    _setting("judge.model", "--judge-model", str, "Name of the model there; without an address, a local model: name or folder."),
    _setting("judge.key_env", "--judge-key-env", str, "Name of the environment variable that holds the judge's key."),
    _setting("arms.documents", "--documents", str, "Folder of text and Markdown files: passages of them go before each item."),
    _setting("embeddings.url", "--embeddings-endpoint", str, "Address of an OpenAI-compatible server whose embeddings find examples."),
    _setting("embeddings.model", "--embeddings-model", str, "Name of the embedding model there."),
    _setting("embeddings.key_env", "--embeddings-key-env", str, "Name of the environment variable that holds its key."),
    _setting("arms.proposer", "--propose", str, "Also try instructions that a model proposes: model (itself), endpoint; default: none."),
    _setting(
        "arms.instructions",
        "--try-instruction",
        str,
        "Also try the instruction in this file: text, or DSPy's JSON; can be repeated.",
        many=True,
    ),
    _setting(
        "probes.safety_prompts", "--safety-prompts", str, "Your own requests that should, and should not, be refused (prompt, label)."
    ),
    _setting("probes.constraint_prompts", "--constraint-prompts", str, "Requests with verifiable constraints, in IFEval's form (JSONL)."),
    _setting(
        "decide.metric", "--metric", str, "Score the verdict is about, or your own code as module:function; default: as the task asks for."
    ),
)

DECIDE = (
    _setting("decide.margin", "--min-effect", float, "Smallest difference that matters to you, in points; default: 5."),
    _setting("decide.min_quality", "--min-quality", float, "Score in points below which neither way is good enough."),
    _setting("decide.volume", "--volume", int, "Requests a month, for the break-even."),
    _setting("decide.usd_per_hour", "--usd-per-hour", float, "Price of this machine for an hour, in US dollars."),
    _setting("decide.prices", "--prices", str, "YAML file with the token prices of several models, by name."),
    _setting("decide.usd_per_m_input", "--usd-per-m-input", float, "Price of a million prompt tokens at the endpoint, in US dollars."),
    _setting("decide.usd_per_m_output", "--usd-per-m-output", float, "Price of a million answer tokens at the endpoint, in US dollars."),
)

DRY_RUN = Flag(names=("--dry-run",), type=bool, help="Only say what it would need, as `luthier estimate` does.")
CONFIG = Flag(names=("--config",), type=str, help="Settings file; flags go before it. Without FILES, luthier.yaml is used if it is here.")
SET = Flag(names=("--set",), type=str, help="Any other setting, as key=value (docs/configuration.md); can be repeated.", many=True)
JSON = Flag(names=("--json",), type=bool, help="Print the result as one JSON object, the last line of stdout.")
DEBUG = Flag(names=("--debug",), type=bool, help="Show the traceback of an error.")
ALWAYS = (JSON, DEBUG)

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error of ours; 2 something to mend in files, settings or options; 75 it hung and was given up, repeat the "
    "command; 130, 143 stopped by SIGINT, SIGTERM."
)
