"""The study's table for people, from results/study.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from table import replace_table

SHOWN_REMARKS = ("examples", "can be seen", "without a language model")
KEPT = ("python", "cpu", "cores", "torch")


def write(found: Mapping[str, Any], declared: Mapping[str, tuple[str, str]]) -> None:
    """Hypotheses first, of all tasks (what it is, what was expected), then what was measured, then each task in words."""
    lines = ["| task | what it is | expected, written before the runs |", "|---|---|---|"]
    lines += [f"| {name} | {about} | {expected} |" for name, (about, expected) in declared.items()]
    lines += [
        "",
        "| task (score) | rows: learn / choose / test | best prompt | best tuned | best without a model | difference | verdict | strength "
        "| the prompt is worth (examples) | s (processor s; cores) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        if name != "a-a":
            lines.append(_measured(name, row))
    for name, row in found.items():
        lines += ["", f"**{name}**: {' '.join(_words(name, row))}"]
    lines += ["", f"{_spent(found)} Conditions of each: `results/study.json`. {_conditions(found)}"]
    replace_table("study", lines)


def _measured(name: str, row: Mapping[str, Any]) -> str:
    if "headline" not in row:
        return f"| {name} | | | | | | not finished: {row['stopped']} | | | {_seconds(row)} |"
    sizes, apart = row["sizes"], row["difference"]
    arms = {arm["name"]: arm for arm in row["arms"]}
    prompt, tuned = (arms.get(apart["b"]), arms.get(apart["a"])) if apart else (None, None)
    floors = [arm for arm in row["arms"] if arm["family"] == "floor" and arm["dev_score"] is not None]
    floor = max(floors, key=lambda arm: arm["dev_score"], default=None)
    gap = "none" if not apart else f"{_signed(apart['value'])} ({_signed(apart['low'])} to {_signed(apart['high'])}), n = {apart['n']}"
    rows = f"{sizes['train']} / {sizes['dev']} / {sizes['test']}"
    return (
        f"| {name} ({row['metric']}) | {rows} | {_arm(prompt)} | {_arm(tuned)} | {_arm(floor)} "
        f"| {gap} | **{row['headline']}** | {row['strength']} | {_worth(row)} | {_seconds(row)} |"
    )


def _worth(row: Mapping[str, Any]) -> str:
    """n*: how many examples the tuned model needs to be as good as the best prompt; said by the run itself."""
    if not row["learning_curve"]:
        return "curve not finished" if "stopped" in row and "--learning-curve" in row["flags"] else "no curve asked for"
    said = [match for text in row["remarks"] if (match := re.search(r"is worth (.+?) training examples(?: \((.+?)\))?\.$", text))]
    for text in row["remarks"]:
        if match := re.search(r"is worth cannot be told: (.+)\.$", text):
            return f"cannot be told: {match[1]}"
    return "not known" if not said else f"{said[0][1]}{f' ({said[0][2]})' if said[0][2] else ''}"


def _seconds(row: Mapping[str, Any]) -> str:
    """By the clock; in brackets the processor seconds, which other work on the machine does not add to, and the cores that were used."""
    if "cpu_s" not in row:
        return f"{row['wall_s']:.0f}"
    return f"{row['wall_s']:.0f} ({row['cpu_s']:.0f}; {row['environment']['cores']})"


def _spent(found: Mapping[str, Any]) -> str:
    clock_s, processor_s = (sum(row.get(key, 0) for row in found.values()) for key in ("wall_s", "cpu_s"))
    unknown = [name for name, row in found.items() if "wall_s" in row and "cpu_s" not in row]
    without = f", without {', '.join(unknown)}, whose was not recorded" if unknown else ""
    return f"The runs together took {clock_s / 60:.0f} minutes by the clock and {processor_s / 60:.0f} processor minutes{without}."


def _words(name: str, row: Mapping[str, Any]) -> list[str]:
    if name == "a-a":
        return [
            f"for each of {row['n']} items a coin decides which of {row['arms'][0]} and {row['arms'][1]} counts as the first. Called "
            f"better in {100 * row['false_verdicts']:.1f} % of {row['draws']:,} draws (95 % interval {100 * row['low']:.1f} to "
            f"{100 * row['high']:.1f}; at most 5 % is promised). The tuned arm against a copy of itself: {row['twice_the_same']}."
        ]
    if "headline" not in row:
        return [f"not finished, {row['stopped']}. No verdict is guessed."]
    out = [row["sentence"]]
    if "stopped" in row:
        out.append(f"All arms were measured, but not yet what comes after them (learning curve, behaviour, probes): {row['stopped']}.")
    out += [text for text in row["remarks"] if any(words in text for words in SHOWN_REMARKS)]
    if row["learning_curve"]:
        at = [f"{point['num_examples']:,} rows {_interval({**point, 'value': point['score']})}" for point in row["learning_curve"]]
        out.insert(1, f"Learning curve of the tuned arm: {', '.join(at)}.")
    arms = {arm["name"]: arm for arm in row["arms"]}
    if name == "squad2" and row["difference"]:
        for title, metric in (
            ("Answered although there is no answer", "fabrication"),
            ("Declined although there is one", "over_abstention"),
        ):
            shown = ", ".join(f"{a} {_estimate(arms[a]['metrics'][metric])}" for a in (row["difference"]["b"], row["difference"]["a"]))
            out.append(f"{title}: {shown}.")
    if "slot_errors" in row:
        rates = row["slot_errors"]
        chosen = [row["difference"]["b"], row["difference"]["a"]] if row["difference"] else []
        shown = ", ".join(f"{name} {_interval(rates[name])}" for name in chosen)
        out.append(
            f"Slots left out, wrong or added (%): {shown}; human references by the same patterns {100 * rates['references']['value']:.1f}, "
            "which is the patterns' own error."
        )
    return out


def _arm(arm: Mapping[str, Any] | None) -> str:
    return "none" if arm is None or arm["score"] is None else f"{arm['name']} {_interval({**arm, 'value': arm['score']})}"


def _estimate(found: Mapping[str, Any]) -> str:
    return "not measured" if found["score"] is None else f"{_interval({**found, 'value': found['score']})} %, n = {found['n']}"


def _interval(found: Mapping[str, Any]) -> str:
    ends = "" if found.get("low") is None else f" ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
    return f"{100 * found['value']:.1f}{ends}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _conditions(found: Mapping[str, Any]) -> str:
    """Of every machine state that a result comes from, with the tasks it holds for."""
    tasks: dict[str, list[str]] = {}
    for name, row in found.items():
        if "environment" in row:
            shown = "; ".join(f"{key}: {row['environment'][key]}" for key in KEPT if key in row["environment"])
            tasks.setdefault(shown, []).append(name)
    return " ".join(f"{', '.join(names)}: {shown}." for shown, names in tasks.items())
