"""The report: one self-contained HTML file of at most 1 MB, without JavaScript and without a single outside address.

Every expression of the templates passes through `_finalize`, so no template can forget to escape or to bound a text.
"""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from luthier.core.untrusted import render_untrusted
from luthier.metrics.aggregate import AGGREGATE_MEANINGS
from luthier.metrics.catalogue import LOWER_IS_BETTER, MEANINGS
from luthier.metrics.form import BEHAVIOUR_MEANINGS
from luthier.report import behaviour, numbers, plots
from luthier.report.model import ArmRow, ItemGroups, ItemPair, ReportModel, pair_items, primary_of, told_comparison
from luthier.verdict.judge import judge_conditions, judge_words

DEFAULT_TEXT_BYTES = 400  # of rendered HTML; a template asks for more with |clip(n)
ANSWER_BYTES = 1_200
GROUP_BYTES = 90_000  # one group of items
MAX_ITEMS_PER_GROUP = 200
# Rows shown of each table. With DEFAULT_TEXT_BYTES these bound the page below 1 MB whatever the run holds.
MAX_ROWS = {
    "arms": 24, "params": 8, "efforts": 12, "comparisons": 24, "gates": 24, "reasons": 24, "steps": 8, "findings": 40, "where": 8,
    "detail": 4,
    "settings": 150, "environment": 50, "trials": 40, "points": 40, "notes": 12, "labels": 40, "optimism": 24, "remarks": 12, "slices": 24,
    "tried": 12,
    "exports": 24,
    "behaviour": 16,
}  # fmt: skip
_MEANINGS = {**MEANINGS, **AGGREGATE_MEANINGS, **BEHAVIOUR_MEANINGS}
ALL_MEANINGS = {name: _MEANINGS[name] for name in dict.fromkeys(("exact", "macro_f1", *_MEANINGS))}  # these two are read together
FAMILY_ORDER = {"floor": 0, "prompt": 1, "tuned": 2}
STRENGTH = {"strong": "strong evidence", "clear": "clear evidence", "leaning": "leaning one way, not settled", "none": "not settled"}
TONE = {
    "fine_tune_better": "tuned",
    "fine_tune_as_good_cheaper": "tuned",
    "prompt_better": "prompt",
    "prompt_as_good_simpler": "prompt",
    "equivalent_prompt": "prompt",
    "blocked": "fail",
}


@dataclass(frozen=True, slots=True)
class ShownItems:
    """One group of items on the page: those shown, and how many there are."""

    title: str
    explanation: str
    total: int
    shown: tuple[ItemPair, ...]


def render_html(model: ReportModel) -> str:
    """The whole report as one HTML document, at most 1,000,000 bytes of UTF-8.

    Rows and texts beyond the limits are counted on the page, with the file that holds them whole.
    """
    css = _style()
    digest = base64.b64encode(hashlib.sha256(css.encode("utf-8")).digest()).decode("ascii")
    items = pair_items(model)
    own = {name: "a score of your own" for row in model.rows for name in row.metrics if name not in ALL_MEANINGS}
    meanings = {**own, **ALL_MEANINGS}
    scored = [name for name in meanings if any(name in row.metrics and row.metrics[name].value is not None for row in model.rows)]
    return (
        _environment()
        .get_template("report.html")
        .render(
            model=model,
            verdict=model.verdict,
            css=Markup(css),  # noqa: S704 our own style sheet
            style_hash=digest,
            max_rows=MAX_ROWS,
            answer_bytes=ANSWER_BYTES,
            strength=STRENGTH.get(model.verdict.strength, model.verdict.strength),
            tone=TONE.get(model.verdict.code, "neutral"),
            primary=primary_of(model),
            told=told_comparison(model),
            rows=ordered_rows(model),
            tuned=model.row(model.verdict.best_tuned),
            prompt=model.row(model.verdict.best_prompt),
            floor=model.row(model.verdict.best_floor),
            gates=gate_counts(model),
            items=items,
            findings=sorted(model.findings, key=lambda finding: ("error", "warning", "info").index(finding.severity)),
            item_groups=_item_groups(items),
            figures=_figures(model),
            metric_names=scored,
            unscored=[name for name in meanings if name not in scored and any(name in row.metrics for row in model.rows)],
            efforts=list(dict.fromkeys(key for arm in model.arms for key in arm.effort))[: MAX_ROWS["efforts"]],
            meanings=meanings,
            behaviour_summary=behaviour.summary(model.behaviour) if model.behaviour else (),
            judge_sentences=judge_words(model.judge) if model.judge else (),
            judge_note=judge_conditions(model.judge, seed=model.split.seed) if model.judge and model.judge.record.judged else "",
            lower_is_better=[name for name in scored if name in LOWER_IS_BETTER],
            num_bad_losses=sum(
                not math.isfinite(loss) for point in model.curve for loss in (point.train_loss, point.dev_loss) if loss is not None
            ),
            is_thinned=len(model.curve) > plots.MAX_CURVE_POINTS,
            tokens_per_s=_mean([point.tokens_per_s for point in model.curve if point.tokens_per_s is not None]),
            chosen_settings={key: value for key, value in model.config.items() if value[1] != "default"},
            default_settings={key: value for key, value in model.config.items() if value[1] == "default"},
        )
    )


def ordered_rows(model: ReportModel) -> tuple[ArmRow, ...]:
    """Floors, prompts, tuned arms, each by score, best last; arms without a score first in their family."""

    def place(row: ArmRow) -> tuple[int, float]:
        value = row.score.value
        return FAMILY_ORDER[row.family], -math.inf if value is None or not math.isfinite(value) else value

    return tuple(sorted(model.rows, key=place))


def gate_counts(model: ReportModel) -> str:
    """The gates in a few words: "5 pass, 1 not shown"."""
    states = [gate.state for gate in model.verdict.gates]
    return ", ".join(f"{states.count(state)} {state}" for state in ("fail", "pass", "not shown", "not measured") if state in states)


def clip(value: object, limit: int = DEFAULT_TEXT_BYTES) -> Markup:
    """Untrusted text as HTML of at most `limit` bytes; where it is cut, the text says how many characters are missing."""
    text = str(value)
    whole = Markup(render_untrusted(text[: limit + 1], "html"))  # noqa: S704 escaped by render_untrusted
    if len(text) <= limit and _size(whole) <= limit:
        return whole
    kept = min(len(text), limit)
    while (size := _size(render_untrusted(text[:kept], "html"))) > limit - 40:  # 40 bytes for the note
        kept = min(kept - 1, kept * (limit - 40) // size)
    note = f" … [{len(text) - kept:,} more characters]"
    return Markup(render_untrusted(text[:kept], "html") + note)  # noqa: S704 escaped by render_untrusted


def _finalize(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    return clip(numbers.NOT_MEASURED if value is None else value)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("luthier.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(  # pyright: ignore[reportCallIssue]
        clip=clip,
        points=numbers.points,
        signed=numbers.signed_points,
        interval=numbers.interval,
        usd_interval=numbers.usd_interval,
        wait_interval=numbers.duration_interval,
        usd=numbers.usd,
        duration=numbers.duration,
        count=numbers.count,
        gib=numbers.gib,
        p_value=numbers.p_value,
        share=numbers.share,
        significant=numbers.significant,
        plain=numbers.plain,
        moment=numbers.moment,
    )
    return environment


@cache
def _style() -> str:
    source = _environment().loader
    assert source is not None
    return source.get_source(_environment(), "report.css")[0].strip()


def _figures(model: ReportModel) -> dict[str, Markup | None]:
    verdict, told, prompt = model.verdict, told_comparison(model), model.row(model.verdict.best_prompt)
    teller = model.row(told.a) if told else None
    best = frozenset(name for name in (verdict.best_prompt, verdict.best_tuned) if name)
    return {
        "effect": plots.effect_strip(told, verdict.margin, teller.family if teller else "tuned") if told else None,
        "forest": plots.forest(ordered_rows(model), best),
        "cost": plots.score_against_cost(ordered_rows(model)),
        "loss": plots.loss_curve(model.curve),
        "reliability": behaviour.reliability(model.behaviour) if model.behaviour else None,
        "learning": plots.learning_curve(model.learning_curve, prompt.score.value if prompt else None, model.learning_band),
        "prompt_lengths": plots.length_histogram(model.prompt_lengths_tokens, "prompt", "Prompt length, tokens"),
        "response_lengths": plots.length_histogram(model.response_lengths_tokens, "response", "Response length, tokens"),
    }


def _item_groups(items: ItemGroups | None) -> tuple[ShownItems, ...]:
    if items is None:
        return ()
    return (
        _within_budget("Won by the tuned arm", "The tuned arm scored higher than the best prompt.", items.tuned_better),
        _within_budget("Won by the best prompt", "The best prompt scored higher than the tuned arm.", items.prompt_better),
        _within_budget("Both wrong", "Neither is right. Labels that are wrong or unclear often turn up here.", items.both_wrong),
    )


def _within_budget(title: str, explanation: str, pairs: tuple[ItemPair, ...]) -> ShownItems:
    """As many items, in order, as fit GROUP_BYTES."""
    shown: list[ItemPair] = []
    left = GROUP_BYTES
    for pair in pairs[:MAX_ITEMS_PER_GROUP]:
        texts = (pair.input or "", pair.gold, pair.prompt_answer, pair.tuned_answer)
        left -= sum(_size(clip(text, ANSWER_BYTES)) for text in texts) + _size(clip(pair.item_id)) + _size(clip(pair.note)) + 700
        if left < 0:
            break
        shown.append(pair)
    return ShownItems(title, explanation, len(pairs), tuple(shown))


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _size(text: str) -> int:
    return len(text.encode("utf-8"))
