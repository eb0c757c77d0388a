"""Personal data and secrets in the rows: checked patterns, not a promise that nothing else is there."""

from __future__ import annotations

import ipaddress
import math
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from luthier.core.types import Example, Finding

MAX_SHOWN = 20
MIN_SECRET_ENTROPY = 3.0  # bits a character; English words are near 2.5, random base64 of 20 characters near 4


@dataclass(frozen=True, slots=True)
class Match:
    """One hit: what it is, where in the text, and a form that can be shown."""

    kind: str
    start: int
    stop: int
    shown: str


@dataclass(frozen=True, slots=True)
class _Pattern:
    kind: str
    regex: re.Pattern[str]
    is_valid: Callable[[str], bool]
    hint: Callable[[str], bool]  # cheap: whether the text can hold one at all


def find_private(examples: Sequence[Example]) -> tuple[Finding, ...]:
    """One finding for each kind of personal data or secret; `count` is the number of rows, `detail` shows masked values only.

    E-mail (reserved domains such as example.com too), telephone, IBAN (mod 97), payment card (Luhn), IP address, national
    ids that validate, keys and passwords (known prefixes, else entropy), private key blocks. Names and postal addresses are not found.
    """
    rows: dict[str, list[Example]] = defaultdict(list)
    shown: dict[str, list[str]] = defaultdict(list)
    known: dict[str, tuple[Match, ...]] = {}  # instructions and system prompts repeat
    for example in examples:
        kinds: dict[str, str] = {}
        for text in _texts(example):
            if text not in known:
                known[text] = scan(text)
            for match in known[text]:
                kinds.setdefault(match.kind, match.shown)
        for kind, masked in kinds.items():
            rows[kind].append(example)
            if len(shown[kind]) < MAX_SHOWN:
                shown[kind].append(f"{example.path}:{example.line}: {masked}")
    return tuple(_finding(kind, rows[kind], shown[kind]) for kind in sorted(rows))


def scan(text: str) -> tuple[Match, ...]:
    """Every hit in one text, in order; a stretch of text is reported once, by the first kind of the list that fits."""
    taken: list[Match] = []  # in order, none overlapping
    starts: list[int] = []
    for pattern in _PATTERNS:
        if not pattern.hint(text):
            continue
        for found in pattern.regex.finditer(text):
            group = "value" if "value" in pattern.regex.groupindex else 0
            start, stop = found.span(group)
            value = found[group]
            at = bisect_left(starts, start)
            is_free = (at == 0 or taken[at - 1].stop <= start) and (at == len(taken) or stop <= starts[at])
            if is_free and pattern.is_valid(value):
                taken.insert(at, Match(pattern.kind, start, stop, _masked(pattern.kind, value)))
                starts.insert(at, start)
    return tuple(taken)


def _texts(example: Example) -> Iterator[str]:
    yield from (example.system, example.instruction, example.input, example.response)
    yield from (turn.content for turn in example.history)
    if example.rejected is not None:
        yield example.rejected


def _finding(kind: str, rows: Sequence[Example], shown: Sequence[str]) -> Finding:
    secret = kind in {"secret", "private-key"}
    note = " (addresses under reserved domains such as example.com count as well)" if kind == "email" else ""
    fix = (
        "revoke it, then replace it in the rows"
        if secret
        else "replace it with a placeholder such as <" + kind.upper() + ">, if people did not agree"
    )
    return Finding(
        code=f"private-{kind}",
        severity="warning",
        message=f"{len(rows):,} rows hold {_NAMES[kind]}{note}; a trained model can repeat it",
        fix=fix,
        count=len(rows),
        where=tuple((row.path, row.line) for row in rows[:MAX_SHOWN]),
        detail=tuple(shown),
    )


_NAMES = {
    "email": "an e-mail address",
    "phone": "a telephone number",
    "iban": "a bank account number (IBAN)",
    "card": "a payment card number",
    "ip": "an IP address",
    "national-id": "a national identity number",
    "secret": "a password or an access key",
    "private-key": "a private key",
}


def _masked(kind: str, value: str) -> str:
    """What kind and length, and at most an edge that does not give it away."""
    match kind:
        case "email":
            return f"{value[:1]}…@…{value[value.rfind('.') :]}"
        case "card":
            return f"…{_digits(value)[-4:]} ({len(_digits(value))} digits)"
        case "iban":
            return f"{value[:2]}… ({len(re.sub(r'[^A-Za-z0-9]', '', value))} characters)"
        case "phone":
            return f"…{_digits(value)[-2:]} ({len(_digits(value))} digits)"
        case _:
            return f"… ({len(value)} characters)"


def _digits(text: str) -> str:
    return "".join(char for char in text if "0" <= char <= "9")


def _is_luhn(value: str) -> bool:
    """A length and first digits that card networks give out, and the check digit of ISO/IEC 7812."""
    digits = [int(char) for char in _digits(value)]
    if not _CARD_FORMS.fullmatch(_digits(value)) or len(set(digits)) < 2:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_iban(value: str) -> bool:
    """ISO 13616: letters as numbers, first four characters last, remainder 1 by 97."""
    clean = re.sub(r"[ -]", "", value).upper()
    if not 15 <= len(clean) <= 34:
        return False
    return int("".join(str(int(char, 36)) for char in clean[4:] + clean[:4])) % 97 == 1


def _is_phone(value: str) -> bool:
    """8 to 15 digits (ITU-T E.164) that are not a date, in the form of a social security number, or one digit over and over."""
    digits = _digits(value)
    least = 8 if value.startswith(("+", "00")) else 9
    if not least <= len(digits) <= 15 or len(set(digits)) < 3:
        return False
    return _NOT_PHONE.fullmatch(value) is None


def _is_ip(value: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback)


def _is_national_id(value: str) -> bool:
    clean = re.sub(r"[ .\-/]", "", value).upper()
    return any(check(value, clean) for check in (_is_ssn, _is_nino, _is_dni, _is_pesel, _is_cpf, _is_codice_fiscale, _is_nir))


def _is_ssn(value: str, clean: str) -> bool:
    """United States: three groups; 000, 666, 900-999, 00 and 0000 are never given out."""
    if not re.fullmatch(r"\d{3}([- ])\d{2}\1\d{4}", value):
        return False
    return clean[:3] not in {"000", "666"} and clean[0] != "9" and clean[3:5] != "00" and clean[5:] != "0000"


def _is_nino(value: str, clean: str) -> bool:
    """United Kingdom national insurance number; letters and prefixes as HMRC NIM39110 lists them."""
    del value
    return bool(re.fullmatch(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]", clean))


def _is_dni(value: str, clean: str) -> bool:
    """Spain: DNI or NIE, the letter is the number modulo 23."""
    del value
    if not re.fullmatch(r"[XYZ]?\d{7,8}[A-Z]", clean):
        return False
    number = clean[:-1].translate(str.maketrans("XYZ", "012"))
    return len(number) == 8 and "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == clean[-1]


def _is_pesel(value: str, clean: str) -> bool:
    """Poland: date of birth and check digit."""
    if not re.fullmatch(r"\d{11}", value):
        return False
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[int(clean[2]) // 2]
    try:
        date(century + int(clean[:2]), int(clean[2:4]) % 20, int(clean[4:6]))
    except ValueError:
        return False
    return sum(int(digit) * weight for digit, weight in zip(clean, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), strict=True)) % 10 == 0


def _is_cpf(value: str, clean: str) -> bool:
    """Brazil, in its printed form: two check digits modulo 11."""
    if not re.fullmatch(r"\d{3}\.\d{3}\.\d{3}-\d{2}", value) or len(set(clean)) == 1:
        return False
    for length in (9, 10):
        total = sum(int(digit) * weight for digit, weight in zip(clean[:length], range(length + 1, 1, -1), strict=True))
        if (total * 10 % 11) % 10 != int(clean[length]):
            return False
    return True


def _is_codice_fiscale(value: str, clean: str) -> bool:
    """Italy: 16 characters, the last a checksum (odd places by table, even places by value)."""
    del value
    if not re.fullmatch(r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", clean):
        return False
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    order = [int(char) if char.isdigit() else ord(char) - ord("A") for char in clean[:15]]
    total = sum(odd[number] if place % 2 == 0 else number for place, number in enumerate(order))
    return chr(ord("A") + total % 26) == clean[15]


def _is_nir(value: str, clean: str) -> bool:
    """France: 13 digits and 97 minus their remainder by 97."""
    del value
    return bool(re.fullmatch(r"[12]\d{14}", clean)) and 97 - int(clean[:13]) % 97 == int(clean[13:])


def _is_random(value: str) -> bool:
    """Whether a value given to a key or password field looks like a secret: long and mixed enough."""
    counts = Counter(value).values()
    entropy = -sum(n / len(value) * math.log2(n / len(value)) for n in counts)
    return entropy >= MIN_SECRET_ENTROPY and any(char.isdigit() for char in value) and any(char.isalpha() for char in value)


def _always(value: str) -> bool:
    return bool(value)


def _holds(*parts: str) -> Callable[[str], bool]:
    return lambda text: any(part in text for part in parts)


def _has_digits(text: str) -> bool:
    return _THREE_DIGITS.search(text) is not None


_THREE_DIGITS = re.compile(r"\d[ .\-/()]{0,2}\d[ .\-/()]{0,2}\d")

_NOT_PHONE = re.compile(
    r"(?:19|20)\d{2}[-/. ](?:0?[1-9]|1[0-2])[-/. ][0-3]?\d(?!\d).*|[0-3]?\d[-/. ](?:0?[1-9]|1[0-2])[-/. ](?:19|20)\d{2}(?!\d).*"
    r"|\d{3}-\d{2}-\d{4}"
)

# Visa, Mastercard, American Express, Diners, Discover, JCB, UnionPay, Maestro
_CARD_FORMS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}|6\d{15,18}|(?:50|5[6-8])\d{14}"
)

# The order decides what a stretch of text is called: from the most to the least certain.
_PATTERNS = (
    _Pattern(
        "private-key",
        re.compile(r"-----BEGIN (?:[A-Z]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----[^-]{0,8000}"),
        _always,
        _holds("PRIVATE KEY"),
    ),
    _Pattern(
        "secret",
        re.compile(
            r"(?<![A-Za-z0-9_-])(?:sk-(?:[a-z]{2,10}-)?[A-Za-z0-9_-]{20,200}|gh[pousr]_[A-Za-z0-9]{36,100}|github_pat_[A-Za-z0-9_]{40,120}"
            r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,120}|glpat-[A-Za-z0-9_-]{20,60}|hf_[A-Za-z0-9]{30,60}"
            r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,120}|SG\.[A-Za-z0-9_-]{16,40}\.[A-Za-z0-9_-]{30,60}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{40,250}"
            r"|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000})"
        ),
        _always,
        _holds("sk", "gh", "github_pat_", "AKIA", "ASIA", "AIza", "xox", "glpat-", "hf_", "rk_", "SG.", "npm_", "pypi-", "eyJ"),
    ),
    _Pattern("secret", re.compile(r"[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,80}:(?P<value>[^\s:/@]{3,120})@"), _always, _holds("://")),
    _Pattern(
        "secret",
        re.compile(
            r"(?i)(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[ _-]?key|access[ _-]?key|client[ _-]?secret)"
            r"(?:\s(?:code|word|phrase|key))?"
            r"[\"']?\s{0,3}(?::|=|\bis\b)\s{0,3}[\"']?"
            r"(?P<value>[A-Za-z0-9_\-+/=.~!@#$%^&*]{8,200})"
        ),
        _is_random,
        lambda text: _SECRET_WORD.search(text) is not None,
    ),
    _Pattern(
        "email",
        re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])"),
        _always,
        _holds("@"),
    ),
    _Pattern("iban", re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}(?![A-Za-z0-9])"), _is_iban, _has_digits),
    _Pattern("card", re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)"), _is_luhn, _has_digits),
    _Pattern(
        "national-id",
        re.compile(
            r"(?<![\w.-])(?:\d{3}([- ])\d{2}\1\d{4}|\d{3}\.\d{3}\.\d{3}-\d{2}|[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]"
            r"|[XYZ]?-?\d{7,8}-?[A-Z]|\d{11}|[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"
            r"|[12] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3} ?\d{2})(?![\w-])"
        ),
        _is_national_id,
        _has_digits,
    ),
    _Pattern("ip", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"), _is_ip, _has_digits),
    _Pattern("ip", re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{1,4}(?![\w:])"), _is_ip, _holds(":")),
    _Pattern(
        "phone",
        re.compile(
            r"(?<![\w.,/=#-])(?<!\d )"
            r"(?:(?:\+|00)[1-9]\d{0,2}[ .\-/]?(?:\(0?\d{1,4}\)[ .\-/]?)?\d(?:[ .\-/]?\d){1,29}"  # international
            r"|\(0?\d{2,4}\)[ .\-/]?\d{3,4}(?:[ .\-/]?\d{2,5}){1,3}"  # (area) number
            r"|0\d{1,4}[ .\-/]\d(?:[ .\-/]?\d){3,24}|0\d{9,10}"  # national, with a trunk 0
            r"|\d{3}[-.]\d{3}[-.]\d{4})(?![\w-]|[.,/]\d)"  # North America
        ),
        _is_phone,
        _has_digits,
    ),
)
_SECRET_WORD = re.compile(r"(?i)pass|pwd|secret|token|key")
