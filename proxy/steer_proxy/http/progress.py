"""How far a request has come, for whoever must end it early."""

from __future__ import annotations

from dataclasses import dataclass

from steer_policies.dialects.base import Dialect
from steer_proxy.http.call import Call
from steer_proxy.http.caller import CallerResponse
from steer_proxy.http.problems import PLAIN
from steer_proxy.http.websocket import Tunnel


@dataclass(slots=True)
class CallProgress:
    """What is known of a request so far."""

    speaks: Dialect = PLAIN
    call: Call | None = None
    response: CallerResponse | None = None
    tunnel: Tunnel | None = None
    cut: bool = False
    """Whether the drain's time is up for it."""
