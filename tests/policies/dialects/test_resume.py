"""Going on with a broken stream in its own envelope."""

from __future__ import annotations

from typing import Any

import pytest

from steer_policies.config import DialectName
from steer_policies.dialects import dialect
from steer_policies.dialects.base import RequestFacts
from tests.policies.dialects.streams import CHAT, DONE, MESSAGE, chunk, data, typed

OPENAI, ANTHROPIC = dialect(DialectName.OPENAI), dialect(DialectName.ANTHROPIC)
CHAT_FACTS = RequestFacts("chat.completions", True, stream=True, resumable=True)
MESSAGE_FACTS = RequestFacts("messages", True, stream=True, resumable=True)
NOT_RESUMABLE = RequestFacts("chat.completions", True, stream=True)

FIRST = data(
    {"id": "a", "object": "o", "created": 7, "model": "first", "choices": [], "usage": None}
)


def test_a_chat_chunk() -> None:
    """In the envelope of the first chunk that has choices."""
    choice = {"index": 0, "delta": {"content": "more"}, "finish_reason": None}
    made = OPENAI.resumed(CHAT_FACTS, b": hi\n\n" + data({}) + FIRST + CHAT[1], "more")
    envelope = {"id": "a", "object": "o", "created": 7, "model": "first"}
    assert made == data({**envelope, "choices": [choice]})


def test_an_adopted_chat_chunk() -> None:
    """Its own content in the first one's envelope; no chunk stays as it is."""
    event = chunk({}, "stop", usage={"prompt_tokens": 1})
    made = OPENAI.adopted(CHAT_FACTS, FIRST + CHAT[1], event)
    expected = chunk({}, "stop", usage={"prompt_tokens": 1}).replace(b"chatcmpl-1", b"a")
    expected = expected.replace(b"chat.completion.chunk", b"o")
    expected = expected.replace(b'"created":1', b'"created":7').replace(b'"gpt"', b'"first"')
    assert made == expected
    for same in (DONE, b": comment\n\n"):
        assert OPENAI.adopted(CHAT_FACTS, FIRST, same) == same
    assert OPENAI.adopted(CHAT_FACTS, FIRST, b"data: {broken\n\n") is None


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        (NOT_RESUMABLE, FIRST),
        (CHAT_FACTS, b""),
        (CHAT_FACTS, data({"choices": []})),
        (CHAT_FACTS, data({"id": 3, "choices": []})),
        (CHAT_FACTS, FIRST[:-2]),
    ],
)
def test_no_envelope_of_a_chat(facts: RequestFacts, first: bytes) -> None:
    """Then nothing can be done faithfully."""
    assert OPENAI.resumed(facts, first, "x") is None
    assert OPENAI.adopted(facts, first, CHAT[1]) is None


def stream(*events: bytes) -> bytes:
    return b"".join(events)


def delta(index: Any, text: str) -> bytes:
    return typed("content_block_delta", index=index, delta={"type": "text_delta", "text": text})


def start(index: Any, kind: str = "text") -> bytes:
    return typed("content_block_start", index=index, content_block={"type": kind})


@pytest.mark.parametrize(
    ("first", "made"),
    [
        pytest.param(stream(*MESSAGE[:4]), delta(0, "more"), id="open block"),
        pytest.param(stream(start(1), delta(1, "x")), delta(1, "more"), id="another index"),
        pytest.param(stream(*MESSAGE[:6], start(1), delta(1, "x")), None, id="second block"),
        pytest.param(
            stream(*MESSAGE[:4], *[MESSAGE[4]] * 1000), delta(0, "more"), id="long open block"
        ),
        pytest.param(
            stream(*MESSAGE[:4], *[MESSAGE[4]] * 1000, *MESSAGE[5:7]), None, id="long closed block"
        ),
        pytest.param(stream(*MESSAGE[:6]), None, id="closed block"),
        pytest.param(stream(*MESSAGE[:1]), None, id="no block"),
        pytest.param(stream(start(0, "tool_use")), None, id="no text"),
        pytest.param(stream(start("0")), None, id="no index"),
        pytest.param(
            stream(start(0), delta(0, "content_block_stop")), delta(0, "more"), id="look-alike"
        ),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_a_text_delta(first: bytes, made: bytes | None) -> None:
    """In the text block that is open."""
    assert ANTHROPIC.resumed(MESSAGE_FACTS, first, "more") == made
    assert ANTHROPIC.resumed(NOT_RESUMABLE, first, "more") is None


@pytest.mark.parametrize(
    ("event", "made"),
    [
        pytest.param(MESSAGE[0], b"", id="the message has begun"),
        pytest.param(MESSAGE[1], b"", id="the block has begun"),
        pytest.param(MESSAGE[2], MESSAGE[2], id="ping"),
        pytest.param(b": comment\n\n", b": comment\n\n", id="comment"),
        pytest.param(MESSAGE[4], MESSAGE[4].replace(b'"index":0', b'"index":2'), id="delta"),
        pytest.param(delta(2, "x"), delta(2, "x"), id="the same block"),
        pytest.param(MESSAGE[6], MESSAGE[6], id="the end"),
        pytest.param(typed("message_stop").replace(b"{", b"["), None, id="broken"),
    ],
)
def test_an_adopted_event(event: bytes, made: bytes | None) -> None:
    """What begins again is left out, the block's index is the first one's."""
    first = stream(MESSAGE[0], start(2))
    assert ANTHROPIC.adopted(MESSAGE_FACTS, first, event) == made
    assert ANTHROPIC.adopted(MESSAGE_FACTS, stream(*MESSAGE[:6]), event) is None
