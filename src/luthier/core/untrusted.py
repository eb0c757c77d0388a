"""The one place where text from data, models and files is made fit for a sink.

Everything a row, a model, a template or a file name contains may be hostile: script for a browser, escape codes for a
terminal, formulas for a spreadsheet, directives for a Modelfile, orders for a judge model. Each sink has one rendering here.

Characters that a reader cannot see (controls, bidirectional overrides, zero-width and tag characters) are shown as
`⟨U+202E⟩` wherever a person reads the result. The marking can be undone (`unreveal`), so it hides nothing either.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from markupsafe import escape

from luthier.core.errors import InputError

Sink = Literal["html", "terminal", "csv", "markdown", "yaml", "modelfile", "judge"]

# Cc, Cf, Cs, Zl, Zp, variation selectors, blank letters and noncharacters of Unicode, as inclusive ranges. Without tab
# and line feed, and without the format characters that have a shape of their own (Arabic number signs and the like).
_HIDDEN_RANGES = (
    (0x0000, 0x0008), (0x000B, 0x001F), (0x007F, 0x009F), (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x070F, 0x070F),
    (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800),
    (0x3164, 0x3164), (0xD800, 0xDFFF), (0xFDD0, 0xFDEF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB),
    (0xFFFE, 0xFFFF), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xDFFFE, 0xE0FFF), (0x10FFFE, 0x10FFFF),
    *((plane * 0x10000 + 0xFFFE, plane * 0x10000 + 0xFFFF) for plane in (*range(1, 0xD), 0xE, 0xF)),
)  # fmt: skip
_HIDDEN_CLASS = "".join(f"\\U{low:08X}-\\U{high:08X}" for low, high in _HIDDEN_RANGES)
# An opening bracket that would read as one of our own marks is marked itself: that keeps the marking reversible.
_HIDDEN = re.compile(f"[{_HIDDEN_CLASS}]|⟨(?=U\\+)")
_MARK = re.compile(r"⟨U\+([0-9A-F]{4,6})⟩")
_UNSETTLED = re.compile("[\u200c\u200d\ufe0e\ufe0f]\\Z|⟨U?\\Z")  # what stands behind it decides how it is shown

_JOINERS = "\u200c\u200d"
_TEXT_OR_EMOJI_STYLE = "\ufe0e\ufe0f"
_KEYCAP = "\u20e3"
_JOINED = {"Lo", "Lm", "Mn", "Mc", "So", "Sk"}  # letters of caseless scripts, marks, emoji: a joiner between two is spelling

_FORMULA_STARTS = tuple("=+-@\t\r\0＝＋－＠")

_MARKDOWN = {
    **{char: f"\\{char}" for char in "\\`*_[]{}~"},
    # These are entities because flavours disagree on `\`: tables split at `\\|`, and mentions, maths, shortcodes and
    # addresses are looked for in text that was already unescaped.
    **{char: f"&#{ord(char)};" for char in "|@$"},
    **{"<": "&lt;", ">": "&gt;", "&": "&amp;"},
    "\n": "<br>",
}
_MARKDOWN_TABLE = str.maketrans(_MARKDOWN)
_MARKDOWN_ADDRESS = re.compile(r":(?![\s\d]|\Z)|(?<=www)\.", re.IGNORECASE)  # https://, mailto:, :emoji:, www.
_MARKDOWN_BLOCK_START = re.compile(r"\A(?:([-+=#])|(\d{1,9})([.)])(?=\s|\Z))")

_YAML_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
_YAML_SPECIAL = re.compile(f'[{_HIDDEN_CLASS}"\\\\\\n\\t\\u0085\\u00a0]')

# Turn markers of the common chat formats. A judge behind an HTTP address may tokenise them as control tokens.
_TURN_MARKER = re.compile(
    r"<\||\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|<｜|｜>|<\[(?=\w)|(?<=\w)\]>", re.IGNORECASE
)


def render_untrusted(text: str, sink: Sink) -> str:
    """Make untrusted `text` fit for one sink. Total, except for "modelfile", and never shortens.

    - html: escaped for element content and quoted attributes; returns a `markupsafe.Markup`, so that autoescaping
      templates do not escape it again.
    - terminal: plain text for a stream or for rich with `markup=False`; only `\\n` and `\\t` are left of the controls.
    - csv: one cell, for `csv.writer` (which quotes it); a formula start is prefixed with `'` (OWASP ASVS 5.0, 1.2.10).
    - markdown: inline text that renders as written in CommonMark and GFM, also in table cells; line breaks are `<br>`.
    - yaml: a double-quoted scalar that loads back to exactly `text`.
    - modelfile: a quoted value that Ollama parses back to exactly `text`. Raises InputError where no such value exists
      (the format has no escapes); not for TEMPLATE, whose `{{ }}` Ollama runs.
    - judge: a quoted block for a judge model's prompt: each line begins with `| `, turn markers are broken up.
    """
    match sink:
        case "html":
            return escape(reveal(text))
        case "terminal":
            return reveal(text)
        case "csv":
            cell = reveal(text)
            return f"'{cell}" if text.lstrip(" \n").startswith(_FORMULA_STARTS) else cell
        case "markdown":
            return _markdown(text)
        case "yaml":
            return f'"{_YAML_SPECIAL.sub(_yaml_escape, text)}"'
        case "modelfile":
            return _modelfile(text)
        case "judge":
            return "\n".join(f"| {line}" for line in _TURN_MARKER.sub(_break_up, reveal(text)).split("\n"))


def reveal(text: str) -> str:
    """Show each hidden character as `⟨U+XXXX⟩`; tab, line feed, and joiners where a script or emoji needs them, stay."""
    return _HIDDEN.sub(_reveal_one, text)


def reveal_settled(text: str) -> str:
    """The beginning of `reveal(text)` that no text to come can change: what may be shown of a text that is still being written."""
    shown = reveal(text)
    last = _UNSETTLED.search(text)
    if last is None:
        return shown
    return shown.removesuffix(last[0] if last[0][0] == "⟨" else _mark(last[0]))


def unreveal(text: str) -> str:
    """Undo `reveal`: `unreveal(reveal(text)) == text` for every text."""
    return _MARK.sub(lambda match: chr(int(match[1], 16)), text)


def _reveal_one(match: re.Match[str]) -> str:
    char = match[0]
    if char in _JOINERS or char in _TEXT_OR_EMOJI_STYLE:
        text, at = match.string, match.start()
        before = unicodedata.category(text[at - 1]) if at else ""
        after = text[at + 1 : at + 2]
        if char in _TEXT_OR_EMOJI_STYLE and (before.startswith("S") or after == _KEYCAP):
            return char
        if char in _JOINERS and before in _JOINED and after and unicodedata.category(after) in _JOINED:
            return char
    return _mark(char)


def _mark(char: str) -> str:
    return f"⟨U+{ord(char):04X}⟩"


def _markdown(text: str) -> str:
    shown = reveal(text)
    body = shown.lstrip(" \t")
    indent = "".join(f"&#{ord(char)};" for char in shown[: len(shown) - len(body)])
    head = ""
    start = _MARKDOWN_BLOCK_START.match(body)
    if start:  # would open a list, a rule or a heading if this text came first on its line
        head = f"\\{start[1]}" if start[1] else f"{start[2]}\\{start[3]}"
        body = body[start.end() :]
    return indent + head + _MARKDOWN_ADDRESS.sub(lambda match: f"&#{ord(match[0])};", body.translate(_MARKDOWN_TABLE))


def _yaml_escape(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    return _YAML_ESCAPES.get(char) or (f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}")


def _modelfile(text: str) -> str:
    """Quote for Ollama's parser: a value ends at the first newline before which the trimmed value is closed.

    The parser drops runes that Go's `strconv.IsPrint` refuses; a space other than U+0020 is one of them.
    """
    for char in text:
        if char not in " \n\t" and unicodedata.category(char)[0] in "CZ":
            raise InputError(
                f"an Ollama Modelfile cannot hold the character {unicodedata.name(char, 'without a name')} (U+{ord(char):04X})",
                fix="remove that character from the text, or send the text with each request instead of storing it in the Modelfile",
            )
    quotes = '"' if '"' not in text and "\n" not in text else '"""'
    if quotes == '"""' and any(_closes(line, first=index == 0) for index, line in enumerate(f"{quotes}{text}".split("\n")[:-1])):
        raise InputError(
            'an Ollama Modelfile cannot hold a line that ends in """ (it closes the value)',
            fix='change """ at the end of the line to another mark, or send the text with each request',
        )
    return f"{quotes}{text}{quotes}"


def _closes(line: str, *, first: bool) -> bool:
    """Whether Ollama's parser takes a triple-quoted value to be complete at the end of this line."""
    line = line.strip()
    return line.endswith('"""') and not (first and len(line) < 6)  # six: the opening quotes are not the closing ones


def _break_up(match: re.Match[str]) -> str:
    marker = match[0]
    return f"{marker[0]} {marker[1:]}"
