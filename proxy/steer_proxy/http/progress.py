"""How far a request has come, for whoever must end it early."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from steer_policies.dialects.base import Dialect
from steer_policies.plan import Plan
from steer_proxy.engine.conclusion import Spent
from steer_proxy.http.call import Call
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.problems import PLAIN
from steer_proxy.http.websocket import Tunnel


@dataclass(slots=True)
class CallProgress:
    """What is known of a request so far."""

    speaks: Dialect = PLAIN
    transport: asyncio.Transport | None = None
    began: float = 0.0
    """The loop time at which the request was taken up."""
    route: str | None = None
    call: Call | None = None
    made: Plan | None = None
    """Its plan, once there is one, and what its attempts have taken."""
    spent: Spent | None = None
    response: CallerResponse | None = None
    tunnel: Tunnel | None = None
    until: float | None = None
    """The loop time after which a caller that does not read is dropped."""
    left: bool = False
    """Whether its exchange goes on without it."""
    told: bool = False
    """Whether its call's row is seen to by who knows more of it than its handler."""
    cut: bool = False
    """Whether the drain's time is up for it."""
