"""Instructions written by a model: what it is shown, and the arm that its proposals make.

Each proposal comes from a question of its own: other training examples, other mistakes, another way to write. So they differ at
temperature 0 too, and the same run asks the same questions. What a model proposes is untrusted text: it becomes part of a
prompt, is shown escaped, and is nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from luthier.arms.prompts import Arm, Candidate, instructed, num_chars, shared_parts
from luthier.arms.wordings import reminder, wordings
from luthier.core.types import Example, Message, TaskProfile

NAME = "instruction optimised"
NUM_EXAMPLES = 6
NUM_MISTAKES = 4
MAX_SHOWN_CHARS = 300  # of one text in a question
MAX_INSTRUCTION_CHARS = 2000
PROPOSAL_TOKENS = 300  # longest proposal
# In the manner of the tips of MIPROv2 (Opsahl-Ong et al. 2024, section 3.1).
TIPS = (
    "Be short and clear.",
    "Say how to tell apart the answers that are easily confused.",
    "Describe the task to someone who has never seen it, step by step.",
    "Say which mistakes to avoid.",
    "Give the rule by which the right answer is found.",
    "Begin with who the assistant is and what depends on a right answer.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A dev item that was answered wrongly, with the answer."""

    item: Example
    answer: str


def questions(
    train: Sequence[Example], profile: TaskProfile, mistakes: Sequence[Mistake], *, number: int, seed: int, max_prompt_chars: int
) -> tuple[tuple[Message, ...], ...]:
    """`number` conversations, each asking for one instruction; shorter ones where the limit is tight."""
    rows = sorted((row for row in train if row.desirable is not False), key=lambda row: row.id)
    spec = wordings(profile, rows)[0]
    out: list[tuple[Message, ...]] = []
    for n in range(number):
        rng = random.Random(f"{seed}/proposals/{n}")  # noqa: S311 - no secret
        examples = rng.sample(rows, min(NUM_EXAMPLES, len(rows)))
        wrong = rng.sample(list(mistakes), min(NUM_MISTAKES, len(mistakes)))
        asked = _question(spec, examples, wrong, TIPS[n % len(TIPS)])
        while num_chars(asked) > max_prompt_chars and (examples or wrong):
            examples, wrong = (examples[:-1], wrong) if len(examples) >= len(wrong) else (examples, wrong[:-1])
            asked = _question(spec, examples, wrong, TIPS[n % len(TIPS)])
        out.append(asked)
    return tuple(out)


def _question(spec: str, examples: Sequence[Example], mistakes: Sequence[Mistake], tip: str) -> tuple[Message, ...]:
    lines = ["Write the instruction for an assistant that does the task shown here.", "", "Examples:"]
    lines += [f"Input: {_short(row.input or row.user_text)}\nAnswer: {_short(row.response)}" for row in examples]
    if mistakes:
        lines += ["", "Mistakes it has made:"]
        lines += [
            f"Input: {_short(m.item.input or m.item.user_text)}\nIt answered: {_short(m.answer)}\nRight is: {_short(m.item.response)}"
            for m in mistakes
        ]
    lines += ["", f"The form of the answer is said already:\n{spec}", "", f"{tip} Reply with the instruction alone."]
    return (Message(role="user", content="\n".join(lines)),)


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


def proposed_arm(
    train: Sequence[Example], profile: TaskProfile, texts: Sequence[str], *, max_prompt_chars: int, by: str, are_given: bool = False
) -> Arm:
    """The arm whose candidates are the proposals, each before the form of the answer; empty and repeated ones are left out and counted.

    Texts that a person gave (`are_given`) are never cut.
    """
    rows = sorted((row for row in train if row.desirable is not False), key=lambda row: row.id)
    shared, form, last = shared_parts(rows), wordings(profile, rows)[0], reminder(profile)
    candidates: list[Candidate] = []
    seen: set[str] = set()
    num_cut = 0
    for number, text in enumerate(texts, start=1):
        instruction = text.strip()
        if not are_given:
            num_cut += len(instruction) > MAX_INSTRUCTION_CHARS
            instruction = instruction[:MAX_INSTRUCTION_CHARS]
        if not instruction or instruction in seen:
            continue
        seen.add(instruction)
        build = partial(instructed, shared=shared, spec=f"{instruction}\n\n{form}", reminder=last)
        length = num_chars(build(rows[len(rows) // 2]))
        if length <= max_prompt_chars:
            candidates.append(Candidate(params={"proposal": str(number), "instruction": instruction}, build=build, prompt_chars=length))
    left_out = len(texts) - len(candidates)
    notes = f" {left_out} of {len(texts)} were empty, repeated or too long for the model." if left_out else ""
    notes += f" {num_cut} were cut at {MAX_INSTRUCTION_CHARS:,} characters." if num_cut else ""
    told = (
        f"Instructions given, not proposed here: {by}"
        if are_given
        else f"Instructions proposed by {by} from training examples and mistakes on dev"
    )
    return Arm(
        name=NAME,
        family="prompt",
        model="base",
        description=f"{told}, the best on dev.{notes}",
        candidates=tuple(candidates),
        failed=None if candidates else f"no {'instruction' if are_given else 'proposal'} of {by} can be used.{notes}",
    )
