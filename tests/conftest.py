"""What holds for the whole of the tests: they leave nothing in the folder they are started from."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_BEFORE = pytest.StashKey[set[str]]()


def _files() -> set[str]:
    return {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember what is there."""
    session.config.stash[_BEFORE] = _files()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where something came; once, after all workers."""
    left = sorted(_files() - session.config.stash[_BEFORE])
    if left and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\ntests left behind in {ROOT.name}: {', '.join(left)}; give their commands a folder of their own (cwd=tmp_path)")
