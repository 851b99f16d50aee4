"""Runs under way, and how duplicates in a process wait for them.

The first run with a key is a task of its own; its caller and every duplicate wait for what it
brings. It ends early only when nobody is left to wait for it: one caller's cancellation or time
limit costs the others nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from steer_llm_sdk.errors import OrchestratorError
from steer_llm_sdk.reliability.idempotency_errors import (
    KeyInProgressError,
    UncertainOutcomeError,
    conflict,
)
from steer_llm_sdk.reliability.once import Outcome
from steer_policies.idempotency import MAX_JOINERS

#: The numbers of the runs that the code which asks is part of, outermost first.
_WITHIN: Final[ContextVar[tuple[int, ...]]] = ContextVar("_WITHIN", default=())
_numbers: Final = itertools.count()


class Done(NamedTuple):
    """What a run brought: JSON text, where from, and the ledger's row that holds it."""

    text: str
    replayed: bool = False
    joined: bool = False
    stored: bool = True
    row: str | None = None
    cost_nusd: int | None = None


class Run:
    """One key's run in this process."""

    __slots__ = (
        "abandoned",
        "bound",
        "future",
        "interruptible",
        "joiners",
        "lost",
        "number",
        "place",
        "print",
        "task",
    )

    def __init__(self, place: str, print_: str, loop: asyncio.AbstractEventLoop) -> None:
        self.place = place
        """Where its store keeps its key."""
        self.print = print_
        self.number = next(_numbers)
        self.future: asyncio.Future[Done] = loop.create_future()
        self.bound: asyncio.Future[bool] = loop.create_future()
        """Whether the key is bound to this run's request: known once the store has been asked."""
        self.joiners = 0
        self.interruptible = False
        self.abandoned = False
        self.lost = False
        """Another process has taken the key over."""
        self.task: asyncio.Task[None] | None = None

    @property
    def whose(self) -> tuple[str, str]:
        """The scope and the fingerprint of its record, where its store is a ledger."""
        return self.place, self.print

    @property
    def left_behind(self) -> bool:
        """Its loop ended without a word to those it ran: nothing of it goes on, ever."""
        return self.future.get_loop().is_closed()

    @property
    def thrown_away(self) -> bool:
        """It is unwound from outside of its task, with its loop: nothing of it can be awaited."""
        try:
            return asyncio.current_task() is not self.task
        except RuntimeError:  # no loop runs
            return True

    @property
    def begun(self) -> bool:
        """Whether its work may have begun: it does as soon as the key is known to be its own."""
        return self.bound.done() and self.bound.result()

    def bind(self, mine: bool) -> None:  # noqa: FBT001 - it is the value
        """Say whether the key is bound to this run's request."""
        if not self.bound.done():
            self.bound.set_result(mine)

    def abandon(self) -> None:
        """Nobody waits any more: end what can be ended without losing track of the key."""
        self.abandoned = True
        self._interrupt()

    def lose(self) -> None:
        """Another process has taken the key over."""
        self.lost = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self.interruptible and self.task is not None:
            self.interruptible = False
            self.task.cancel()

    async def interruptibly(self, step: Callable[[], Awaitable[Any]]) -> Any:
        """Do what may be cut off; at once when nobody waits for it any more."""
        if self.abandoned or self.lost:
            raise asyncio.CancelledError
        self.interruptible = True
        try:
            return await step()
        finally:
            self.interruptible = False


CarryOut = Callable[[Run], Awaitable[Done]]
CutOff = Callable[[str, Run], None]


class Runs:
    """The runs of a process, by key; of one event loop at a time.

    `cut_off` is told the place of each run that its loop left behind after its work had begun.
    """

    def __init__(self, join_timeout: float, cut_off: CutOff | None = None) -> None:
        self._join_timeout = join_timeout
        self._cut_off = cut_off
        self._running: dict[str, Run] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._running)

    async def once(self, place: str, key: str, print_: str, carry_out: CarryOut) -> Done:
        """What the run in this place brings: one is started unless it runs already.

        `joined` is set for those who did not start it.
        """
        running = self._here()
        while (run := running.get(place)) is not None:
            if run.number in _WITHIN.get():
                raise KeyInProgressError(
                    f"the run with the idempotency key {key!r} has come to ask for itself, and "
                    "would wait for its own end: a tool must not run its own key"
                )
            if not run.abandoned:
                if run.print == print_:
                    break
                # Its request may turn out not to be the one the key is bound to.
                if await asyncio.shield(run.bound):
                    raise conflict(key)
            if run.task is not None:
                # A tool may refuse to be ended.
                ended, _ = await asyncio.wait((run.task,), timeout=self._join_timeout)
                if not ended:
                    raise self._goes_on(key)
        first = run is None
        if run is None:
            run = running[place] = Run(place, print_, asyncio.get_running_loop())
            run.task = asyncio.create_task(self._run(place, run, carry_out))
        elif run.joiners >= MAX_JOINERS:
            raise KeyInProgressError(f"{MAX_JOINERS} runs wait for the key {key!r} already")
        done = await self._wait(run, key, first=first)
        return done if first or done.replayed else done._replace(joined=True)

    async def _wait(self, run: Run, key: str, *, first: bool) -> Done:
        run.joiners += 1
        try:
            # What bounds the first one's run bounds its waiting.
            limit = None if first else self._join_timeout
            done, _ = await asyncio.wait((run.future,), timeout=limit)
            if not done:
                raise self._goes_on(key)
            return run.future.result()
        finally:
            run.joiners -= 1
            if not (run.joiners or run.future.done() or run.left_behind) and run.task is not None:
                run.abandon()
                await asyncio.wait((run.task,))

    def _goes_on(self, key: str) -> KeyInProgressError:
        return KeyInProgressError(
            f"the run with the idempotency key {key!r} goes on for more than "
            f"{self._join_timeout:g} s: run again with the same key to wait on"
        )

    async def _run(self, place: str, run: Run, carry_out: CarryOut) -> None:
        run.task = asyncio.current_task()  # an eager one runs before it is returned
        _WITHIN.set((*_WITHIN.get(), run.number))  # of this task alone, and those it begins
        try:
            done = await carry_out(run)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            self._fail(
                run,
                UncertainOutcomeError(
                    "the run was cut off, and its tool may have been run: run again with the same "
                    "key, which tells, or runs it where nothing was done"
                ),
            )
            if not isinstance(error, asyncio.CancelledError) or not (run.abandoned or run.lost):
                raise
        except BaseException as error:
            # Whatever it is, it is for those who wait: a tool may raise what is no Exception.
            if run.thrown_away:
                raise
            self._fail(run, error)
        else:
            run.future.set_result(done)
        finally:
            # Thrown away with its loop, it may come here when the key is another run's already.
            if not run.left_behind:
                del self._running[place]
                run.bind(False)

    @staticmethod
    def _fail(run: Run, error: BaseException) -> None:
        run.future.set_exception(error)
        run.future.exception()  # seen, even when nobody is left to see it

    async def close(self) -> None:
        """End what runs."""
        runs = list(self._here().values())
        for run in runs:
            run.abandon()
        if tasks := [run.task for run in runs if run.task is not None]:
            await asyncio.wait(tasks)

    def _here(self) -> dict[str, Run]:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._running and self._loop is not None and not self._loop.is_closed():
                raise OrchestratorError(
                    "idempotency_manager: it is in use in another event loop; give each running "
                    "loop a manager of its own"
                )
            for place, run in self._running.items():
                if run.begun and self._cut_off is not None:
                    self._cut_off(place, run)
            self._running.clear()
            self._loop = loop
        return self._running


def outcome(done: Done) -> Outcome:
    """What a caller gets of it."""
    return Outcome(json.loads(done.text), done.replayed, done.joined, done.stored)
