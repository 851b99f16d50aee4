"""A call's stay at one candidate: how far it has come there, and what each turn brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from steer_policies.config import UpstreamPolicy
from steer_policies.plan import Candidate
from steer_policies.retry import WaitSource
from steer_policies.throttle import Gate, Pass
from steer_proxy.engine.attempt import Answer
from steer_proxy.engine.attempt_loop import METHOD
from steer_proxy.engine.conclusion import Reason
from steer_proxy.engine.hold import Hold
from steer_proxy.engine.registry import UpstreamState

A = TypeVar("A", bound=Answer)


class Runner(Protocol[A]):
    """Who makes the attempts of a visit and judges them: the exchange."""

    async def attempt(self, visit: Visit[A]) -> Tried[A]:
        """One whole attempt."""

    async def judge(self, visit: Visit[A], tried: Tried[A]) -> bool:
        """Whether the candidate is done with; waits before it says no."""


@dataclass(slots=True)
class Course:
    """How far a call has come with one candidate."""

    index: int
    candidate: Candidate
    policy: UpstreamPolicy
    state: UpstreamState
    credential: int
    attempts: int = 0
    available_at: float = 0.0
    waited: float = 0.0


@dataclass(slots=True)
class Tried(Generic[A]):
    """One turn at a candidate, in the shape aiohttp-retry expects of a response.

    `answer` None means that no attempt was made: the breaker or the gate refused for
    `refused_for` seconds, or no slot was free.
    """

    visit: Visit[A]
    answer: A | None = None
    hold: Hold | None = None
    refused_for: float = 0.0
    why: Reason = Reason.CIRCUIT
    method: str = METHOD
    status: int = 0

    async def done(self) -> bool:
        """Whether this candidate is done with; waits before it says no."""
        return await self.visit.judge(self)


@dataclass(slots=True)
class Entry:
    """What an attempt had to get before it could be made."""

    gate: Gate
    admission: Pass
    hold: Hold


class Visit(Generic[A]):
    """One stay at a candidate: its attempts, and what was waited before each of them."""

    __slots__ = ("_exchange", "course", "source", "waited")

    def __init__(self, exchange: Runner[A], course: Course) -> None:
        self._exchange = exchange
        self.course = course
        self.waited = 0.0
        self.source = WaitSource.NONE

    async def attempt(self) -> Tried[A]:
        """One whole attempt."""
        return await self._exchange.attempt(self)

    async def judge(self, tried: Tried[A]) -> bool:
        """Whether this candidate is done with; waits before it says no."""
        return await self._exchange.judge(self, tried)

    def wait(self, seconds: float, source: WaitSource) -> None:
        """Remember a wait, for the record of the attempt that follows it."""
        self.waited += seconds
        self.source = source
