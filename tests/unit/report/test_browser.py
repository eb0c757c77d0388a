"""The report in a real browser: nothing runs, nothing is fetched, nothing is refused by the policy, the text is the text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.fixtures import reports
from tests.fixtures.hostile import HOSTILE

from luthier.core.untrusted import reveal
from luthier.report.html import render_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the browser checks of the report did not run")

SILENT = ("background-networking", "component-update", "sync", "extensions", "default-apps", "gpu")
FLAGS = [f"--disable-{part}" for part in SILENT]
FLAGS += [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--no-default-browser-check",
    "--enable-logging=stderr",
    "--log-level=0",
    "--dump-dom",
]


def _visit(html: str, folder: Path) -> tuple[str, list[str], set[str]]:
    """The DOM after loading, console messages, and the addresses the browser asked for."""
    page, log = folder / "page.html", folder / "net.json"
    page.write_text(html, encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", page.as_uri()],
        capture_output=True,
        timeout=60,
        check=True,
    )
    console = re.findall(r".*CONSOLE.*", done.stderr.decode("utf-8", "replace"))
    try:
        net = json.loads(log.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # the browser may leave without closing the array
        net = json.loads(log.read_text(encoding="utf-8").rstrip().rstrip(",") + "]}")
    urls = {event["params"]["url"] for event in net["events"] if "url" in event.get("params", {})}
    return done.stdout.decode("utf-8"), console, {url for url in urls if url.startswith(("http", "ws", "ftp"))}


def test_hostile_report_is_inert(tmp_path: Path) -> None:
    number = iter(range(10**9))
    seen: dict[str, str] = {}

    def change(text: str) -> str:  # a different hostile string for each text, the same for the same text
        return seen.setdefault(text, f"{text} {HOSTILE[next(number) % len(HOSTILE)]}")

    model = reports.with_every_text(reports.with_failed_arm(reports.clear_win(90)), change)
    assert len(seen) > 2 * len(HOSTILE)
    dom, console, urls = _visit(render_html(model), tmp_path)
    assert console == []
    assert {url for url in urls if "evil" in url} == set()
    assert dom.count("<script") == dom.count("<img") == dom.count("<iframe") == 0
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title and title[1] != "pwned" and "FINE-TUNE" in title[1]
    text = re.sub(r"<[^>]*>", "\0", re.sub(r"<style>.*?</style>", "", dom, flags=re.DOTALL))
    for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", "\u00a0"), ("&amp;", "&")):
        text = text.replace(entity, char)
    for shown in (
        model.verdict.headline,
        model.verdict.sentence,
        model.run_command,
        *model.verdict.reasons,
        *(row.name for row in model.rows),
    ):
        assert reveal(shown) in text


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """The same visit to a page that forgets to escape: the policy refuses its script, and says so on the console."""
    html = render_html(reports.clear_win(24)).replace(
        "<main>", f"<main>{HOSTILE[0]}<img src='https://evil.invalid/x.png'><i style='color:red'>i</i>"
    )
    dom, console, _ = _visit(html, tmp_path)
    assert len(console) >= 3, "script, image and style were all to be refused aloud"
    assert "<title>pwned" not in dom
