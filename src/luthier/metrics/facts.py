"""Checkable values in free text: amounts, quantities, percentages, dates, times, codes, phones, e-mails, URLs.

Each is written in one normal form, so that "$1,200.00" and "1200 USD", or "5 March 2024" and "2024-03-05", are one fact.
The rules are regular expressions tried in the order of `_EXTRACTORS`; text taken by one is not seen by the next.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal

_ONES = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_TEENS = {"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16} | {
    "seventeen": 17,
    "eighteen": 18,
    "nineteen": 19,
}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_SMALL = {word: value for word, value in (_ONES | _TEENS).items() if word != "one"}  # "one day", "one second" are idioms

_CURRENCIES = {
    "usd": ("$", "us$", "usd", "dollar", "dollars"),
    "eur": ("€", "eur", "euro", "euros"),
    "gbp": ("£", "gbp", "pound sterling", "pounds sterling", "pounds", "quid"),
    "jpy": ("¥", "jpy", "yen"),
    "inr": ("₹", "inr", "rupee", "rupees"),
    "chf": ("chf", "swiss francs"),
    "cad": ("cad", "c$"),
    "aud": ("aud", "a$"),
    "cny": ("cny", "rmb", "yuan"),
    "sek": ("sek",),
    "nok": ("nok",),
    "dkk": ("dkk",),
    "pln": ("pln", "zł"),
    "krw": ("₩", "krw"),
    "brl": ("r$", "brl"),
}
_CURRENCY_OF = {name: code for code, names in _CURRENCIES.items() for name in names}

_UNITS = {
    "second": ("seconds", "second", "secs", "sec"),
    "minute": ("minutes", "minute", "mins", "min"),
    "hour": ("hours", "hour", "hrs", "hr", "h"),
    "business day": ("business days", "business day", "working days", "working day", "workdays"),
    "day": ("calendar days", "calendar day", "days", "day"),
    "week": ("weeks", "week", "wks", "wk"),
    "month": ("months", "month"),
    "year": ("years", "year", "yrs", "yr"),
    "km": ("kilometres", "kilometers", "km"),
    "m": ("metres", "meters", "metre", "meter", "m"),
    "cm": ("centimetres", "centimeters", "cm"),
    "mm": ("millimetres", "millimeters", "mm"),
    "mile": ("miles", "mile", "mi"),
    "inch": ("inches", "inch"),
    "foot": ("feet", "foot", "ft"),
    "kg": ("kilograms", "kilogram", "kilos", "kg"),
    "g": ("grams", "gram", "g"),
    "mg": ("milligrams", "milligram", "mg"),
    "lb": ("pounds of weight", "lbs", "lb"),
    "oz": ("ounces", "ounce", "oz"),
    "l": ("litres", "liters", "litre", "liter", "l"),
    "ml": ("millilitres", "milliliters", "ml"),
    "tb": ("terabytes", "tb"),
    "gb": ("gigabytes", "gb"),
    "mb": ("megabytes", "mb"),
    "kb": ("kilobytes", "kb"),
    "kwh": ("kwh",),
    "kw": ("kw",),
    "w": ("watts", "watt", "w"),
    "v": ("volts", "volt", "v"),
    "mah": ("mah",),
    "deg c": ("degrees celsius", "°c"),
    "deg f": ("degrees fahrenheit", "°f"),
    "mph": ("mph",),
    "km/h": ("km/h", "kph", "kmh"),
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names}

_MONTHS = {
    name: i
    for i, names in enumerate(
        (
            ("january", "jan"),
            ("february", "feb"),
            ("march", "mar"),
            ("april", "apr"),
            ("may",),
            ("june", "jun"),
            ("july", "jul"),
            ("august", "aug"),
            ("september", "sept", "sep"),
            ("october", "oct"),
            ("november", "nov"),
            ("december", "dec"),
        ),
        start=1,
    )
    for name in names
}


def _either(names: dict[str, str] | dict[str, int]) -> str:
    """A regular expression for any of the names, longest first."""
    return "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))


# A number starts and ends at a border that is no digit or letter; inner separators stand between digits. Repeats are
# bounded, so that hostile text cannot make the search slow.
_DIGITS = r"\d{1,15}(?:[.,]\d{1,15}){0,6}(?!\d)"
_NUMBER = rf"(?<![\w.,]){_DIGITS}"
# No parts of longer number words; atomic, lest "twenty-five" be a range.
_WORD = (
    r"(?<!hundred )(?<!hundred and )(?<!thousand )(?<!thousand and )"
    rf"\b(?>(?:{_either(_TENS)})(?:[\s-](?:{_either(_ONES)}))?|{_either(_SMALL)})\b"
)
_NUMBER_OR_WORD = rf"(?:{_NUMBER}|{_WORD})"
_DASH = r"\s{0,3}(?:-|to|and|or)\s{0,3}"
_UNIT_END = r"(?![\w/])"
_SCALE = r"(?:\s?(k|thousand|million|bn|billion)\b)?"
_SCALES = {"k": 3, "thousand": 3, "million": 6, "bn": 9, "billion": 9}
_MONTH = rf"(?:{_either(_MONTHS)})\b\.?"

_URL = re.compile(r"\b(?:https?://|www\.)[^\s<>\"'()\[\]{}]{1,2000}")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}\b")
_ISO_DATE = re.compile(r"(?<![\w-])(\d{4})-(\d{2})-(\d{2})(?![\d-])")
_SLASH_DATE = re.compile(r"(?<![\w/.])(\d{1,2})([/.])(\d{1,2})\2(\d{4}|\d{2})(?![\w/])")
_DAY_MONTH = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)?\s{{1,3}}(?:of\s)?({_MONTH})(?:,?\s{{1,3}}(\d{{4}})\b)?")
_MONTH_DAY = re.compile(rf"\b({_MONTH})\s{{1,3}}(\d{{1,2}})(?:st|nd|rd|th)?(?![\w:.]\d|\w)(?:,?\s{{1,3}}(\d{{4}})\b)?")
_CLOCK = re.compile(r"(?<![\w:.])(\d{1,2}):(\d{2})(?::\d{2})?\s?(am|pm|a\.m\.|p\.m\.)?(?![\w:])")
_HOUR = re.compile(r"(?<![\w:.])(\d{1,2})\s?(am|pm|a\.m\.|p\.m\.)(?!\w)")
_PHONE = re.compile(
    r"(?<![\w.,+-])(?:\+\d{1,3}[\s.-]?(?:\(?\d{1,5}\)?[\s.-]?){1,6}\d{1,5}|\(\d{2,5}\)[\s.-]?\d{2,5}(?:[\s.-]\d{2,5}){1,3}"
    r"|0\d{1,5}(?:[\s-]\d{2,8}){1,4}|(?:1[-.])?\d{3}[-.]\d{3}[-.]\d{4})(?![\w-])"
)
_DOTTED = re.compile(r"(?<![\w.])v?\d{1,4}(?:\.\d{1,4}){2,7}(?![.-]?\w)")
_MONEY_BEFORE = re.compile(rf"(?<!\w)({_either(_CURRENCY_OF)})\s?({_DIGITS}){_SCALE}(?:{_DASH}({_NUMBER}){_SCALE})?")
_MONEY_AFTER = re.compile(rf"(?:({_NUMBER}){_SCALE}{_DASH})?({_NUMBER_OR_WORD}){_SCALE}\s?-?({_either(_CURRENCY_OF)})(?!\w)")
_PERCENT = re.compile(rf"(?:({_NUMBER})\s?%?{_DASH})?({_NUMBER_OR_WORD})\s?(?:%|(?:percent|per cent|pct)\b)")
_QUANTITY = re.compile(rf"(?:({_NUMBER_OR_WORD}){_DASH})?({_NUMBER_OR_WORD})[\s-]?({_either(_UNIT_OF)}){_UNIT_END}")
_CODE = re.compile(r"(?<![\w@])#?[a-z0-9]{1,32}(?:[-_/][a-z0-9]{1,32}){0,6}(?![\w@])")
_BARE = re.compile(rf"{_NUMBER_OR_WORD}")


def fact_tokens(text: str) -> frozenset[str]:
    """The checkable values of a text, each as "kind:value" in normal form.

    Kinds: `url`, `email`, `date` (yyyy-mm-dd, --mm-dd without a year, or the digits as written where day and month could be
    either), `time` (hh:mm), `phone` (digits), `money` (value and ISO code; "$" counts as USD), `pct`, `qty` (value and
    unit), `code` (5 or more digits, or letters with at least 2 digits, joiners and case left out). Numbers without unit or
    currency are no facts: list markers and worked arithmetic would drown the rest. Number words from two to ninety-nine count.
    """
    return frozenset(_extract(text)[0])


def bare_numbers(text: str) -> frozenset[str]:
    """The numbers of a text that belong to no fact, in normal form."""
    return frozenset(_number(match.group()) for match in _BARE.finditer(_extract(text)[1]))


def weaker_forms(fact: str) -> frozenset[str]:
    """The fact, and what a text holding it also states or may mean.

    A full date states its day and month. A date such as 03/04/2024 may be either day or month first, so it and its two
    readings support one another: where it cannot be told, nobody is accused.
    """
    forms = {fact}
    if iso := re.fullmatch(r"date:(\d{4})-(\d\d)-(\d\d)", fact):
        year, month, day = iso.groups()
        forms |= {f"date:--{month}-{day}", f"date:{day}/{month}/{year}", f"date:{month}/{day}/{year}"}
    elif written := re.fullmatch(r"date:(\d\d)/(\d\d)/(\d{4})", fact):
        first, second, year = written.groups()
        for month, day in ((first, second), (second, first)):
            forms |= {f"date:{year}-{month}-{day}", f"date:--{month}-{day}"}
    return frozenset(forms)


def bare_value(fact: str) -> str | None:
    """The number inside a money, percentage, quantity or all-digit code fact; None for the other kinds."""
    kind, _, value = fact.partition(":")
    if kind in ("money", "pct", "qty"):
        return value.split(" ", 1)[0]
    if kind == "code" and value.isdigit():
        return _number(value)
    return None


def _extract(text: str) -> tuple[set[str], str]:
    """The facts, and the text that is left when they are taken out."""
    # Not `normalise`: it strips the punctuation at the end, which may belong to a value ("50 %").
    rest = unicodedata.normalize("NFKC", text).casefold()
    rest = rest.translate(_DASHES | {ord(char): str(unicodedata.decimal(char)) for char in set(rest) if char.isdecimal()})
    found: set[str] = set()
    for pattern, read in _EXTRACTORS:
        pieces: list[str] = []
        end = 0
        for match in pattern.finditer(rest):
            facts = read(match)
            if facts:
                found.update(facts)
                pieces.append(rest[end : match.start()])
                end = match.end()
        rest = " ; ".join((*pieces, rest[end:]))
    return found, rest


def _number(text: str) -> str:
    """Normal form of a number as written: separators of thousands out, point as decimal mark, no trailing zeros.

    With both marks the last one is the decimal mark; a comma before exactly three digits, or a mark that repeats, separates
    thousands; otherwise it is the decimal mark.
    """
    if text[0].isalpha():
        return str(sum((_TENS | _TEENS | _ONES)[word] for word in re.split(r"[\s-]", text)))
    digits = text.strip(".,")
    comma, point = digits.rfind(","), digits.rfind(".")
    if comma >= 0 and point >= 0:
        thousands = "," if point > comma else "."
    elif comma >= 0:
        thousands = "," if digits.count(",") > 1 or len(digits) - comma == 4 else ""
    else:
        thousands = "." if digits.count(".") > 1 else ""
    if thousands:
        digits = digits.replace(thousands, "")
    head, _, tail = digits.replace(",", ".").partition(".")
    tail = tail.replace(".", "").rstrip("0")
    head = head.lstrip("0") or "0"
    return f"{head}.{tail}" if tail else head


def _scaled(number: str, scale: str | None) -> str:
    """A number with its "k", "million", ... multiplied out."""
    value = _number(number)
    return _number(format(Decimal(value).scaleb(_SCALES[scale]), "f")) if scale else value


def _read_url(match: re.Match[str]) -> list[str]:
    address = match.group().rstrip(".,;:!?*_").removeprefix("https://").removeprefix("http://").removeprefix("www.")
    return [f"url:{address.rstrip('/')}"]


def _read_email(match: re.Match[str]) -> list[str]:
    return [f"email:{match.group()}"]


def _date(year: str | None, month: int, day: int) -> list[str]:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return []
    return [f"date:{year}-{month:02d}-{day:02d}" if year else f"date:--{month:02d}-{day:02d}"]


def _read_iso_date(match: re.Match[str]) -> list[str]:
    return _date(match[1], int(match[2]), int(match[3]))


def _read_slash_date(match: re.Match[str]) -> list[str]:
    first, second = int(match[1]), int(match[3])
    year = match[4] if len(match[4]) == 4 else f"20{match[4]}"
    if first > 12 >= second or first == second:
        return _date(year, second, first)
    if second > 12 >= first:
        return _date(year, first, second)
    # Day or month first cannot be told: kept as written, it matches only a date written the same way.
    return [f"date:{first:02d}/{second:02d}/{year}"]


def _read_day_month(match: re.Match[str]) -> list[str]:
    return _date(match[3], _MONTHS[match[2].rstrip(".")], int(match[1]))


def _read_month_day(match: re.Match[str]) -> list[str]:
    return _date(match[3], _MONTHS[match[1].rstrip(".")], int(match[2]))


def _time(hour: int, minute: int, half: str | None) -> list[str]:
    if half and 1 <= hour <= 12:
        hour = hour % 12 + (12 if half.startswith("p") else 0)
    return [f"time:{hour:02d}:{minute:02d}"] if hour <= 24 and minute < 60 else []


def _read_clock(match: re.Match[str]) -> list[str]:
    return _time(int(match[1]), int(match[2]), match[3])


def _read_hour(match: re.Match[str]) -> list[str]:
    return _time(int(match[1]), 0, match[2])


def _read_phone(match: re.Match[str]) -> list[str]:
    digits = "".join(char for char in match.group() if char.isdigit())
    return [f"phone:{digits}"] if 7 <= len(digits) <= 15 else []


def _read_dotted(match: re.Match[str]) -> list[str]:
    """Versions and network addresses; groups of three digits are thousands and left for the numbers."""
    groups = match.group().lstrip("v").split(".")
    return [] if all(len(group) == 3 for group in groups[1:]) else [f"code:{'.'.join(groups)}"]


def _read_money_before(match: re.Match[str]) -> list[str]:
    code = _CURRENCY_OF[match[1]]
    amounts = [_scaled(match[2], match[3])] + ([_scaled(match[4], match[5])] if match[4] else [])
    return [f"money:{amount} {code}" for amount in amounts]


def _read_money_after(match: re.Match[str]) -> list[str]:
    code = _CURRENCY_OF[match[5]]
    amounts = [_scaled(match[3], match[4])] + ([_scaled(match[1], match[2])] if match[1] else [])
    return [f"money:{amount} {code}" for amount in amounts]


def _read_percent(match: re.Match[str]) -> list[str]:
    return [f"pct:{_number(number)}" for number in (match[1], match[2]) if number]


def _read_quantity(match: re.Match[str]) -> list[str]:
    return [f"qty:{_number(number)} {_UNIT_OF[match[3]]}" for number in (match[1], match[2]) if number]


def _read_code(match: re.Match[str]) -> list[str]:
    code = re.sub(r"[^a-z0-9]", "", match.group())
    num_digits = sum(char.isdigit() for char in code)
    if code.isdigit():
        # "2023-24" or "3/4" are no codes; one run of digits is, from 5 on or behind a "#".
        joined = code in match.group()
        return [f"code:{code}"] if joined and (num_digits >= 5 or match.group().startswith("#")) else []
    if num_digits < 2 or re.fullmatch(r"\d+(?:st|nd|rd|th|s|x)|\d{4}s", code):
        return []
    return [f"code:{code}"]


_DASHES = {ord(char): "-" for char in "‐‑‒–—−"} | {ord("’"): "'"}
_EXTRACTORS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], list[str]]], ...] = (
    (_URL, _read_url),
    (_EMAIL, _read_email),
    (_ISO_DATE, _read_iso_date),
    (_SLASH_DATE, _read_slash_date),
    (_DAY_MONTH, _read_day_month),
    (_MONTH_DAY, _read_month_day),
    (_CLOCK, _read_clock),
    (_HOUR, _read_hour),
    (_PHONE, _read_phone),
    (_DOTTED, _read_dotted),
    (_MONEY_BEFORE, _read_money_before),
    (_MONEY_AFTER, _read_money_after),
    (_PERCENT, _read_percent),
    (_QUANTITY, _read_quantity),
    (_CODE, _read_code),
)
