"""From a request on the wire to a `Call`: every refusal that needs no upstream happens here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp.web_request import BaseRequest
from multidict import CIMultiDictProxy

from steer_policies.config import DialectName
from steer_policies.deadline import sdk_silence_limit
from steer_policies.dialects import dialect
from steer_policies.dialects.base import Dialect, RequestFacts
from steer_policies.headers import (
    NO_NAMES,
    Field,
    credential_fields,
    is_loop,
    query_credentials,
    subprotocol_credentials,
    via,
)
from steer_policies.idempotency_key import KeySyntaxError, read_key
from steer_policies.paths import BadTarget, admit, after_route, match_route
from steer_policies.route import UsageMode
from steer_policies.shown_path import shown_path
from steer_policies.steering import SteeringError, read_steering
from steer_policies.trace_context import (
    TraceContext,
    read_trace_context,
    safe_request_id,
    trace_id_from,
)
from steer_proxy.engine.clock import Clock, new_id
from steer_proxy.engine.config import Config, Route
from steer_proxy.engine.registry import UpstreamState
from steer_proxy.http.body import MemoryBudget
from steer_proxy.http.call import Call
from steer_proxy.http.lines import line
from steer_proxy.http.payload import parse_body, read_call_body
from steer_proxy.http.problems import PLAIN, Refusal, refuse
from steer_proxy.http.websocket import wants_websocket

#: Targets whose routes are remembered, and the longest of them in characters.
MAX_TARGETS: Final = 512
MAX_TARGET: Final = 256

#: Methods that change nothing (RFC 9110 §9.2.1).
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "QUERY"})


@dataclass(frozen=True, slots=True)
class Matched:
    """A route that owns a request, and what follows its prefix."""

    route: Route
    dialect: Dialect
    path: str
    query: str


class Intake:
    """Admits requests under one configuration revision."""

    def __init__(
        self,
        config: Config,
        states: Mapping[str, UpstreamState],
        budget: MemoryBudget,
        clock: Clock,
        pseudonym: str,
    ) -> None:
        self._config = config
        self._states = states
        self._pseudonym = pseudonym
        self._via_line = line(*via(pseudonym=pseudonym))
        self._budget = budget
        self._clock = clock
        self._routes = {
            route.path: (route, dialect(route.policy.dialect)) for route in config.routes
        }
        self._aliases = {
            alias.prefix: alias.means for route in config.routes for alias in route.aliases
        }
        self._matched: dict[str, Matched] = {}
        self._prefixes = self._routes.keys() | self._aliases.keys()

    def route(self, request: BaseRequest) -> Matched:
        """Find the route of a request.

        Raises:
            Refusal: 400 for a target that is not taken, 404 naming the routes, 508 for a loop.
        """
        return self._match(request.method, request.raw_path)

    def speaks(self, method: str, target: str) -> Dialect:
        """The dialect of the route that owns a target; a tool's for one that none does."""
        try:
            return self._match(method, target).dialect
        except Refusal:
            return PLAIN

    def _match(self, method: str, target_text: str) -> Matched:
        if (matched := self._matched.get(target_text)) is not None:
            return matched
        target = admit(method, target_text)
        if isinstance(target, BadTarget):
            raise refuse(
                400, "steer_bad_target", f"The request is refused: {target.reason}.", close=True
            )
        path = target.path
        prefix = match_route(self._prefixes, path)
        if prefix is not None and (means := self._aliases.get(prefix)) is not None:
            path = means + after_route(prefix, path)
            prefix = match_route(self._routes, path)
        if prefix is None:
            known = ", ".join(sorted(self._routes))
            raise refuse(
                404,
                "steer_no_route",
                f"No route owns the path {shown_path(path, strict=True)[:128]!r}; "
                f"the routes are {known}.",
            )
        route, speaks = self._routes[prefix]
        rest = speaks.canonical_path(after_route(prefix, path))
        matched = Matched(route, speaks, rest, target.query)
        # A program asks for few targets, over and over. Foreign input: bounded in number and size.
        if len(target_text) <= MAX_TARGET and target_text != "*":
            if len(self._matched) >= MAX_TARGETS:
                self._matched.clear()
            self._matched[target_text] = matched
        return matched

    async def accept(self, request: BaseRequest, matched: Matched, *, token_is_key: bool) -> Call:
        """Read a request whole and describe it.

        Raises:
            Refusal: 400 for steering that cannot be obeyed, 408, 413.
        """
        headers = request.headers
        now = self._clock.now()
        if "Via" in headers and is_loop(headers.items(), self._pseudonym):
            raise refuse(
                508, "steer_loop", "This call has been here before: upstreams form a loop."
            )
        request_id, trace = self._identify(headers)
        key = read_call_key(request)
        try:
            steering = read_steering(headers)
        except SteeringError as error:
            raise refuse(400, "steer_bad_header", str(error)) from None
        upgrade = wants_websocket(request)
        if upgrade and "Idempotency-Key" in headers:
            raise refuse(
                400,
                "steer_bad_header",
                "Idempotency-Key is not for a WebSocket: a conversation cannot be replayed.",
            )
        body = await read_call_body(request, self._config.limits, self._budget)
        try:
            content_type = headers.get("Content-Type", "")
            needed = _decides_on_body(matched)
            parsed = await parse_body(body, content_type, self._budget, needed=needed)
            facts = matched.dialect.describe(
                request.method, matched.path, matched.query, content_type, parsed
            )
            return Call(
                config=self._config,
                route=matched.route,
                dialect=matched.dialect,
                facts=facts,
                method=request.method,
                path=matched.path,
                query=matched.query,
                headers=headers,
                fields=request.raw_headers,
                content_type=content_type,
                body=body,
                json=parsed,
                steering=steering,
                states=self._states,
                request_id=request_id,
                trace=trace,
                via_line=self._via_line,
                accepted_at=now,
                silence=sdk_silence_limit(headers),
                credentials=self._credentials(matched, request.raw_headers, upgrade=upgrade),
                token_is_key=token_is_key,
                upgrade=upgrade,
                usage_options=_usage_options(matched, facts, parsed),
                size=body.size,
                id=new_id(self._clock.wall()),
                key=key,
            )
        except BaseException:
            body.close()
            raise

    def _credentials(
        self, matched: Matched, fields: Sequence[Field], *, upgrade: bool
    ) -> dict[str, int]:
        """Which credential stands behind the call where the caller's own is used."""
        home = matched.route.home
        if not self._config.upstreams[home].passthrough:
            return {}
        also = self._config.credential_headers
        return {home: credential_number(fields, matched.query, upgrade=upgrade, also=also)}

    def _identify(self, headers: CIMultiDictProxy[str]) -> tuple[str, TraceContext]:
        presented = headers.get("X-Request-ID")
        request_id = None if presented is None else safe_request_id(presented)
        if request_id is None:
            request_id = new_id(self._clock.wall())
            if "traceparent" not in headers and "X-Trace-ID" not in headers:
                return request_id, TraceContext(request_id.replace("-", ""))
        parent = headers.get("traceparent")
        if parent is not None:
            states = headers.getall("tracestate", ())
            if (context := read_trace_context(parent, states)) is not None:
                return request_id, context
        named = headers.get("X-Trace-ID")
        safe = None if named is None else safe_request_id(named)
        return request_id, TraceContext(trace_id_from(safe or request_id))


def read_call_key(request: BaseRequest) -> str | None:
    """A request's idempotency key; what is safe to repeat needs none, and takes none.

    Raises:
        Refusal: 400 for a key that is not one.
    """
    if "Idempotency-Key" not in request.headers or request.method in _SAFE:
        return None
    try:
        return read_key(request.headers.getall("Idempotency-Key"))
    except KeySyntaxError as error:
        raise refuse(400, "steer_bad_key", str(error)) from None


def _decides_on_body(matched: Matched) -> bool:
    """Whether anything hangs on what a body says; a tool takes what it likes."""
    policy = matched.route.policy
    return (
        policy.dialect is not DialectName.HTTP
        or bool(policy.rules)
        or any(candidate.options for candidate in policy.candidates)
    )


def _usage_options(matched: Matched, facts: RequestFacts, body: Any) -> Mapping[str, Any]:
    if matched.route.policy.usage is not UsageMode.ASK:
        return {}
    return matched.dialect.usage_options(facts, body)


def credential_number(
    fields: Sequence[Field],
    query: str,
    *,
    upgrade: bool = False,
    also: frozenset[str] = NO_NAMES,
) -> int:
    """A number that stands for the credential a caller presented, in this process only.

    It covers every form that is taken off a request which goes out in another name. Python salts
    the hashes of text and bytes anew in each process, so it neither reveals the credential nor
    means anything elsewhere. `also` as in `steer_policies.fingerprint.principal`.
    """
    presented = [(name.lower(), value) for name, value in credential_fields(fields, also)]
    offered = [
        protocol
        for name, value in (fields if upgrade else ())
        if name.lower() == b"sec-websocket-protocol"
        for protocol in subprotocol_credentials(value.decode("utf-8", "surrogateescape"))
    ]
    return hash((tuple(presented), tuple(query_credentials(query)), tuple(offered)))
