"""Between the event loop, where requests are, and the one thread in which the engine computes.

All state of requests lives on the loop, all calls of the engine are made by the thread; two queues carry what goes between them. A
request has a place for each of its answers, the number of places is bounded, and giving back a place tells the engine to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from luthier.core.console import note
from luthier.core.errors import ContextError, EngineEnded, LuthierError, ModelError
from luthier.core.types import Order, Piece
from luthier.generate.contract import TextEngine
from luthier.serve.guard import log_bug
from luthier.serve.metrics import Metrics
from luthier.serve.problems import Problem, internal_problem

PING_S = 15.0
_FIELDS = {"json_schema": "response_format", "max_new_tokens": "max_tokens", "num_logprobs": "logprobs"}  # of an order -> of a body

Event = tuple[int, Piece] | Problem  # the number of the choice and what was added to it


@dataclass(slots=True, eq=False)
class Answering:
    """A request that is being answered: its places and what has come for it."""

    num_choices: int
    inbox: asyncio.Queue[Event] = field(default_factory=asyncio.Queue[Event])
    num_finished: int = 0
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def is_whole(self) -> bool:
        """Whether all choices are finished."""
        return self.num_finished == self.num_choices


class Dispatcher:
    """Takes requests up to a bound, and one thread's worth of engine."""

    def __init__(self, engine: TextEngine, *, limit: int, batch: int, metrics: Metrics) -> None:
        self.limit = limit
        self.batch = batch
        self.metrics = metrics
        self.num_live = 0  # places taken; this and the two below are touched on the loop only
        self.is_draining = False
        self._open: set[Answering] = set()
        self._mean_s = 1.0  # how long an answer has taken lately
        self._engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tickets: dict[int, tuple[Answering, int]] = {}  # the thread's
        self._thread: threading.Thread | None = None
        self._has_ended = False  # the engine, for good: set in the thread
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- on the loop

    def start(self) -> None:
        """Begin to compute."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread, at the latest one step from now."""
        self._commands.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 1.0)

    @property
    def is_alive(self) -> bool:
        """Whether the thread computes, and the engine can."""
        return self._thread is not None and self._thread.is_alive() and not self._has_ended

    def admit(self, num_choices: int) -> Answering:
        """Take places for a request. Raises Problem: 429 where too few are free, 503 in a shutdown or where nothing computes."""
        if self.is_draining:
            raise Problem(503, "server_shutting_down", "the server is shutting down", retry_after_s=10)
        if self._has_ended:
            raise _ended()
        if self.num_live + num_choices > self.limit:
            self.metrics.refused += 1
            wait_s = math.ceil(min(60.0, max(1.0, self._mean_s * self.num_live / self.batch)))
            raise Problem(429, "queue_full", f"{self.num_live} answers are being written or waiting; try again", retry_after_s=wait_s)
        answering = Answering(num_choices)
        self.num_live += num_choices
        self._open.add(answering)
        return answering

    async def begin(self, answering: Answering, orders: Sequence[Order]) -> None:
        """Hand the choices of an admitted request to the engine. Raises Problem where it does not take them."""
        assert len(orders) == answering.num_choices and self._loop is not None
        taken: asyncio.Future[None] = self._loop.create_future()
        self._commands.put(lambda: self._begin(answering, orders, taken))
        await taken

    def leave(self, answering: Answering) -> None:
        """Give the places back; what is still being written is given up. May be called twice."""
        if answering not in self._open:
            return
        self._open.discard(answering)
        self.num_live -= answering.num_choices
        if answering.is_whole:
            seconds = time.perf_counter() - answering.started_s
            self._mean_s += 0.1 * (seconds - self._mean_s)
            self.metrics.whole.observe(seconds)
        else:
            self._commands.put(lambda: self._cancel(answering))

    async def events(self, answering: Answering) -> AsyncIterator[tuple[int, Piece] | None]:
        """What comes for a request until all its choices are finished, None where nothing came for a while. Raises Problem."""
        is_first = True
        while not answering.is_whole:
            try:
                async with asyncio.timeout(PING_S):
                    event = await answering.inbox.get()
            except TimeoutError:
                yield None
                continue
            if isinstance(event, Problem):
                raise event
            if is_first:
                self.metrics.first_token.observe(time.perf_counter() - answering.started_s)
                is_first = False
            answering.num_finished += event[1].finish is not None
            yield event

    async def drain(self, seconds: float) -> None:
        """Take no more requests; wait for those that are open, and end with an error what is not finished by then."""
        self.is_draining = True
        deadline = time.monotonic() + seconds
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for answering in self._open:
            answering.inbox.put_nowait(
                Problem(503, "server_shutting_down", "the server is shutting down; this answer is not complete", retry_after_s=10)
            )

    def _deliver(self, events: Sequence[tuple[Answering, Event]]) -> None:
        for answering, event in events:
            answering.inbox.put_nowait(event)

    # ---- in the thread

    def _run(self) -> None:
        while True:
            try:
                command = self._commands.get(block=not self._tickets)
            except queue.Empty:
                command = self._step
            if command is None:
                return
            try:
                command()
            except EngineEnded as error:
                note(f"error: {error.where}: {error.message}; every request is refused from now on (503)\n  fix: {error.fix}")
                self._has_ended = True
                self._give_up(_ended)
            except ModelError as error:  # a program that computes for the engine has ended
                note(f"error: {error.where}: {error.message}; the answers under way were given up\n  fix: {error.fix}")
                self._give_up()
            except Exception as error:  # the batch is lost; requests to come may fare better
                log_bug(error)
                self._give_up()

    def _begin(self, answering: Answering, orders: Sequence[Order], taken: asyncio.Future[None]) -> None:
        problem: Problem | None = None
        if self._has_ended:  # it was admitted before
            self._call(_settle, taken, _ended())
            return
        try:
            for choice, order in enumerate(orders):
                self._tickets[self._engine.submit(order)] = (answering, choice)
        except LuthierError as error:
            problem = refused(error)
        except Exception as error:  # whatever the engine cannot do with one request must not take the others along
            log_bug(error)
            problem = internal_problem()
        self._call(_settle, taken, problem)
        if problem is not None:
            self._cancel(answering)

    def _cancel(self, answering: Answering) -> None:
        for ticket in [ticket for ticket, (owner, _) in self._tickets.items() if owner is answering]:
            del self._tickets[ticket]
            self._engine.cancel(ticket)

    def _give_up(self, why: Callable[[], Problem] = internal_problem) -> None:
        """Every answer that is being written ends with an error."""
        tickets, self._tickets = self._tickets, {}
        for ticket in tickets:
            with contextlib.suppress(Exception):
                self._engine.cancel(ticket)
        owners = {id(owner): owner for owner, _ in tickets.values()}
        self._call(self._deliver, [(owner, why()) for owner in owners.values()])

    def _step(self) -> None:
        events: list[tuple[Answering, Event]] = []
        for piece in self._engine.step():
            found = self._tickets.get(piece.ticket)
            if found is not None:
                events.append((found[0], (found[1], piece)))
                if piece.finish is not None:
                    del self._tickets[piece.ticket]
        if events:
            self._call(self._deliver, events)

    def _call(self, function: Callable[..., None], *values: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *values)


def refused(error: LuthierError) -> Problem:
    """What the engine has against an order, in the words of the API."""
    param = _FIELDS.get(error.where, error.where) or None
    code = "context_length_exceeded" if isinstance(error, ContextError) else "invalid_value"
    text = f"{error.message} (try: {error.fix})" if error.fix else error.message
    return Problem(400, code, f"{param}: {text}" if param else text, param=param)


def _ended() -> Problem:
    return Problem(503, "engine_stopped", "the engine has failed; the server has to be started again")


def _settle(taken: asyncio.Future[None], problem: Problem | None) -> None:
    if taken.done():
        return  # the client left
    if problem is None:
        taken.set_result(None)
    else:
        taken.set_exception(problem)
