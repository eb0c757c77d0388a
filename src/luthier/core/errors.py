"""Every error a user can meet.

    LuthierError
    ├── InputError        the user's files or rows            exit code 2
    │   └── ContextError  a prompt that does not fit the model
    ├── ConfigError       settings, unknown keys, options     exit code 2
    ├── ModelError        a model folder, name or adapter     exit code 2
    │   └── EngineEnded   what computes has failed for good
    ├── MissingExtraError an optional package is not there    exit code 2
    ├── RunError          the run folder: locked, changed     exit code 2
    └── EndpointError     a server the user named; in a run it fails its arm, not the run

Anything else that escapes is ours: exit code 1. Each message says where, what was found, what was expected, and one remedy
to copy.
"""

from __future__ import annotations


class LuthierError(Exception):
    """An error the user can mend. `fix` is one remedy to copy; `where` is a file:line, key or folder."""

    def __init__(self, message: str, *, fix: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.where = where

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  fix: {self.fix}" if self.fix else head


class InputError(LuthierError):
    """The user's data cannot be used as it is."""


class ContextError(InputError):
    """Prompt and answer together are longer than what the model sees."""


class ConfigError(LuthierError):
    """A setting is unknown, contradictory or out of range."""


class ModelError(LuthierError):
    """A model, tokenizer or adapter cannot be used."""


class EngineEnded(ModelError):
    """What computes has failed and will answer nothing any more; only opening it anew helps."""


class MissingExtraError(LuthierError):
    """An optional dependency is needed; `fix` holds the exact install command."""


class RunError(LuthierError):
    """The run folder is locked, damaged or belongs to other settings."""


class EndpointError(LuthierError):
    """A server the user named gives no answer that could be measured."""
