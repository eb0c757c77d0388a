"""The lines a run ends with: verdict, number, arms, what to do next. Plain ASCII of our own, 80 columns, no colour.

What is ASCII here also survives a Windows code page, a log file and a screen reader; untrusted names may hold more.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from luthier.core.untrusted import render_untrusted
from luthier.report import numbers
from luthier.report.behaviour import terminal_words
from luthier.report.model import ArmRow, ReportModel, primary_of
from luthier.verdict.judge import judge_words

COLUMNS = 80
NAME_COLUMNS = 32
MAX_ARMS = 8
MAX_STEPS = 2
MAX_REMARKS = 3
STRENGTH = {"strong": "strong evidence", "clear": "clear evidence", "leaning": "leaning, not settled", "none": "not settled"}


def verdict_lines(model: ReportModel, *, report_path: str = "report.html") -> list[str]:
    """The closing lines, each at most 80 columns wide: about 17 with six arms. Untrusted text cannot start a line of its own."""
    verdict, primary = model.verdict, primary_of(model)
    lines = _wrapped(f"VERDICT {verdict.headline} ({STRENGTH.get(verdict.strength, verdict.strength)})", "", "        ")
    lines += _wrapped(verdict.sentence, "  ", "  ", max_lines=6)
    if primary:
        lines += _wrapped(
            f"{numbers.signed_points(primary.difference)} points {verdict.metric}, 95 % interval {numbers.signed_points(primary.low95)} "
            f"to {numbers.signed_points(primary.high95)}, n = {primary.n:,}, margin {numbers.points(verdict.margin)}",
            "  ",
            "  ",
        )
    else:
        lines.append("  No prompt and tuned arm could be compared.")
    lines += ["", *_arm_lines(model), ""]
    if model.behaviour:
        lines += _wrapped(terminal_words(model.behaviour), "  Change: ", "          ", max_lines=4)
    if model.judge:
        lines += _wrapped(judge_words(model.judge)[0], "  Judge:  ", "          ", max_lines=4)
    for index, line in enumerate(model.probe_lines):
        before = "  Probes: " if index == 0 else "          "
        lines += _wrapped(f"{line.what}: base {line.base}, tuned {line.tuned}, n = {line.n}", before, "          ", max_lines=3)
    lines += [""] if model.probe_lines else []
    for index, remark in enumerate(verdict.remarks[:MAX_REMARKS]):
        lines += _wrapped(remark, "  Note:   " if index == 0 else "          ", "          ", max_lines=4)
    for index, step in enumerate(verdict.next_steps[:MAX_STEPS]):
        lines += _wrapped(step, "  Next:   " if index == 0 else "          ", "          ", max_lines=3)
    lines += _wrapped(report_path, "  Report: ", "          ")
    return lines


def _arm_lines(model: ReportModel) -> list[str]:
    best = (model.verdict.best_floor, model.verdict.best_prompt, model.verdict.best_tuned)
    ranked = sorted(model.rows, key=lambda row: (row.name not in best, -(row.score.value if row.score.value is not None else -1.0)))
    shown = [row for row in model.rows if row in ranked[:MAX_ARMS]]
    lines = [f"  {'arm (* compared)':<{NAME_COLUMNS}} {'score':>6}  {'95 % interval':<14} {'$/1,000':>9} {'p50':>9}"]
    lines += [_arm_line(row, row.name in best[1:]) for row in shown]
    lines += _wrapped(_conditions(shown), "  ", "  ")
    if len(model.rows) > len(shown):
        left = len(model.rows) - len(shown)
        lines.append(f"  {left} more {'arm is' if left == 1 else 'arms are'} in the report.")
    return lines


def _conditions(rows: Sequence[ArmRow]) -> str:
    """What the numbers of the table stand on."""
    items = sorted({row.score.n for row in rows if row.failed is None})
    waits = sorted({row.latency_p50_s.n for row in rows if row.latency_p50_s.value is not None and row.model})
    parts = [f"n = {', '.join(f'{n:,}' for n in items)} items"] if items else []
    parts += [f"p50 of {', '.join(f'{n:,}' for n in waits)} single requests"] if waits else []
    return "; ".join(parts)


def _arm_line(row: ArmRow, is_compared: bool) -> str:
    name = f"{'*' if is_compared else ' '} {_padded(row.name, NAME_COLUMNS - 2)}"
    if row.failed is not None:
        return f"  {name} {_padded(f'failed: {row.failed}', COLUMNS - NAME_COLUMNS - 3).rstrip()}"
    usd = row.cost_per_1000.value
    cost = numbers.usd(usd).replace("$", "")
    score = f"{numbers.points(row.score.value):>6}  {numbers.interval(row.score):<14}"
    return _ascii_signs(f"  {name} {score} {cost:>9} {numbers.duration(row.latency_p50_s.value):>9}")


def _ascii_signs(line: str) -> str:
    return line.replace(numbers.MINUS, "-").replace(numbers.NOT_MEASURED, "-")


def _one_line(text: str) -> str:
    return " ".join(render_untrusted(text, "terminal").split())


def _wrapped(text: str, first: str, rest: str, max_lines: int = 6) -> list[str]:
    """`text` on lines of at most 80 columns. Wide characters count double; text beyond `max_lines` is cut, visibly."""
    flat = _ascii_signs(_one_line(text))
    # textwrap counts characters. Counting a wide one as two needs a stand-in that is dropped again afterwards.
    doubled = "".join(f"{char}\0" if _is_wide(char) else char for char in flat)
    lines = textwrap.wrap(
        doubled, COLUMNS, initial_indent=first, subsequent_indent=rest, max_lines=max_lines, placeholder=" [...]", break_on_hyphens=False
    )
    return [line.replace("\0", "") for line in lines] or [first.rstrip()]


def _padded(text: str, columns: int) -> str:
    """Exactly `columns` wide: cut with "..." or filled with spaces."""
    flat = _one_line(text)
    if _width(flat) > columns:
        while _width(flat) > columns - 3:
            flat = flat[:-1]
        flat += "..."
    return flat + " " * (columns - _width(flat))


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"


def _width(text: str) -> int:
    return sum(2 if _is_wide(char) else 0 if unicodedata.category(char) in ("Mn", "Me", "Cf") else 1 for char in text)
