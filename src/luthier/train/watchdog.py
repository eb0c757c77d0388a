"""A section of work that must end: when it does not, the stacks of all threads are written down and the process ends with exit code 75.

A hang (a dead disk, a lock, a peer that never answers) would otherwise hold a machine until somebody looks. 75 is EX_TEMPFAIL of
sysexits.h: the same command goes on from the last checkpoint, so a scheduler may simply repeat it.
"""

from __future__ import annotations

import faulthandler
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from luthier.core.console import note_from_signal_handler
from luthier.core.errors import ConfigError

EXIT_HUNG = 75
SETUP_S, UPDATE_S, SAVE_S, ANSWERS_S = 600.0, 60.0, 420.0, 1800.0
MEDIANS = 20  # an update, or a batch of answers, may take so many times the median of those before it
# After the limit a thread of C ends a hang that keeps Python's lock. It knows exit code 1 alone, and cannot tell a process that was stopped
# (Ctrl-Z, SIGSTOP) from one that hangs, so it waits for longer than somebody pauses a training.
LAST_RESORT_S = 3600.0
LOOK_S = 10.0  # the thread wakes so often, at least
STOPPED_S = 5.0  # and where it slept so much longer than it asked for, the whole process was stopped: that time is nobody's fault
VARIABLES = {
    "setup_s": "LUTHIER_SETUP_LIMIT_S",
    "update_s": "LUTHIER_UPDATE_LIMIT_S",
    "save_s": "LUTHIER_SAVE_LIMIT_S",
    "answers_s": "LUTHIER_ANSWERS_LIMIT_S",
}


@dataclass(frozen=True, slots=True)
class _Section:
    """What is being done, and until when (`time.monotonic`, less what the process was stopped for)."""

    name: str
    limit_s: float
    deadline: float


class Watchdog:
    """The limits, the section the process is in, and the thread that waits for its deadline.

    Entering and leaving a section only sets a field: the thread sleeps until the deadline it last saw, or for `LOOK_S`, and then looks
    again. It is woken for an earlier one alone. A section's clock stands while the process is stopped. The stacks go to stderr and to the
    file `stacks` (None: stderr alone).
    """

    def __init__(
        self,
        *,
        stacks: Path | None = None,
        setup_s: float = SETUP_S,
        update_s: float = UPDATE_S,
        save_s: float = SAVE_S,
        answers_s: float = ANSWERS_S,
    ) -> None:
        self.stacks = stacks
        self.setup_s = setup_s  # reading, tokenising, opening the model, the forecast; and the first update, which knows no median
        self.update_s = update_s  # at least, of an update or a look at dev
        self.save_s = save_s  # of a checkpoint, and of the result
        self.answers_s = answers_s  # at least, of a batch of answers
        self._section: _Section | None = None
        self._wakes_at = math.inf
        self._stopped_s = 0.0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @classmethod
    def from_environment(cls, stacks: Path | None) -> Watchdog:
        """Limits in seconds from `VARIABLES` where they are set. Raises ConfigError for what is not a positive number."""
        limits: dict[str, float] = {}
        for field, variable in VARIABLES.items():
            text = os.environ.get(variable)
            if text is None:
                continue
            try:
                limits[field] = float(text)
            except ValueError:
                limits[field] = 0.0
            if not 0 < limits[field] <= threading.TIMEOUT_MAX:
                raise ConfigError(f"{variable} is {text!r}, expected seconds", where="environment", fix=f"unset {variable}")
        return cls(stacks=stacks, **limits)

    def setup(self) -> AbstractContextManager[None]:
        """What comes before the first update."""
        return self._within("setup", self.setup_s)

    def update(self, seconds: Sequence[float], *, updates: float = 1.0) -> AbstractContextManager[None]:
        """One update, or work worth so many `updates`; `seconds` of those before it."""
        limit_s = max(self.update_s, MEDIANS * statistics.median(seconds) * updates) if seconds else max(self.setup_s, self.update_s)
        return self._within("update", limit_s)

    def save(self) -> AbstractContextManager[None]:
        """A checkpoint, or the result."""
        return self._within("save", self.save_s)

    @contextmanager
    def answers(self) -> Generator[Callable[[], None]]:
        """Batches of answers; the function is to be called whenever one is done."""
        before, seconds, started = self._section, list[float](), time.monotonic()
        self._enter(_Section("answers", self.answers_s, self._now() + self.answers_s))

        def done() -> None:
            nonlocal started
            seconds.append(time.monotonic() - started)
            started = time.monotonic()
            limit_s = max(self.answers_s, MEDIANS * statistics.median(seconds))
            self._enter(_Section("answers", limit_s, self._now() + limit_s))

        try:
            yield done
        finally:
            self._enter(before)

    @contextmanager
    def _within(self, name: str, limit_s: float) -> Generator[None]:
        before = self._section
        self._enter(_Section(name, limit_s, self._now() + limit_s))
        try:
            yield
        finally:
            self._enter(before)

    def _now(self) -> float:
        return time.monotonic() - self._stopped_s

    def _enter(self, section: _Section | None) -> None:
        self._section = section
        if section is None or section.deadline >= self._wakes_at:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        """Sleep until the deadline of the section last seen. The field `_wakes_at` is set before looking, so that no change is missed."""
        with self._changed:
            while True:
                self._wakes_at = math.inf
                section = self._section
                if section is None:
                    faulthandler.cancel_dump_traceback_later()
                    self._changed.wait()
                    continue
                left_s = section.deadline - self._now()
                if left_s <= 0:
                    self._give_up(section)
                self._wakes_at = section.deadline
                faulthandler.dump_traceback_later(left_s + LAST_RESORT_S, exit=True, file=2)
                asked_s, before = min(left_s, LOOK_S), time.monotonic()
                self._changed.wait(asked_s)
                slept_s = time.monotonic() - before
                self._stopped_s += slept_s if slept_s > asked_s + STOPPED_S else 0.0

    def _give_up(self, section: _Section) -> None:
        """Say so, write the stacks, and leave: nothing on disk is ever written in place, so what is there stays valid."""
        remedy = f"to go on, repeat the same command; {VARIABLES[f'{section.name}_s']} sets another limit"
        said = f"{section.name}: not done after {section.limit_s:g} s, given up with exit code {EXIT_HUNG}; {remedy}"
        note_from_signal_handler(said)
        faulthandler.dump_traceback(file=2, all_threads=True)
        try:
            if self.stacks is not None:
                with self.stacks.open("w", encoding="utf-8") as file:
                    file.write(f"{said}\n")
                    file.flush()
                    faulthandler.dump_traceback(file=file, all_threads=True)
        finally:
            os._exit(EXIT_HUNG)


UNWATCHED = Watchdog(setup_s=math.inf, update_s=math.inf, save_s=math.inf, answers_s=math.inf)
