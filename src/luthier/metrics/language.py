"""The language of a text, by langdetect: the detector in IFEval's definitions (Nakatani 2010; extra `language`).

It draws from a text's letters in runs of one to three. Here the seed is fixed and the languages stand in one order, so that a text
always has the same language; with its own defaults a short one may change from call to call. On a few words it is often wrong.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from luthier.core.errors import MissingExtraError

SEED = 0


def require_detector(where: str) -> None:
    """Raise MissingExtraError, with the command that installs it, if langdetect is not there."""
    if importlib.util.find_spec("langdetect") is None:
        problem = "which language an answer is in is told by langdetect, which is not installed"
        raise MissingExtraError(problem, where=where, fix="pip install 'luthier[language]'")


def language_of(text: str) -> str | None:
    """Code of `known_languages`, or "unknown"; None for a text without letters of any language. Raises MissingExtraError."""
    require_detector("language")
    from langdetect.lang_detect_exception import LangDetectException

    detector = _detectors().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


def known_languages() -> tuple[str, ...]:
    """The languages that are told apart, by their codes of ISO 639-1; Chinese is zh-cn and zh-tw. Raises MissingExtraError."""
    require_detector("language")
    return tuple(_detectors().get_lang_list())


@cache
def _detectors() -> Any:  # half a second; its own factory, for langdetect's shared one has no seed and another order on every disk
    from langdetect import detector_factory

    found = detector_factory.DetectorFactory()
    profiles = sorted(Path(detector_factory.PROFILES_DIRECTORY).iterdir())
    found.load_json_profile([path.read_text(encoding="utf-8") for path in profiles if path.is_file()])
    found.set_seed(SEED)
    return found
