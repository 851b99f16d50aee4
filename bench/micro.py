"""`python -m bench.micro`: what the decisions of one call cost, in nanoseconds each.

For finding out which of two ways of writing something is faster, and that a decision which every
call needs has not become slow. What a call costs as a whole, `python -m bench` says.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Final

import orjson
from aiohttp.http_parser import HeadersParser

from bench.payload import JSON_CALL, STREAM_CALL
from steer_policies.breaker import Breaker, PermitPair, acquire_both, settle_both
from steer_policies.config import BreakerPolicy, DialectName
from steer_policies.deadline import sdk_silence_limit
from steer_policies.dialects import dialect
from steer_policies.dialects.base import Progress, StreamReader
from steer_policies.facts import CallFacts, Calm
from steer_policies.headers import request_fields
from steer_policies.outcome import Vote
from steer_policies.paths import admit, match_route
from steer_policies.planner import plan
from steer_policies.steering import read_steering
from steer_policies.throttle import Gate, Pass
from steer_proxy.settings import load

_REPEATS: Final = 5

_PRELUDE: Final = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1767614400,'
    b'"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},'
    b'"logprobs":null,"finish_reason":null}]}\n\n'
)
_DELTA: Final = _PRELUDE.replace(b'"role":"assistant",', b"")


def main() -> None:
    """Time each, and print a line for it."""
    head, _, body = JSON_CALL.partition(b"\r\n\r\n")
    headers, fields = HeadersParser().parse_headers([*head.split(b"\r\n")[1:], b""])
    config = load(None, {}, {})
    route = next(each for each in config.routes if each.path == "/openai/v1")
    speaks = dialect(route.policy.dialect)
    document = orjson.loads(body)
    content_type = "application/json"
    path = "/chat/completions"
    facts = speaks.describe("POST", path, "", content_type, document)
    call = CallFacts(request=facts, headers=headers, body=document, body_size=len(body))
    prefixes = {each.path for each in config.routes}
    replaced = frozenset({"accept-encoding", "idempotency-key", "traceparent", "x-request-id"})
    reader = _reader()
    gate = Gate()
    model, upstream = Breaker(BreakerPolicy()), Breaker(BreakerPolicy())

    def pass_gate() -> None:
        admission = gate.admit(0.0, 0.5)
        if isinstance(admission, Pass):
            gate.settle(admission, throttled=False, now=0.0)

    def pass_breakers() -> None:
        pair = acquire_both(model, upstream, 0.0)
        if isinstance(pair, PermitPair):
            settle_both(pair, Vote.SUCCESS, Vote.SUCCESS, 0.0, 0.5, 0.1)

    cases: dict[str, Callable[[], object]] = {
        "parse the body (orjson, for scale)": lambda: orjson.loads(body),
        "describe a request": lambda: speaks.describe("POST", path, "", content_type, document),
        "admit a target": lambda: admit("POST", "/openai/v1/chat/completions"),
        "find its route": lambda: match_route(prefixes, "/openai/v1/chat/completions"),
        "read steering headers": lambda: read_steering(headers),
        "read the SDK's time-out": lambda: sdk_silence_limit(headers),
        "plan": lambda: plan(route.policy, call, Calm()),
        "choose the fields to pass on": lambda: request_fields(
            fields, replaced=replaced, strip_credentials=False
        ),
        "throttle gate": pass_gate,
        "both breakers": pass_breakers,
        "look at one streamed event": lambda: reader.feed(_DELTA),
    }
    for name, work in cases.items():
        print(f"{_nanoseconds(work):8.0f} ns  {name}")


def _reader() -> StreamReader:
    """A reader in the middle of a stream, where it spends its life."""
    speaks = dialect(DialectName.OPENAI)
    document = orjson.loads(STREAM_CALL.partition(b"\r\n\r\n")[2])
    facts = speaks.describe("POST", "/chat/completions", "", "application/json", document)
    reader = speaks.read_stream(facts, "text/event-stream")
    assert reader is not None
    reader.feed(_PRELUDE)
    assert reader.progress is Progress.CONTENT
    return reader


def _nanoseconds(work: Callable[[], object]) -> float:
    """The best of a few repeats: whatever is above it was something else's doing."""
    timer = timeit.Timer(work)
    number, _ = timer.autorange()
    return min(timer.repeat(_REPEATS, number)) / number * 1e9


if __name__ == "__main__":
    main()
