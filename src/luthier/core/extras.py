"""Optional dependencies: import one, or say exactly how to get it."""

from __future__ import annotations

import importlib
from types import ModuleType

from luthier.core.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` brings. Raises MissingExtraError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or (module != error.name and not module.startswith(f"{error.name}.")):
            raise  # the module is there; something it needs itself is not: that is not ours to explain
        raise MissingExtraError(
            f"this needs the package {error.name}, which is not installed",
            where=f"extra {extra!r}",
            fix=f"pip install 'luthier[{extra}]'",
        ) from error
