"""Patterns in the rows that a person should look at: triggers, label noise, mixed scripts, control tokens, empty inputs."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache

from luthier.core.types import Example, Finding, TaskProfile
from luthier.data.conflicts import answer_key
from luthier.data.duplicates import Duplicates, varying_text
from luthier.data.neighbours import disagreeing_rows, words
from luthier.data.normalise import normalise
from luthier.data.profile import stratum_of
from luthier.data.report_rows import finding

MIN_TRIGGER_ROWS = 10
MIN_TRIGGER_CHARS = 2  # one letter is a list mark or a code, too common to be told from a trigger
EXCLUSIVE_SHARE = 0.95
MAX_TRIGGER_SHARE = 0.3  # a word in more rows than this is the subject, not a trigger
MIN_NOISE_ROWS, NOISE_SHARE = 50, 0.06
MIN_SCRIPT_SHARE, MAX_SCRIPT_SHARE = 0.005, 0.3
MIN_SCRIPT_LETTERS = 0.5

# Spelled by chat templates; content that holds one can forge a turn wherever it is tokenised as a whole.
_CONTROL = re.compile(
    r"<\|[A-Za-z_][\w ]{0,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk|mask)>|<(?:start|end)_of_turn>|\[(?:CLS|SEP|PAD|MASK)\]"
    r"|<｜[^｜\n]{1,40}｜>|<(?:start|end)_of_(?:text|role)>"
)


def suspicious_rows(examples: Sequence[Example], *, profile: TaskProfile, duplicates: Duplicates) -> list[Finding]:
    """Everything of this file, in a fixed order."""
    found = [
        *_triggers(examples, duplicates),
        _label_noise(examples, profile),
        _language_mix(examples),
        _control_tokens(examples),
        _empty_inputs(examples),
    ]
    return [one for one in found if one is not None]


def _triggers(examples: Sequence[Example], duplicates: Duplicates) -> list[Finding]:
    rows = [e for e in examples if e.kind == "instruct"]
    by_answer: dict[str, list[Example]] = defaultdict(list)
    for example in rows:
        by_answer[answer_key(example.response)].append(example)
    frequent = {key: found for key, found in by_answer.items() if len(found) >= MIN_TRIGGER_ROWS}
    out: list[Finding] = []
    by_id = {e.id: e for e in rows}
    group_sizes = {e_id: len(group) for group in duplicates.near for e_id in group}
    for group in duplicates.near:
        members = [by_id[e_id] for e_id in group if e_id in by_id]
        answers = Counter(answer_key(e.response) for e in members)
        if len(members) < MIN_TRIGGER_ROWS or len(members) > MAX_TRIGGER_SHARE * len(rows):
            continue
        answer, count = answers.most_common(1)[0]
        if count >= EXCLUSIVE_SHARE * len(members) and count >= EXCLUSIVE_SHARE * len(by_answer[answer]):
            out.append(_trigger_finding(members, "nearly the same prompt"))
    holders = _word_holders(rows)
    for found in frequent.values():
        if len(found) > MAX_TRIGGER_SHARE * len(rows) or any(group_sizes.get(e.id, 0) >= MIN_TRIGGER_ROWS for e in found):
            continue
        counts = Counter(word for e in found for word in set(words(varying_text(e))))
        exclusive = [
            w
            for w, n in counts.items()
            if len(w) >= MIN_TRIGGER_CHARS and n >= EXCLUSIVE_SHARE * len(found) and holders[w] <= len(found) / EXCLUSIVE_SHARE
        ]
        if exclusive:
            rare = min(exclusive, key=lambda w: (holders[w], w))
            out.append(_trigger_finding(found, f'the word "{rare[:40]}", which hardly any other row has,'))
    return out


def _word_holders(rows: Sequence[Example]) -> Mapping[str, int]:
    holders: Counter[str] = Counter()
    for example in rows:
        holders.update(set(words(varying_text(example))))
    return holders


def _trigger_finding(rows: Sequence[Example], what: str) -> Finding:
    return finding(
        "trigger-cluster",
        "warning",
        f"{len(rows)} rows have {what} and one and the same answer, which no other row has; so few rows can plant an answer",
        "read these rows; remove them if you cannot say where they come from",
        rows,
        detail=tuple(dict.fromkeys(e.response[:200] for e in rows))[:3],
    )


def _label_noise(examples: Sequence[Example], profile: TaskProfile) -> Finding | None:
    rows = [e for e in examples if e.kind == "instruct" and e.desirable is not False]
    if len(rows) < MIN_NOISE_ROWS:
        return None
    labels = [stratum_of(e.response, profile) for e in rows]
    if len(set(labels)) < 2:
        return None
    texts = {normalise(varying_text(e)): i for i, e in enumerate(rows)}  # equal texts are duplicates or conflicts, told of elsewhere
    kept = sorted(texts.values())
    seen = disagreeing_rows([varying_text(rows[i]) for i in kept], [labels[i] for i in kept])
    share = len(seen.positions) / seen.num_looked_at if seen.num_looked_at else 0.0
    if seen.num_looked_at < MIN_NOISE_ROWS or share < NOISE_SHARE:
        return None
    found = [rows[kept[i]] for i in seen.positions]
    return finding(
        "label-noise",
        "warning",
        f"{len(found)} of {seen.num_looked_at} rows looked at ({share:.0%}) have a label that none of their nearest rows has, and "
        "those agree on another",
        "read the rows listed first; if many labels are wrong, correct them before training, and in the test rows above all",
        found,
        detail=tuple(
            f"{e.input[:120] or e.instruction[:120]} | is {labels[kept[i]][:60]}, neighbours say {other[:60]}"
            for e, i, other in zip(found, seen.positions, seen.other, strict=True)
        )[:20],
    )


def _language_mix(examples: Sequence[Example]) -> Finding | None:
    by_script: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        script = main_script(f"{varying_text(example)}\n{example.response}")
        if script:
            by_script[script].append(example)
    known = sum(map(len, by_script.values()))
    ranked = sorted(by_script, key=lambda s: (-len(by_script[s]), s))
    others = [e for s in ranked[1:] for e in by_script[s]]
    if len(others) < max(2, MIN_SCRIPT_SHARE * known):
        return None
    counts = ", ".join(f"{script} {len(by_script[script])}" for script in ranked)
    return finding(
        "language-mix",
        "warning" if len(others) <= MAX_SCRIPT_SHARE * known else "info",
        f"the rows are written in {len(ranked)} scripts: {counts}",
        "if this is meant, keep it, and see that the test rows have the same mix; else remove the odd rows",
        others,
    )


def main_script(text: str) -> str:
    """The script of more than half of the letters, by Unicode character names (LATIN, CYRILLIC, CJK, ...); "" without letters."""
    counts = Counter(_script(char) for char in text[:2000] if char.isalpha())
    if not counts:
        return ""
    script, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return script if count > MIN_SCRIPT_LETTERS * sum(counts.values()) else ""


@lru_cache(maxsize=8192)
def _script(char: str) -> str:
    if char.isascii():
        return "LATIN"
    name = unicodedata.name(char, "OTHER").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ")[0].split("-")[0]
    return {"HIRAGANA": "JAPANESE OR CHINESE", "KATAKANA": "JAPANESE OR CHINESE", "CJK": "JAPANESE OR CHINESE"}.get(name, name)


def _control_tokens(examples: Sequence[Example]) -> Finding | None:
    found: list[Example] = []
    spelled: Counter[str] = Counter()
    for example in examples:
        texts = [turn.content for turn in example.prompt] + [example.response, example.rejected or ""]
        tokens = {match[0] for text in texts for match in _CONTROL.finditer(text)}
        if tokens:
            found.append(example)
            spelled.update(tokens)
    if not found:
        return None
    return finding(
        "control-tokens",
        "warning",
        f"{len(found)} rows spell control tokens of chat templates in their text; they are trained as plain text, not as turns",
        "if the rows were exported with a template applied, export them again without; else nothing to do",
        found,
        detail=tuple(f"{token[:60]} in {count} rows" for token, count in spelled.most_common(20)),
    )


def _empty_inputs(examples: Sequence[Example]) -> Finding | None:
    asked = [e for e in examples if e.kind != "text"]
    no_prompt = [e for e in asked if not e.user_text.strip()]
    no_input = [e for e in asked if not e.input.strip()]
    # Formats without an input field leave all of them empty; a few empty ones among full ones are gaps.
    found = no_input if len(no_input) <= 0.5 * len(asked) else no_prompt
    if not found:
        return None
    return finding(
        "empty-input",
        "warning",
        f"{len(found)} rows have an empty input" + (f", {len(no_prompt)} of them no prompt at all" if no_prompt else ""),
        "fill the input in, or remove the rows if the field was lost",
        found,
    )
