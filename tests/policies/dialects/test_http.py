"""The dialect of any HTTP API."""

from __future__ import annotations

import orjson
import pytest

from steer_policies.config import DialectName
from steer_policies.dialects import dialect
from steer_policies.dialects.base import Dialect, RequestFacts, Rewritten, Where
from steer_policies.outcome import Failure

HTTP = dialect(DialectName.HTTP)
FACTS = RequestFacts("http", True, None, Where.BODY)


def test_there_is_a_dialect_for_every_name() -> None:
    """And it knows its name."""
    for name in DialectName:
        found: Dialect = dialect(name)
        assert found.name is name
        assert dialect(name) is found


def test_requests() -> None:
    """Nothing is known but whether the body is an object."""
    assert HTTP.describe("POST", "/mcp", "", "application/json", {"model": "x"}) == FACTS
    assert HTTP.describe("GET", "/", "", "", None) == RequestFacts("http", True)
    assert HTTP.canonical_path("//a//b") == "//a//b"


def test_options_are_a_merge_patch() -> None:
    """`model` is a member like any other."""
    body = {"a": 1}
    made = HTTP.rewrite(FACTS, "/x", "q", "application/json", b'{"a":1}', body, {"model": "m"})
    assert made == Rewritten("/x", "q", b'{"a":1,"model":"m"}')


@pytest.mark.parametrize(
    ("status", "failure"),
    [(200, None), (404, Failure.REJECTED), (429, Failure.THROTTLED), (503, Failure.OVERLOADED)],
)
def test_classify(status: int, failure: Failure | None) -> None:
    """By status."""
    assert HTTP.classify(FACTS, status, {}, b"", 0.0).failure is failure


def test_answers() -> None:
    """Nothing is known of streams, tokens, or resuming."""
    assert HTTP.read_stream(FACTS, "text/event-stream") is None
    assert HTTP.read_answer(FACTS, b'{"model":"m","usage":{"input_tokens":1}}') == (None, None)
    assert HTTP.error_event(FACTS, "text/event-stream", "steer_x", "No.") == b""
    assert HTTP.resumed(FACTS, b"", "x") is None
    assert HTTP.adopted(FACTS, b"", b"x") is None


def test_error() -> None:
    """A small JSON object."""
    answer = HTTP.error(503, "steer_x", "No.")
    assert answer.content_type == "application/json"
    assert orjson.loads(answer.body) == {
        "error": {"code": "steer_x", "message": "No.", "type": "steer_error"}
    }
