"""Where this user's things lie that are not part of a run."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_root() -> Path:
    """$LUTHIER_CACHE, or the user's cache folder of this system."""
    chosen = os.environ.get("LUTHIER_CACHE", "")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("luthier", appauthor=False))
