"""One accepted call: everything known of it before the first decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, Final

from multidict import CIMultiDictProxy

from steer_policies.dialects.base import Dialect, RequestFacts
from steer_policies.steering import Steering
from steer_policies.trace_context import TraceContext
from steer_proxy.engine.announcing import Announcement
from steer_proxy.engine.config import Config, Route
from steer_proxy.engine.registry import UpstreamState
from steer_proxy.http.body import ReplayBody


@dataclass(slots=True, repr=False)  # the caller's credential is in it
class Call:
    """A request as it was admitted, bound to the configuration revision it began with.

    `headers` are for looking things up, `fields` the same as they stood on the wire, for
    passing them on. `path` is relative to the route and begins with a slash; `query` has no
    question mark. `json` is the parsed body, the plain fields of a form, or None. `accepted_at`
    is on the loop's clock; `silence` bounds each silence towards the caller, in seconds, None
    for no bound. `states` is what is remembered of the upstreams of that revision.
    `credentials` maps an upstream to a number that stands for the credential used there.
    `token_is_key` says that what looks like the caller's API key is this port's own token,
    `upgrade` that the caller asks to switch to WebSocket. `via_line` is how this process names
    itself to the next hop. `usage_options` are merged into a request after its candidate's own,
    for a count of tokens that the caller did not ask for: when there are any, what they bring
    is taken out of the answer again. `size` is that of the body, in bytes, which may be gone.
    `id` names the call's row in the ledger, `key` is its idempotency key, `scope` whose key that
    is, `fingerprint` that of its request; `announcement` is what must be written down before
    anything is sent. `until` is the loop time at which an attempt under way is ended that may
    outlast its caller's patience. `served_from` is the call whose exchange it has taken over.
    `says` are further header lines for its answer.
    """

    config: Config
    route: Route
    dialect: Dialect
    facts: RequestFacts
    method: str
    path: str
    query: str
    headers: CIMultiDictProxy[str]
    fields: Sequence[tuple[bytes, bytes]]
    content_type: str
    body: ReplayBody
    json: Any
    steering: Steering
    request_id: str
    trace: TraceContext
    via_line: bytes
    accepted_at: float
    states: Mapping[str, UpstreamState] = field(default_factory=dict)
    silence: float | None = None
    credentials: Mapping[str, int] = field(default_factory=dict)
    token_is_key: bool = False
    upgrade: bool = False
    usage_options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0
    id: str = ""
    key: str | None = None
    scope: str | None = None
    fingerprint: str | None = None
    announcement: Announcement | None = None
    until: float | None = None
    served_from: str | None = None
    says: Sequence[bytes] = ()

    def copy(self) -> Call:
        """Another one with the same values: `dataclasses.replace` takes five times as long."""
        return Call(*_VALUES(self))


_VALUES: Final = attrgetter(*(each.name for each in fields(Call)))
