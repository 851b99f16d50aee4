"""What Steer adds to an answer, takes from it, and tells the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from steer_policies.dialects.base import StreamReader
from steer_policies.outcome import SUCCESS, Failure, Verdict, failed
from steer_policies.plan import Candidate, Plan
from steer_policies.retry import WaitSource
from steer_proxy.engine.attempt import AttemptRecord, Problem
from steer_proxy.engine.conclusion import Settled, Spent
from steer_proxy.engine.config import Config
from steer_proxy.engine.hold import Hold
from steer_proxy.http.answer import HttpAnswer
from steer_proxy.http.call import Call
from steer_proxy.http.replies import answer_head, between_events, own_lines, tell
from tests.support.calls import TRACE, make_call
from tests.support.sidecar import configure

BODY = b'{"model": "gpt-4o", "messages": []}'
HOLD = cast("Hold", SimpleNamespace())
READER = cast("StreamReader", SimpleNamespace())
PLAN = Plan((Candidate("home", "gpt-4o"),))


@pytest.fixture
def call(tmp_path: Path) -> Call:
    return make_call(_config(tmp_path), "chat", "/chat/completions", body=BODY)


def _config(tmp_path: Path) -> Config:
    other = {"dialect": "openai", "base_url": "http://b.example", "credential": {"env": "KEY"}}
    settings = {
        "upstreams": {
            "home": {"dialect": "openai", "base_url": "http://a.example"},
            "other": other,
        },
        "routes": [{"name": "chat", "path": "/chat", "candidates": ["home", "other"]}],
    }
    return configure(settings, tmp_path, {"KEY": "secret"})


def record(number: int = 1, verdict: Verdict = SUCCESS, **more: Any) -> AttemptRecord:
    values: dict[str, Any] = {
        "upstream": "home",
        "model": "gpt-4o",
        "started": 0.0,
        "seconds": 1.0,
        "waited": 0.0,
        "wait_source": WaitSource.NONE,
        "status": 200,
        **more,
    }
    return AttemptRecord(number=number, verdict=verdict, **values)


def settled(upstream: str | None = "home", model: str = "gpt-4o", **more: Any) -> Settled[Any]:
    candidate = None if upstream is None else Candidate(upstream, model)
    return Settled(Spent([record()]), candidate=candidate, **more)


def answer(status: int, *fields: tuple[bytes, bytes], reader: Any = None) -> HttpAnswer:
    response = SimpleNamespace(status=status, reason="", raw_headers=fields)
    return HttpAnswer(SUCCESS, cast("Any", response), reader=reader)


def named(lines: Sequence[bytes]) -> dict[str, str]:
    """Header lines as a mapping; each ends its line, and no name stands twice."""
    pairs = [line.decode().removesuffix("\r\n").partition(": ") for line in lines]
    assert all(line.count(b"\r\n") == 1 and line.endswith(b"\r\n") for line in lines)
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: value for name, _, value in pairs}


def test_what_steer_did(call: Call) -> None:
    """Ids, upstream, number of attempts; model and rule only where there is something to say."""
    plain = {"X-Steer-Request-ID": "request-1", "X-Steer-Trace-ID": TRACE.trace_id}
    done = {**plain, "X-Steer-Upstream": "home", "X-Steer-Attempts": "1"}
    assert named(own_lines(call, PLAN, settled())) == done
    nothing = named(own_lines(call, PLAN, settled(None)))
    assert nothing == {**plain, "X-Steer-Attempts": "1"}
    ruled = Plan(PLAN.candidates, rule="cheap é")
    changed = named(own_lines(call, ruled, settled("other", "gpt-4o-mini")))
    assert changed["X-Steer-Model"] == "gpt-4o-mini"
    assert changed["X-Steer-Rule"] == "cheap é"
    assert changed["X-Steer-Upstream"] == "other"


def test_free_text_does_not_break_an_answer(call: Call) -> None:
    """A rule's name and an option's model may be any text; a header line may not."""
    ruled = Plan(PLAN.candidates, rule="two\nlines\t\x7f")
    shown = named(own_lines(call, ruled, settled("other", "gpt\r\nX-Evil: 1")))
    assert shown["X-Steer-Rule"] == "two?lines??"
    assert shown["X-Steer-Model"] == "gpt??X-Evil: 1"


FIELDS = (
    (b"content-TYPE", b"text/plain"),
    (b"Connection", b"keep-alive, X-Private"),
    (b"X-Private", b"1"),
    (b"Set-Cookie", b"a=1"),
    (b"set-cookie", b"b=2"),
    (b"X-Steer-Upstream", b"theirs"),
    (b"x-latin", b"caf\xe9"),
    (b"Content-length", b"5"),
    (b"Retry-After", b"7"),
)


def test_a_providers_fields(call: Call) -> None:
    """In order and spelling, less what belongs to its connection or to another Steer."""
    fields, lines = answer_head(call, PLAN, settled(hold=HOLD), answer(200, *FIELDS))
    passed = [name for name, _ in fields]
    assert passed == [
        b"content-TYPE",
        b"Set-Cookie",
        b"set-cookie",
        b"x-latin",
        b"Content-length",
        b"Retry-After",
    ]
    assert (b"x-latin", b"caf\xe9") in fields
    assert named(lines)["X-Steer-Upstream"] == "home"


@pytest.mark.parametrize(
    ("status", "reader", "kept"),
    [(200, None, True), (404, None, True), (204, None, False), (200, READER, False)],
)
def test_lengths(call: Call, status: int, reader: Any, kept: bool) -> None:
    """A stream may yet get an error event, and 204 has no length (RFC 9110 section 8.6)."""
    fields, _ = answer_head(call, PLAN, settled(hold=HOLD), answer(status, *FIELDS, reader=reader))
    assert ((b"Content-length", b"5") in fields) is kept


@pytest.mark.parametrize(
    ("upstream", "token_is_key", "cookies"),
    [("home", False, 2), ("home", True, 0), ("other", False, 0)],
)
def test_cookies(call: Call, upstream: str, token_is_key: bool, cookies: int) -> None:
    """Those by which the provider knows Steer are not the caller's."""
    call.token_is_key = token_is_key
    fields, _ = answer_head(call, PLAN, settled(upstream, hold=HOLD), answer(200, *FIELDS))
    assert sum(name.lower() == b"set-cookie" for name, _ in fields) == cookies


def test_a_handshake_passes_whole(call: Call) -> None:
    """The tunnel is end to end, and so is what the ends agree on."""
    agreed = (
        (b"Upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", b"x"),
        (b"Sec-WebSocket-Extensions", b"a"),
        (b"Sec-WebSocket-Extensions", b"b"),
        (b"Sec-WebSocket-Protocol", b"realtime"),
        (b"Transfer-Encoding", b"chunked"),
    )
    fields, _ = answer_head(call, PLAN, settled(hold=HOLD), answer(101, *agreed))
    assert fields == list(agreed[:-1])


@pytest.mark.parametrize(
    ("retry_after", "sdk_retry", "lines"),
    [
        (None, None, {}),
        (None, False, {"X-Should-Retry": "false"}),
        (1.2, True, {"Retry-After": "2", "Retry-After-Ms": "1200", "X-Should-Retry": "true"}),
        (0.0, False, {"Retry-After": "0", "Retry-After-Ms": "0", "X-Should-Retry": "false"}),
    ],
)
def test_advice(
    call: Call, retry_after: float | None, sdk_retry: bool | None, lines: dict[str, str]
) -> None:
    """A failing answer may say when to come back: then the provider's own word is replaced."""
    theirs = (*FIELDS, (b"retry-after-ms", b"7000"), (b"x-should-retry", b"true"))
    ended = settled(retry_after=retry_after, sdk_retry=sdk_retry)
    fields, own = answer_head(call, PLAN, ended, answer(503, *theirs))
    told = {name: value for name, value in named(own).items() if not name.startswith("X-Steer")}
    assert told == lines
    left = {name.lower() for name, _ in fields}
    for name in ("retry-after", "retry-after-ms", "x-should-retry"):
        replaced = name in {line.lower() for line in lines}
        assert (name.encode() in left) is not replaced
    # A committed answer is the provider's alone.
    fields, own = answer_head(call, PLAN, settled(hold=HOLD), answer(200, *theirs))
    assert (b"Retry-After", b"7") in fields
    assert "Retry-After" not in named(own)


def test_an_answer_that_was_let_go(call: Call) -> None:
    """Nothing of the provider's is left to pass on; Steer's own lines are."""
    gone = answer(503, *FIELDS)
    gone.response = None
    fields, own = answer_head(call, PLAN, settled(), gone)
    assert fields == []
    assert named(own)["X-Steer-Attempts"] == "1"


class TestTelling:
    """One line for a call that was not plain sailing, none for the others."""

    @pytest.fixture(autouse=True)
    def _quiet(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, logger="steer.call")

    def test_plain_sailing(self, call: Call, caplog: pytest.LogCaptureFixture) -> None:
        """The healthy calls are left in peace."""
        tell(call, PLAN, settled(hold=HOLD), SUCCESS, 1.0)
        tell(call, PLAN, settled(hold=HOLD), None, 1.0)
        assert caplog.records == []

    def test_a_hidden_failure(self, call: Call, caplog: pytest.LogCaptureFixture) -> None:
        """It is worth a line, though the caller saw nothing of it."""
        attempts = [
            record(1, failed(Failure.OVERLOADED), status=503),
            record(2, upstream="other", waited=1.5, wait_source=WaitSource.BACKOFF),
        ]
        ended = Settled[Any](Spent(attempts), candidate=Candidate("other", "m"), hold=HOLD)
        tell(call, Plan(PLAN.candidates, rule="r"), ended, SUCCESS, 2.5)
        (line,) = caplog.records
        assert line.levelno == logging.INFO
        assert line.getMessage() == (
            "request-1 /chat/chat/completions: answered in 2.50 s "
            "[home overloaded 503, other ok 200 after 1.5 s of backoff] rule r"
        )

    def test_a_failure(self, call: Call, caplog: pytest.LogCaptureFixture) -> None:
        """A committed answer that broke, and an answer of Steer's own, are warnings."""
        tell(call, PLAN, settled(hold=HOLD), failed(Failure.TRUNCATED), 1.0)
        unsent = record(1, failed(Failure.CONNECT), status=None)
        problem = Problem(502, "steer_upstream_unreachable", "No upstream answered.")
        tell(call, PLAN, Settled(Spent([unsent]), problem=problem), None, 1.0)
        assert [line.levelno for line in caplog.records] == [logging.WARNING] * 2
        assert [line.getMessage() for line in caplog.records] == [
            "request-1 /chat/chat/completions: truncated in 1.00 s [home ok 200]",
            "request-1 /chat/chat/completions: steer_upstream_unreachable in 1.00 s [home connect]",
        ]


@pytest.mark.parametrize(
    ("tail", "between"),
    [
        (b"", True),
        (b"{}\n\n", True),
        (b"\r\n\r\n", True),
        (b"}\n\r\n", True),
        (b"{}\r\r", True),
        (b": {}", False),
        (b"{}\r\n", False),
        (b'"}}\n', False),
    ],
)
def test_where_an_event_may_follow(tail: bytes, between: bool) -> None:
    """Behind an empty line, with whichever line ends."""
    assert between_events("text/event-stream; charset=utf-8", tail) is between


@pytest.mark.parametrize(
    ("tail", "between"), [(b"", False), (b"[", False), (b'"hel', False), (b'"}\n}', True)]
)
def test_where_an_element_may_follow(tail: bytes, between: bool) -> None:
    """In an array one must have gone before."""
    assert between_events("application/json", tail) is between
