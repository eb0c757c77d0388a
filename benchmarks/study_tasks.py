"""The tasks of the study: what each is, and what was expected of it, written down before its first run and shown whatever came out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import study_data

LABELS = ("--instruction", "Classify the intent of this banking customer query. Answer with the intent name only.", "--input", "text")
SMALL = ("--set", "arms.shots=[4]", "--set", "arms.latency_items=3")  # two variants of each prompting arm with a choice
A_A = {
    "about": "the same against the same: recorded banking77 answers",
    "hypothesis": "a quality verdict in at most 5 % of the draws; equivalent for twice the same answers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run. `budget_s` is for two quiet cores."""

    name: str
    about: str
    hypothesis: str
    prepare: study_data.Prepare | None
    flags: tuple[str, ...]
    budget_s: int


TASKS = (
    Task(
        name="demo",
        about="support desk mails to JSON, the data that ships with Luthier (made for it, so no evidence about real data)",
        hypothesis="fine-tune: the form and the closed sets of values are what a small model learns",
        prepare=None,
        flags=("--config", "examples/quickstart.yaml", "--learning-curve"),
        budget_s=360,
    ),
    Task(
        name="banking77",
        about="customer query to one of 77 intents, 10 rows an intent to learn from",
        hypothesis="fine-tune beats the prompts of a 135M model; a classic classifier may be enough",
        prepare=study_data.banking77,
        flags=(
            "train.csv", "--test", "test.csv", *LABELS, "--output", "category", "--train-rows", "770", "--dev-rows", "154",
            "--test-rows", "231", "--set", "arms.dev_items=40", "--lr", "2e-3", "--epochs", "3", "--learning-curve", *SMALL,
        ),
        budget_s=600,
    ),
    Task(
        name="intents20",
        about="20 intents of banking77, drawn by seed, 30 rows an intent to learn from; with a learning curve",
        hypothesis="neither needed: a classic classifier is enough (another draw of 20 intents came out so once, docs/log.md)",
        prepare=partial(study_data.intents, number=20),
        flags=(
            "train.csv", "--test", "test.csv", *LABELS, "--output", "category", "--train-rows", "600", "--dev-rows", "60",
            "--test-rows", "240", "--set", "arms.dev_items=40", "--lr", "1e-3", "--epochs", "2", "--learning-curve",
            "--set", "arms.consistency_items=20", *SMALL,
        ),
        budget_s=300,
    ),
    Task(
        name="e2e",
        about="facts about a restaurant to a sentence, scored against all references of a meaning",
        hypothesis="fine-tune: style, and every fact in it",
        prepare=partial(study_data.e2e, num_dev=30, num_test=120),
        flags=(
            "train.jsonl", "--dev", "dev.jsonl", "--test", "test.jsonl", "--set", "arms.dev_items=30", "--lr", "1e-3", "--epochs", "2",
            "--learning-curve", "--train-seeds", "3", *SMALL,
        ),
        budget_s=600,
    ),
    Task(
        name="alpaca",
        about="general instructions with answers of at most 60 words, 200 rows to learn from",
        hypothesis="equivalent or prompt: the base model was trained for general instructions, 200 more rows teach it a style at most",
        prepare=partial(study_data.alpaca, num_test=220),
        flags=(
            "train.jsonl", "--test", "test.jsonl", "--train-rows", "200", "--dev-rows", "30", "--test-rows", "220",
            "--set", "arms.dev_items=16", "--lr", "5e-4", "--epochs", "1", "--set", "arms.skip=[few-shot,tuned + retrieval]",
            "--set", "arms.shots=[2]", "--set", "arms.latency_items=2", "--set", "arms.consistency_items=10", "--learning-curve",
        ),
        budget_s=420,
    ),
    Task(
        name="alpaca-32",
        about="the same with 32 test items and 100 rows to learn from, as somebody has who begins",
        hypothesis="cannot tell: 32 items show differences of about 9 points and more, and the arms will be closer than that",
        prepare=partial(study_data.alpaca, num_test=32),
        flags=(
            "train.jsonl", "--test", "test.jsonl", "--train-rows", "100", "--dev-rows", "20", "--set", "arms.dev_items=12", "--lr", "5e-4",
            "--epochs", "1", "--set", "arms.skip=[few-shot,tuned + retrieval]", "--set", "arms.shots=[2]",
            "--set", "arms.latency_items=2", "--set", "arms.consistency_items=10", "--set", "probes.safety_items=20", "--learning-curve",
        ),
        budget_s=150,
    ),
    Task(
        name="gsm8k",
        about="grade-school arithmetic in several steps, the final number counts; at least half right asked for",
        hypothesis="neither yet: a larger model. 135M parameters do not do this, prompted or tuned",
        prepare=partial(study_data.gsm8k, num_train=280, num_test=100),
        flags=(
            "train.jsonl", "--test", "test.jsonl", "--dev-rows", "30", "--min-quality", "50", "--set", "arms.dev_items=12", "--lr", "1e-3",
            "--epochs", "1", "--set", "arms.max_new_tokens=192", "--set", "arms.skip=[tuned + retrieval]", "--set", "arms.shots=[2]",
            "--set", "arms.latency_items=2", "--learning-curve",
        ),
        budget_s=480,
    ),
    Task(
        name="identity",
        about="who the assistant is: 91 rows, cross-fitted over 5 trainings",
        hypothesis="leaning at most, or cannot tell: 91 rows",
        prepare=study_data.identity,
        flags=(
            "identity.json", "--folds", "5", "--dev-rows", "8", "--learning-curve", "--set", "arms.dev_items=6", "--lr", "1e-3",
            "--epochs", "3", "--set", "arms.max_new_tokens=128", "--set", "arms.skip=[few-shot,tuned + retrieval]",
            "--set", "arms.shots=[2]", "--set", "arms.latency_items=1",
        ),
        budget_s=480,
    ),
    Task(
        name="squad2",
        about="question on a paragraph, half without an answer in it; split by article, clustered by paragraph",
        hypothesis="neither yet or cannot tell: a larger prompted model. Always abstaining is a strong floor",
        prepare=partial(study_data.squad2, num_train=240, num_dev=40, num_test=120),
        flags=(
            "train.jsonl", "--dev", "dev.jsonl", "--test", "test.jsonl", "--group", "group", "--min-quality", "60",
            "--set", "arms.dev_items=20", "--lr", "1e-3", "--epochs", "1", "--set", "arms.shots=[2]", "--set", "arms.latency_items=2",
            "--set", "arms.consistency_items=10", "--learning-curve",
        ),
        budget_s=600,
    ),
    Task(
        name="open-book",
        about="questions whose answers lie in a folder of 35 articles; a larger model, proposed instructions and paraphrases beside",
        hypothesis="passages help more than tuning does, and neither is enough for 135M parameters; the base model of 270M no better",
        prepare=partial(study_data.open_book, num_train=240, num_dev=40, num_test=120, num_constraints=40),
        flags=(
            "train.jsonl", "--dev", "dev.jsonl", "--test", "test.jsonl", "--group", "group", "--min-quality", "60",
            "--documents", "documents", "--larger-model", "gemma-3-270m", "--propose", "model", "--constraint-prompts", "constraints.jsonl",
            "--set", "arms.paraphraser=model", "--set", "arms.dev_items=20", "--lr", "1e-3", "--epochs", "2", "--set", "arms.shots=[2]",
            "--set", "arms.passages=[2]", "--set", "arms.latency_items=2", "--set", "arms.consistency_items=20", "--learning-curve",
        ),
        budget_s=600,
    ),
    Task(
        name="shuffled",
        about="banking77 with the training labels dealt out anew: a guard, nothing can be learnt",
        hypothesis="neither yet: every arm near chance, and the tuned one not above 1-nearest-neighbour",
        prepare=study_data.shuffled,
        flags=(
            "train.csv", "--test", "test.csv", *LABELS, "--output", "category", "--train-rows", "770", "--dev-rows", "154",
            "--test-rows", "154", "--set", "arms.dev_items=20", "--lr", "2e-3", "--epochs", "1",
            "--set", "arms.skip=[few-shot,tuned + retrieval]", "--set", "arms.shots=[2]", "--set", "arms.latency_items=1",
            "--set", "arms.consistency_items=10",
        ),
        budget_s=180,
    ),
)  # fmt: skip
