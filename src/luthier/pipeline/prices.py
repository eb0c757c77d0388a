"""What tokens cost at the endpoint: from the flags, or from the user's own table of several models. No price is built in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from luthier.core.errors import ConfigError
from luthier.pipeline.origin import MAX_YAML_BYTES, read_yaml
from luthier.pipeline.settings import Settings

FIELDS = ("input", "output", "cached_input")  # US dollars for a million tokens; the last can be left out
EXAMPLE = "gpt-4o-mini: {input: 0.15, output: 0.60, cached_input: 0.075}"
WHERE = "decide.prices"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrices:
    """US dollars for a million tokens at the endpoint, and where they come from. None: not given."""

    input: float | None
    output: float | None
    cached_input: float | None
    origin: str


def token_prices(settings: Settings) -> TokenPrices:
    """Those of the endpoint's model. Raises ConfigError for a table that is wrong or lacks the model, and for two sources of one price."""
    wanted = settings.decide
    if not wanted.prices:
        return TokenPrices(
            input=wanted.usd_per_m_input,
            output=wanted.usd_per_m_output,
            cached_input=wanted.usd_per_m_cached_input,
            origin=settings.origin_of("decide.usd_per_m_input"),
        )
    given = next((name for name in FIELDS if getattr(wanted, f"usd_per_m_{name}") is not None), None)
    if given is not None:
        problem = f"found a table of prices and decide.usd_per_m_{given}, expected one of the two"
        raise ConfigError(problem, where=WHERE, fix=f"--set decide.usd_per_m_{given}=null, or leave the table out")
    table, name = read_prices(Path(wanted.prices)), Path(wanted.prices).name
    model = settings.endpoint.model if settings.endpoint.url else None
    if model is None:
        return TokenPrices(input=None, output=None, cached_input=None, origin=name)
    if model not in table:
        near = get_close_matches(model, table, n=1, cutoff=0.0)[0]
        problem = f"{name} has no prices of {model!r}; the nearest name in it is {near!r}"
        raise ConfigError(problem, where=WHERE, fix=f"add a line to {name}: {model!r}: {{input: …, output: …}}")
    prices = table[model]
    return TokenPrices(
        input=prices["input"],
        output=prices["output"],
        cached_input=prices.get("cached_input"),
        origin=f"{name}, {settings.origin_of(WHERE)}",
    )


def read_prices(path: Path) -> dict[str, dict[str, float]]:
    """A table: model -> its prices by `FIELDS`. Raises ConfigError with file, line, what was found and what was expected."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_YAML_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error.strerror or error}"
        raise ConfigError(f"{path} {reason}", where=WHERE, fix=f"a YAML file with lines such as {EXAMPLE}") from error
    tree = read_yaml(text, name=path.name)
    if tree.problems:
        first = tree.problems[0]
        raise ConfigError(f"found {first.found}, expected {first.expected}", where=first.where, fix=first.fix)
    if not tree.values:
        raise ConfigError("the table is empty", where=path.name, fix=EXAMPLE)
    return {model: _row(f"{path.name}:{tree.lines[model]}: {model}", row) for model, row in tree.values.items()}


def _row(where: str, row: object) -> dict[str, float]:
    if not isinstance(row, dict):
        raise ConfigError(f"found {row!r:.60}, expected the prices by name", where=where, fix=EXAMPLE)
    values = cast("Mapping[str, object]", row)
    for name in values:
        if name not in FIELDS:
            near = get_close_matches(name, FIELDS, n=1, cutoff=0.0)[0]
            raise ConfigError(f"found {name!r:.60}, which is no price; expected {', '.join(FIELDS)}", where=where, fix=f"{near}: 0.15")
    for name in FIELDS[:2]:
        if name not in values:
            raise ConfigError(f"found no {name} price", where=where, fix=EXAMPLE)
    return {name: _price(f"{where}.{name}", value) for name, value in values.items()}


def _price(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"found {value!r:.60}, expected US dollars for a million tokens, 0 or more", where=where, fix="0.15")
    return float(value)
