"""The rows of the study, drawn by seed from the data in ../shared/data into small files. Nothing of it is committed.

Each function writes train, dev and test files to a folder. Official test rows are only used as test rows.
"""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SEED = 0
E2E = "Write one or two sentences about the restaurant that state all of these facts and nothing else."
GSM8K = "Solve the problem step by step. End with a line of four number signs and the number."
SQUAD = "Answer the question with words from the paragraph. If the paragraph does not say it, answer: not answerable."
OPEN_BOOK = "Answer the question in a few words."
ABSTAIN = "not answerable"
MAX_ALPACA_WORDS = 60  # longer answers are another task: how long to write
Question = tuple[str, str, Sequence[str]]  # its group, what is asked, every accepted answer
SQUAD_TEST = ("Normans", "Steam_engine", "Islamism", "Warsaw")
SQUAD_DEV = ("Packet_switching", "Scottish_Parliament")


def banking77(source: Path, folder: Path) -> None:
    """As they are: `luthier run` draws the rows with the label shares of the whole."""
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_bytes((source / "banking77" / f"{name}.csv").read_bytes())


def shuffled(source: Path, folder: Path) -> None:
    """banking77 with the labels of the training rows dealt out anew: nothing can be learnt from them."""
    banking77(source, folder)
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [row["category"] for row in rows]
    random.Random(SEED).shuffle(labels)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "category"))
        writer.writerows((row["text"], label) for row, label in zip(rows, labels, strict=True))


def intents(source: Path, folder: Path, *, number: int) -> None:
    """`number` intents of banking77, drawn by seed, with all their rows."""
    labels = json.loads((source / "banking77" / "categories.json").read_text(encoding="utf-8"))
    drawn = set(random.Random(SEED).sample(sorted(labels), number))
    for name in ("train", "test"):
        with (source / "banking77" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["category"] in drawn]
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "category"))
            writer.writerows((row["text"], row["category"]) for row in rows)


def alpaca(source: Path, folder: Path, *, num_test: int) -> None:
    """General instructions with short answers; so many of them locked, the rest to learn from."""
    rows = json.loads((source / "alpaca_en_demo" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    short = [row for row in rows if 0 < len(row["output"].split()) <= MAX_ALPACA_WORDS]
    drawn = random.Random(SEED).sample(short, len(short))
    _write(folder / "test.jsonl", drawn[:num_test])
    _write(folder / "train.jsonl", drawn[num_test:])


def e2e(source: Path, folder: Path, *, num_dev: int, num_test: int) -> None:
    """One reference of each meaning to learn from; dev and test with all references. No meaning is on two sides."""
    train, test = (_references(source / "e2e" / name) for name in ("devset.csv", "testset_w_refs.csv"))
    generator = random.Random(SEED)
    meanings = generator.sample(sorted(train), len(train))
    dev, rest = meanings[:num_dev], meanings[num_dev:]
    _write(folder / "train.jsonl", (_row(E2E, mr, generator.choice(train[mr])) for mr in rest))
    _write(folder / "dev.jsonl", (_row(E2E, mr, ref) for mr in dev for ref in train[mr]))
    _write(folder / "test.jsonl", (_row(E2E, mr, ref) for mr in generator.sample(sorted(test), num_test) for ref in test[mr]))


def gsm8k(source: Path, folder: Path, *, num_train: int, num_test: int) -> None:
    """The worked answers without the calculator marks <<...>>, which no prompted model would write."""
    for name, number in (("train", num_train), ("test", num_test)):
        lines = (source / "gsm8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in random.Random(SEED).sample(lines, number)]
        _write(folder / f"{name}.jsonl", (_row(GSM8K, row["question"], _without_marks(row["answer"])) for row in rows))


def squad2(source: Path, folder: Path, *, num_train: int, num_dev: int, num_test: int) -> None:
    """Split by article; `group` is the paragraph, whose questions are no independent observations. Every accepted answer is a row."""
    articles = json.loads((source / "squad2" / "dev-v2.0.json").read_text(encoding="utf-8"))["data"]
    questions: dict[str, list[Question]] = defaultdict(list)
    for article in articles:
        part = _part_of(article["title"])
        for number, paragraph in enumerate(article["paragraphs"]):
            for qa in paragraph["qas"]:
                answers = list(dict.fromkeys(answer["text"] for answer in qa["answers"])) or [ABSTAIN]
                asked = f"Paragraph: {paragraph['context']}\n\nQuestion: {qa['question']}"
                questions[part].append((f"{article['title']} {number}", asked, answers))
    _write_questions(folder, SQUAD, questions, {"train": num_train, "dev": num_dev, "test": num_test})


def open_book(source: Path, folder: Path, *, num_train: int, num_dev: int, num_test: int, num_constraints: int) -> None:
    """SQuAD's answerable questions without their paragraphs, which lie in documents/ instead, an article a file; split by article.

    Beside them so many of IFEval's requests with verifiable constraints.
    """
    articles = json.loads((source / "squad2" / "dev-v2.0.json").read_text(encoding="utf-8"))["data"]
    (folder / "documents").mkdir(exist_ok=True)
    questions: dict[str, list[Question]] = defaultdict(list)
    for number, article in enumerate(articles):
        text = "\n\n".join(paragraph["context"] for paragraph in article["paragraphs"])
        (folder / "documents" / f"article-{number:02d}.txt").write_text(text + "\n", encoding="utf-8")
        part = _part_of(article["title"])
        for place, paragraph in enumerate(article["paragraphs"]):
            for qa in paragraph["qas"]:
                if answers := list(dict.fromkeys(answer["text"] for answer in qa["answers"])):
                    questions[part].append((f"{article['title']} {place}", qa["question"], answers))
    _write_questions(folder, OPEN_BOOK, questions, {"train": num_train, "dev": num_dev, "test": num_test})
    lines = (source / "ifeval" / "input_data.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "constraints.jsonl").write_text("\n".join(random.Random(SEED).sample(lines, num_constraints)) + "\n", encoding="utf-8")


def identity(source: Path, folder: Path) -> None:
    """All 91 rows, placeholders and all."""
    (folder / "identity.json").write_bytes((source / "identity" / "identity.json").read_bytes())


def _part_of(title: str) -> str:
    return "test" if title in SQUAD_TEST else "dev" if title in SQUAD_DEV else "train"


def _write_questions(folder: Path, instruction: str, questions: Mapping[str, Sequence[Question]], num: Mapping[str, int]) -> None:
    """So many questions of each part, drawn by seed; every accepted answer is a row, but one to learn from."""
    for part, wanted in num.items():
        drawn = random.Random(SEED).sample(questions[part], wanted)
        kept = 1 if part == "train" else None
        rows = ({**_row(instruction, asked, text), "group": group} for group, asked, texts in drawn for text in texts[:kept])
        _write(folder / f"{part}.jsonl", rows)


def _references(path: Path) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["mr"]].append(row["ref"])
    return found


def _without_marks(answer: str) -> str:
    parts = answer.split("<<")
    return parts[0] + "".join(part.partition(">>")[2] for part in parts[1:])


def _row(instruction: str, asked: str, answer: str) -> dict[str, Any]:
    return {"instruction": instruction, "input": asked, "output": answer}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


Prepare = Callable[[Path, Path], None]
