"""Build `support_desk/examples.jsonl` from the hand-readable files in `support_desk/source`.

    python examples/build_support_desk.py           write examples.jsonl and the generated parts of README.md
    python examples/build_support_desk.py --check   exit 1 if either is not what the source says

The result depends on the source files and `SEED` alone: same source, same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parent / "support_desk"
INSTRUCTION = "Answer the customer of Brackenwhistle Looms as one line of JSON with intent, reply and handover."
SEED = 7
MIN_FLAW_DISTANCE = 40  # rows; a flaw that sits right below its twin would be found by eye


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the file. `flaw` names a deliberate fault, `of` the message it copies or contradicts."""

    intent: str
    reply: str
    handover: bool
    message: str
    flaw: str = ""
    of: str = ""

    def as_json(self) -> str:
        """The line as it stands in the file: instruction, input, output, where output is itself one line of JSON."""
        answer = json.dumps({"intent": self.intent, "reply": self.reply, "handover": self.handover}, ensure_ascii=False)
        return json.dumps({"instruction": INSTRUCTION, "input": self.message, "output": answer}, ensure_ascii=False)


def read_intent(path: Path) -> list[Row]:
    """The good rows of one source file: `intent`, then `answers` of `reply`, `handover` and one message a line."""
    source = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Row(intent=source["intent"], reply=answer["reply"], handover=answer["handover"], message=message)
        for answer in source["answers"]
        for message in answer["messages"].splitlines()
    ]


def read_good_rows(folder: Path) -> list[Row]:
    """All rows without the flaws, file by file in order of name."""
    return [row for path in sorted(folder.glob("*.yaml")) if path.name != "flaws.yaml" for row in read_intent(path)]


def read_flaws(path: Path, good_rows: Sequence[Row]) -> list[Row]:
    """The deliberate flaws. What a flaw does not state itself it takes from the good row named by `of`."""
    by_message: Mapping[str, Row] = {row.message: row for row in good_rows}
    flaws: list[Row] = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        twin = by_message[entry["of"]] if "of" in entry else None
        values = {key: entry[key] if key in entry else getattr(twin, key) for key in ("intent", "reply", "handover", "message")}
        flaws.append(Row(**values, flaw=entry["kind"], of=entry.get("of", "")))
    return flaws


def shuffle_rows(good_rows: Sequence[Row], flaws: Sequence[Row]) -> list[Row]:
    """Good rows and flaws in one fixed random order, each flaw far from the row it copies."""
    rows = [*good_rows, *flaws]
    for attempt in range(1000):
        random.Random(f"{SEED}/support_desk/{attempt}").shuffle(rows)
        line_of = {row.message: line for line, row in enumerate(rows) if not row.flaw}
        if all(abs(line - line_of[row.of]) >= MIN_FLAW_DISTANCE for line, row in enumerate(rows) if row.of):
            return rows
    raise RuntimeError(f"no order keeps every flaw {MIN_FLAW_DISTANCE} rows from its twin")


def build_rows(folder: Path = FOLDER) -> list[Row]:
    """The rows of `examples.jsonl`, in order."""
    good_rows = read_good_rows(folder / "source")
    return shuffle_rows(good_rows, read_flaws(folder / "source" / "flaws.yaml", good_rows))


def flaw_table(rows: Sequence[Row]) -> str:
    """The README's table of deliberate flaws with their 1-based lines."""
    line_of = {row.message: line for line, row in enumerate(rows, start=1) if not row.flaw}
    body = [
        f"| {row.flaw} | {line} | {line_of[row.of] if row.of else 'none'} | `{' '.join(row.message.split())}` |"
        for line, row in enumerate(rows, start=1)
        if row.flaw
    ]
    return "\n".join(["| flaw | line | twin at line | message |", "|---|---|---|---|", *sorted(body)])


def count_table(rows: Sequence[Row]) -> str:
    """The README's table of rows, replies and handovers an intent (without the flaws)."""
    good = [row for row in rows if not row.flaw]
    lines = ["| intent | rows | replies | rows with handover |", "|---|---|---|---|"]
    for intent in sorted({row.intent for row in good}):
        of_intent = [row for row in good if row.intent == intent]
        lines.append(
            f"| {intent} | {len(of_intent)} | {len({row.reply for row in of_intent})} | {sum(row.handover for row in of_intent)} |"
        )
    lines.append(f"| all | {len(good)} | {len({row.reply for row in good})} | {sum(row.handover for row in good)} |")
    return "\n".join(lines)


def fill_in(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name:begin -->` and `<!-- name:end -->`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md: expected the markers {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def build_files(folder: Path = FOLDER) -> dict[Path, str]:
    """What each generated file should hold."""
    rows = build_rows(folder)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    readme = fill_in(fill_in(readme, "counts", count_table(rows)), "flaws", flaw_table(rows))
    return {folder / "examples.jsonl": "".join(row.as_json() + "\n" for row in rows), folder / "README.md": readme}


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build the demo data set from its source.")
    parser.add_argument("--check", action="store_true", help="only say whether the committed files are up to date")
    check: bool = parser.parse_args(argv).check
    stale = [(path, text) for path, text in build_files().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path, text in stale:
        if check:
            sys.stderr.write(f"{path}: not what the source says; run: python examples/build_support_desk.py\n")
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
