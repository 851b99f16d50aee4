"""The wall: a scripted LLM provider on raw sockets, for tests and benchmarks.

It speaks every dialect (OpenAI, Anthropic, Gemini, plain HTTP and MCP), answers healthily unless
told otherwise, can misbehave at any byte, and logs every request it gets, so that a test asserts
both on what the caller saw and on what the provider saw::

    from tests.provider import Provider, faults

    async with Provider() as provider:                      # http://127.0.0.1:PORT
        provider.text = "Hello from {name}."                # what models say, word by word
        provider.then(                                      # the next generation requests, in order
            faults.rate_limit(retry_after=2),
            faults.cut_after(events=3, how="clean_end"),
            faults.healthy(),
        )
        ...                                                 # call it, directly or through a proxy
        assert [attempt.status for attempt in provider.attempts] == [429, 200, 200]
        assert provider.attempts[0].json["model"] == "gpt-4o"

Which request meets what is said by `then` (a queue), `when` (rules), `down_between` and `flapping`
(times of the loop) and `always`, in this order; `healthy()` forgets all of it.

A behaviour is a `Fault` from `tests.provider.faults` (they compose: `a | b`), a whole `Answer`
(made by `json_answer`, `sse_answer`, ... or from bare steps such as `Send(b"...")`, `Pause(1)`,
`Reset()`), or a function from the attempt and its healthy answer to another answer.

Healthy answers are a function of the meaning of the request, so a direct and a proxied one compare
byte for byte; `provider.distinct = True` makes every answer another. Time is the loop's alone:
under a loop with a virtual clock, every pause costs nothing.

`python -m tests.provider --port 0` runs it by itself and prints `{"port": N}`.
"""

from tests.provider import faults
from tests.provider.answers import (
    bytes_answer,
    empty_answer,
    json_answer,
    sse_answer,
    sse_event,
    stream_answer,
    text_answer,
    websocket_answer,
)
from tests.provider.attempt import Attempt
from tests.provider.choosing import Behaviour, Fault
from tests.provider.dialects import dialect_of, endpoint_of, is_generation
from tests.provider.server import Provider
from tests.provider.steps import (
    Answer,
    Await,
    Close,
    Data,
    Event,
    Finish,
    Head,
    Part,
    Pause,
    Repeat,
    Reset,
    Send,
    Signal,
    Slowly,
    Upgrade,
    WaitUntilClosed,
)
from tests.provider.websocket import WebSocket

__all__ = [
    "Answer",
    "Attempt",
    "Await",
    "Behaviour",
    "Close",
    "Data",
    "Event",
    "Fault",
    "Finish",
    "Head",
    "Part",
    "Pause",
    "Provider",
    "Repeat",
    "Reset",
    "Send",
    "Signal",
    "Slowly",
    "Upgrade",
    "WaitUntilClosed",
    "WebSocket",
    "bytes_answer",
    "dialect_of",
    "empty_answer",
    "endpoint_of",
    "faults",
    "is_generation",
    "json_answer",
    "sse_answer",
    "sse_event",
    "stream_answer",
    "text_answer",
    "websocket_answer",
]
