"""The HTML report: escaped everywhere, no script, nothing fetched, one megabyte at most, readable in both themes."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from tests.fixtures import reports
from tests.fixtures.hostile import HOSTILE

from luthier.core.tried import Tried
from luthier.core.types import Comparison, Estimate, Finding, GateResult, ItemScore
from luthier.core.untrusted import reveal, unreveal
from luthier.report.html import clip, render_html
from luthier.report.model import ReportModel

VOID = {"meta", "link", "br"}
ALLOWED_TAGS = set(
    re.findall(
        r"\w+",
        """html head meta link title style body a header main section p h1 h2 h3 h4 b span strong dl div dt dd ol ul li nav table caption
        thead tbody tr th td br details summary article pre code figure figcaption footer svg desc line rect circle path text""",
    )
)


class Page(HTMLParser):
    """Tags, attributes and texts as a browser has them in the DOM (a <pre> loses its first line feed)."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.at: list[int] = []  # of each open element, its place in `texts`
        self.tags: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == [], "an element was left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if "svg" not in self.open:
            self.tags.append((tag, " ".join(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
            self.at.append(len(self.texts))
            self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.at.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            tag, before = self.texts[self.at[-1]]
            self.texts[self.at[-1]] = (tag, before + data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"comment {data!r}")

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in self.texts)

    def of(self, tag: str) -> list[str]:
        return [text.removeprefix("\n") if tag == "pre" else text for kind, text in self.texts if kind == tag]


BASE = reports.with_failed_arm(reports.clear_win(24))


def hostile_model(text: str) -> ReportModel:
    return reports.with_every_text(BASE, lambda before: f"{before} {text}")


@pytest.fixture(scope="module")
def benign_tags() -> list[tuple[str, str]]:
    return Page(render_html(hostile_model("x"))).tags


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_field_is_only_text(text: str, benign_tags: list[tuple[str, str]]) -> None:
    model = hostile_model(text)
    page = Page(render_html(model))
    assert page.tags == benign_tags, "text changed the structure of the page"
    assert {tag for tag, _ in page.tags} <= ALLOWED_TAGS
    for tag, name, value in page.attributes:
        assert not name.startswith("on") and name not in ("style", "src", "srcset", "action", "formaction", "srcdoc", "ping"), (tag, name)
        if name in ("href", "xlink:href"):
            assert value == "data:," or re.fullmatch("#[a-z]+", value), value
        if name == "class":
            assert re.fullmatch("[a-z -]+", value), value
    # The text in the DOM is the text of the model, hidden characters shown.
    item = next(item for item in model.arms[5].items if item.values and item.text in map(unreveal, page.of("pre")))
    shown = {unreveal(pre) for pre in page.of("pre")}
    assert {item.text, item.gold, model.item_inputs[item.item_id], model.run_command} <= shown
    whole = page.text
    for expected in (
        model.title,
        model.verdict.sentence,
        model.verdict.gates[0].message,
        model.findings[0].message,
        model.cost_basis,
        model.limits[0],
    ):
        assert reveal(expected) in whole
    for expected in (*model.config, *(row.name for row in model.rows), *model.environment.values(), *model.verdict.reasons):
        assert reveal(expected) in whole


def test_page_is_locked_down_and_self_contained() -> None:
    html = render_html(reports.clear_win())
    page = Page(html)
    style = re.search(r"<style>(.*)</style>", html, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = next(value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "default-src" in value)
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    assert not re.search(r"url\(|@import|expression|</", style[1])
    assert not re.search(r"https?:|//\w|<script|javascript:", html.replace(style[0], ""))


@pytest.mark.parametrize("build", [reports.clear_win, reports.inconclusive, reports.nothing_compared], ids=lambda build: build.__name__)
def test_references_and_ids_hold(build: Callable[[], ReportModel]) -> None:
    page = Page(render_html(build()))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in page.attributes:
        if name == "href" and value.startswith("#"):
            assert value[1:] in ids
        if name == "aria-labelledby":
            assert set(value.split()) <= set(ids)
    regions = [(tag, name) for tag, name, value in page.attributes if value == "scroll"]
    labelled = [value for _, name, value in page.attributes if name == "tabindex"]
    assert len(regions) == len(labelled) and set(labelled) == {"0"}, "what scrolls sideways must be reachable by keyboard"


def test_first_screen_says_what_matters() -> None:
    model = reports.clear_win()
    html = render_html(model)
    first = Page(html[html.index("<section") : html.index("<nav")]).text
    for part in ("FINE-TUNE: better quality", "+11.0 points", "+5.3 to +16.7", "n = 300", "margin ±2.0", "$0.021", "$0.097", "12,400"):
        assert part in first
    assert all(step in first for step in model.verdict.next_steps)


def test_primary_is_shown_from_the_side_of_the_tuned_arm() -> None:
    model = reports.clear_win()
    primary = model.verdict.primary
    assert primary
    turned = dataclasses.replace(
        primary,
        a=primary.b,
        b=primary.a,
        difference=-primary.difference,
        low95=-primary.high95,
        high95=-primary.low95,
        low90=-primary.high90,
        high90=-primary.low90,
    )
    assert render_html(dataclasses.replace(model, verdict=dataclasses.replace(model.verdict, primary=turned))) == render_html(model)


def test_not_measured_and_failed_are_never_zero() -> None:
    page = Page(render_html(reports.with_failed_arm(reports.inconclusive()))).text
    assert "failed" in page and "503 three times" in page
    assert "$0" not in page
    none = Page(render_html(reports.nothing_compared())).text
    assert "No paired comparison" in none and "Nothing was trained" in none


def test_non_finite_losses_are_counted() -> None:
    model = reports.clear_win(40)
    broken = tuple(dataclasses.replace(point, train_loss=float("nan")) if 100 <= point.step < 103 else point for point in model.curve)
    html = render_html(dataclasses.replace(model, curve=broken))
    assert "3 logged losses are not finite" in html
    assert "NaN" not in html and 'nan"' not in html


def test_same_model_same_bytes() -> None:
    assert render_html(reports.clear_win()) == render_html(reports.clear_win())


# ---------------------------------------------------------------- size


def huge_model(num_items: int, text: str) -> ReportModel:
    """More of everything than a page can hold."""
    base = reports.clear_win(30)
    sides = []
    for arm in (base.arms[3], base.arms[5]):
        items = tuple(
            ItemScore(
                item_id=f"{i} {text[:300]}",
                cluster="c",
                text=text,
                gold=text,
                note=text,
                values={"accuracy": float((i % 3 == 0) == (arm.family == "tuned"))},
            )
            for i in range(num_items)
        )
        sides.append(
            dataclasses.replace(
                arm,
                items=items,
                params={f"{i}{text}": text for i in range(50)},
                effort={f"{i}{text}": 1.0 for i in range(50)},
                tried=tuple(
                    Tried(
                        params={f"{i}{text}": text for i in range(50)},
                        dev_n=1,
                        dev_score=0.5,
                        num_prompt_tokens=1,
                        num_new_tokens=1,
                        seconds=1.0,
                        failed=text,
                    )
                    for _ in range(60)
                ),
            )
        )
    many = range(60)
    gate = GateResult(name=text, state="fail", message=text, fix=text)
    compared = Comparison(
        a=text, b=text, metric=text, n=9, num_clusters=8, difference=0.1, low95=0, high95=0.2, low90=0, high90=0.2, p_value=0.1, method=text
    )  # fmt: skip
    finding = Finding(code=text, severity="error", message=text, fix=text, count=99, where=((text, 1),) * 20, detail=(text,) * 20)
    return dataclasses.replace(
        base,
        verdict=dataclasses.replace(
            base.verdict,
            sentence=text,
            headline=text,
            metric="accuracy",
            next_steps=(text,) * 60,
            gates=(gate,) * 60,
            secondary=(compared,) * 60,
            reasons=(text,) * 60,
        ),
        rows=tuple(dataclasses.replace(base.rows[3], name=f"{i}{text}", description=text, model=text) for i in many),
        arms=(*sides, *(dataclasses.replace(sides[0], name=f"{i}{text}", items=()) for i in many)),
        findings=(finding,) * 500,
        item_inputs={f"{i} {text[:300]}": text for i in range(num_items)},
        config={f"{i}{text}": (text, "file" if i % 2 else "default") for i in range(2000)},
        environment={f"{i}{text}": text for i in range(500)},
        lr_trials=base.lr_trials * 50,
        learning_curve=base.learning_curve * 50,
        curve=base.curve * 60,
        limits=(text,) * 60,
        split=dataclasses.replace(base.split, notes=(text,) * 60, test_sha256=text),
        profile=base.profile and dataclasses.replace(base.profile, labels=(text,) * 500, evidence=text),
        title=text,
        run_command=text,
        cost_basis=text,
        items_path=text,
        records_path=text,
        rejects_path=text,
        created=text,
        luthier_version=text,
    )


def test_every_prompt_that_was_tried_on_dev_is_told_with_its_cost() -> None:
    page = Page(render_html(BASE))
    cells = "\n".join(page.of("th"))
    assert "k 8, order as drawn" in cells and "k 8, order reversed" in cells
    assert "passed over: longer than the model's context" in page.text
    assert {"43.2", "200", "5,120"} <= {cell.strip() for cell in page.of("td")}


@pytest.mark.parametrize(
    "text", ["a" * 10_000, "\U000e0041\u202e" * 5_000, "&\"'<" * 2_500, "漢" * 10_000], ids=["ascii", "tags", "escapes", "cjk"]
)
def test_never_more_than_one_megabyte(text: str) -> None:
    html = render_html(huge_model(20_000, text))
    assert len(html.encode("utf-8")) <= 1_000_000
    page = Page(html).text
    assert "more characters]" in page


def test_what_is_left_out_is_said_and_adds_up() -> None:
    model = dataclasses.replace(huge_model(20_000, "b" * 10_000), items_path="items/test.jsonl")
    html = render_html(model)
    shown = [int(found.replace(",", "")) for found in re.findall(r"items, ([\d,]+) shown", html)]
    left = re.findall(r"([\d,]+) more items are left out here; all ([\d,]+) are in <code>items/test.jsonl</code>", html)
    assert shown and len(shown) == len(left)
    assert all(
        int(rest.replace(",", "")) + number == int(total.replace(",", "")) for number, (rest, total) in zip(shown, left, strict=True)
    )
    assert sum(shown) == html.count('<article class="item">')


@pytest.mark.parametrize("text", ["", "short", "é" * 900, "\u202e" * 900, "<&>" * 300, "👩‍👩‍👧" * 200])
@pytest.mark.parametrize("limit", [60, 400])
def test_clip_keeps_its_limit_and_says_what_is_missing(text: str, limit: int) -> None:
    shown = clip(text, limit)
    assert len(shown.encode()) <= limit
    note = re.search(r" … \[([\d,]+) more characters\]$", shown)
    if note:
        kept = unreveal(shown[: note.start()].unescape())
        assert text.startswith(kept) and len(kept) + int(note[1].replace(",", "")) == len(text)
    else:
        assert unreveal(shown.unescape()) == text


# ---------------------------------------------------------------- contrast


def _themes() -> dict[str, dict[str, str]]:
    css = re.search(r"<style>(.*)</style>", render_html(reports.clear_win(24)), re.DOTALL)
    assert css
    blocks = re.findall(r":root \{([^}]*)\}", css[1])
    light, dark, printed = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks)
    return {"light": light, "dark": dark, "print": light | printed}


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_formula() -> None:
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)
    assert _contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_meets_wcag_aa(theme: str) -> None:
    colours = _themes()[theme]
    pairs = [
        (ink, ground) for ink in ("ink", "muted", "tuned", "prompt", "floor", "pass", "fail", "link") for ground in ("page", "card", "soft")
    ]
    low = {
        pair: round(_contrast(colours[pair[0]], colours[pair[1]]), 2)
        for pair in pairs
        if _contrast(colours[pair[0]], colours[pair[1]]) < 4.5
    }
    assert not low
    assert all(_contrast(colours[mark], colours["band"]) >= 3 for mark in ("tuned", "ink"))  # marks of the plots


def test_the_number_on_the_first_screen_is_the_one_the_verdict_rests_on() -> None:
    """Where a floor is enough, a manager must not read how far tuning beat the prompt."""
    model = reports.clear_win()
    primary = model.verdict.primary
    assert primary is not None
    against = dataclasses.replace(primary, b="nearest neighbour", difference=-0.02, low95=-0.06, high95=0.02, low90=-0.05, high90=0.01)
    verdict = dataclasses.replace(
        model.verdict, code="neither_needed", headline="NEITHER NEEDED", best_floor="nearest neighbour", secondary=(against,)
    )
    first_screen = render_html(dataclasses.replace(model, verdict=verdict)).split('<nav class="contents"')[0]
    number = first_screen.split('<p class="number">')[1].split("</p>")[0]
    assert "+2.0 points" in number and "nearest neighbour minus" in number and "−2.0 to +6.0" in number
    assert "+11.0 points" not in number
    sure = dataclasses.replace(model.verdict, remarks=("With 300 items differences above 6.8 points can be seen.",))
    first_screen = render_html(dataclasses.replace(model, verdict=sure)).split('<nav class="contents"')[0]
    assert first_screen.index("What to do next") < first_screen.index("How sure")


def test_metrics_that_nothing_was_scored_by_are_one_sentence_and_not_columns() -> None:
    model = reports.clear_win()
    empty = Estimate(value=None, low=None, high=None, n=0, method="not measured")
    rows = tuple(dataclasses.replace(row, metrics={"exact": row.score, "fabrication": empty}) for row in model.rows)
    page = render_html(dataclasses.replace(model, rows=rows))
    assert "No item of this run has a value for fabrication" in page and ">fabrication</th>" not in page
