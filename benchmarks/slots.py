"""Slot error rate on E2E: facts of the input that the sentence leaves out or gets wrong, and facts it adds.

Patterns made by hand for the eight attributes of the E2E data (Novikova et al. 2017), as in the TGen and slot aligner scripts. They are
wrong now and then: their own rate on the human references, which are right as far as we know, is printed beside.
"""

from __future__ import annotations

import re
from statistics import fmean
from typing import Any

from luthier.pipeline.record import RunRecord
from luthier.stats.intervals import mean_estimate

_LOW = r"(?:less than £?20|cheap|low|inexpensive|under £?20)"
_MEAN = r"(?:moderate|average|mid|£?20\s*-\s*£?25)"
_HIGH = r"(?:high|expensive|more than £?30|over £?30)"
PRICE = {"cheap": _LOW, "less than £20": _LOW, "moderate": _MEAN, "£20-25": _MEAN, "high": _HIGH, "more than £30": _HIGH}
_BAD, _SO, _GOOD = r"(?:low|poor|bad|\b1\b|one)", r"(?:average|decent|\b3\b|three|mid)", r"(?:high|excellent|great|\b5\b|five|well|top)"
RATING = {"low": _BAD, "1 out of 5": _BAD, "average": _SO, "3 out of 5": _SO, "high": _GOOD, "5 out of 5": _GOOD}
_FAMILY = r"(?:famil|child|kid)"
_NO = r"(?:\bno\b|\bnot\b|n't|\bnon\b|adult|without)"
AREA = {"riverside": r"river", "city centre": r"(?:city cent|cent(?:er|re)|downtown|in the city)"}
FOOD = {"English": r"(?:english|british)", "Fast food": r"fast[- ]?food"}


def slots_of(facts: str) -> dict[str, str]:
    """ "name[Blue Spice], area[riverside]" as a mapping."""
    return dict(re.findall(r"\s*(\w[\w ]*)\[([^\]]*)\]", facts))


def errors(facts: str, sentence: str) -> tuple[int, int]:
    """Slots missing, wrong or added, and slots of the input."""
    wanted, text = slots_of(facts), sentence
    missing = sum(not _states(name, value, text) for name, value in wanted.items())
    added = sum(name not in wanted and _mentions(name, text) for name in ("familyFriendly", "customer rating", "area"))
    return missing + added, len(wanted)


def _states(name: str, value: str, text: str) -> bool:
    if name == "familyFriendly":
        if not re.search(_FAMILY + "|adult", text, re.I):
            return False
        return bool(re.search(_NO, text, re.I)) == (value == "no")
    tables = {"priceRange": PRICE, "customer rating": RATING, "area": AREA, "food": FOOD}
    pattern = tables.get(name, {}).get(value) or re.escape(value).replace(r"\ ", r"[ -]")
    return re.search(pattern, text, re.I) is not None


def _mentions(name: str, text: str) -> bool:
    pattern = {"familyFriendly": _FAMILY, "customer rating": r"rat(?:ed|ing)", "area": r"(?:riverside|city cent)"}[name]
    return re.search(pattern, text, re.I) is not None


def error_rates(record: RunRecord) -> dict[str, Any]:
    """Mean share of wrong slots of each arm with its 95 % interval, and of the references: the error of the patterns."""
    found: dict[str, Any] = {}
    for arm in (arm for arm in record.arms if arm.failed is None):
        counts = [errors(record.item_inputs[item.item_id], item.text) for item in arm.items]
        rates = [min(1.0, wrong / slots) for wrong, slots in counts]
        estimate = mean_estimate(rates, [item.cluster for item in arm.items], seed=record.seed)
        found[arm.name] = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    first = next(arm for arm in record.arms if arm.items)
    of_gold = [errors(record.item_inputs[item.item_id], item.gold) for item in first.items]
    found["references"] = {"value": fmean(min(1.0, wrong / slots) for wrong, slots in of_gold), "n": len(of_gold)}
    return found
