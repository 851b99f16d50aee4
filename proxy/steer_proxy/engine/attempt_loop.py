"""aiohttp-retry's loop over attempts at one upstream, with every decision left to us.

What the library takes for a session is an object whose `request` is one whole attempt; what it
takes for a response is a `Turn`. Its traps, and how they are avoided here:

- it does not ask its callback about the last attempt: it is allowed one more than we make;
- it sleeps by itself: it is told zero seconds, and `done` waits before it says no;
- it treats statuses, methods and exceptions by its own defaults: all of them are switched off.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final, Protocol

from aiohttp_retry import RetryClient, RetryOptionsBase

#: The library asks which methods may be retried; ours are all this one: the policy decides.
METHOD: Final = "CALL"


class Turn(Protocol):
    """The result of one attempt, in the shape the library expects of a response."""

    @property
    def method(self) -> str:
        """Always `METHOD`."""

    @property
    def status(self) -> int:
        """Of no consequence."""

    async def done(self) -> bool:
        """Whether this upstream is done with; waits before it says no."""


class _Decisions(RetryOptionsBase):
    """Hands every turn to itself, the last one included, and adds no delay."""

    def __init__(self, most: int) -> None:
        super().__init__(
            attempts=most + 1,
            statuses=(),
            exceptions=(),
            methods=(METHOD,),
            retry_all_server_errors=False,
            evaluate_response_callback=_ask,  # type: ignore[arg-type]
        )

    def get_timeout(self, attempt: int, response: Any = None) -> float:  # noqa: ARG002
        """Seconds to sleep: none, `done` has already waited."""
        return 0.0


async def _ask(turn: Turn) -> bool:
    return await turn.done()


class _Session:
    """What the library takes for a client session."""

    async def request(
        self, _method: str, _url: str, *, attempt: Callable[[], Awaitable[Turn]], **_: Any
    ) -> Turn:
        return await attempt()


# Both are without state, and making them for each call costs more than the loop itself.
_CLIENT: Final = RetryClient(
    client_session=_Session(),  # type: ignore[arg-type]
    logger=logging.getLogger("steer.attempts"),
)
_decisions = lru_cache(maxsize=64)(_Decisions)


async def run_attempts(attempt: Callable[[], Awaitable[Turn]], most: int) -> None:
    """Call `attempt` until its turn is done, at most `most` times.

    Most calls need but one: the library's loop begins where there is something to repeat.
    """
    if await (await attempt()).done():
        return
    await _CLIENT.request(METHOD, "", retry_options=_decisions(most - 1), attempt=attempt)
