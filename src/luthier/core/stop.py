"""Stopping on request: the first SIGINT or SIGTERM sets a flag that loops look at, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from luthier.core.console import note_from_signal_handler

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class StopFlag:
    """Whether to stop, and why. Loops poll it between steps: `should_stop=flag` works, for it can be called."""

    signal_number: int | None = None

    def __call__(self) -> bool:
        """Whether to stop now."""
        return self.signal_number is not None


class Stopped(KeyboardInterrupt):
    """Work was given up on request, after its state was saved. `exit_code` is 130 for SIGINT, 143 for SIGTERM.

    `go_on` is the command that goes on with it; empty: the same command again.
    """

    def __init__(self, signal_number: int, *, go_on: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.go_on = go_on

    @property
    def exit_code(self) -> int:
        """What the process exits with, as shells expect it."""
        return 128 + self.signal_number


@contextmanager
def stop_on_signals() -> Generator[StopFlag]:
    """Turn the first SIGINT or SIGTERM into a flag while the block runs; earlier handlers are put back afterwards.

    A KeyboardInterrupt that a loop raises because of the flag leaves the block as `Stopped`, which knows the exit code.
    The second signal leaves through `os._exit` with the same code: what is on disk stays valid, for nothing is ever written in
    place. Outside the main thread signals cannot be caught, and the flag then never rises.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if flag.signal_number is not None:
            os._exit(128 + number)
        flag.signal_number = number
        note_from_signal_handler("stopping after this step, all is kept; once more stops at once")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield flag
    except KeyboardInterrupt as error:
        if flag.signal_number is None or isinstance(error, Stopped):
            raise
        raise Stopped(flag.signal_number) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_answer_on_interrupt() -> Generator[StopFlag]:
    """Turn the first SIGINT into a flag while the block runs; a second one leaves the block with KeyboardInterrupt."""
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if flag.signal_number is not None:
            raise KeyboardInterrupt
        flag.signal_number = number

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
