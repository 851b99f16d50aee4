"""The benchmark's two calls: the headers of OpenAI's Python SDK, and about 1 KB of body."""

from __future__ import annotations

import json
from typing import Any, Final

_SYSTEM: Final = (
    "You are the assistant of a small company that repairs bicycles. Answer in short, friendly "
    "sentences. When a question has nothing to do with bicycles, say so and offer help with what "
    "does. Never promise a date or a price; point to the shop's telephone number instead."
)
_QUESTION: Final = (
    "My chain slips when I pedal hard in the two smallest sprockets, but only on the large "
    "chainring. The chain was replaced last spring, the cassette is the one the bicycle came with, "
    "and I ride about a hundred kilometres a week, in all weathers. What is worn, can I see it "
    "without tools, and is it safe to ride on until the weekend?"
)
_ANSWER: Final = (
    "That sounds like worn sprockets: a new chain on an old cassette slips first where you ride "
    "most. Look for teeth shaped like shark fins. Which sprockets do you use the most?"
)
_REPLY: Final = "The two smallest, nearly always: the country is flat here."


def _body(*, stream: bool) -> bytes:
    document: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": _QUESTION},
            {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": _REPLY},
        ],
        "model": "gpt-4o-mini",
        "max_tokens": 512,
        "temperature": 0.2,
        "user": "benchmark",
    }
    if stream:
        document["stream"] = True
    return json.dumps(document, separators=(",", ":")).encode()


def _request(body: bytes) -> bytes:
    lines = (
        "POST /openai/v1/chat/completions HTTP/1.1",
        "Host: 127.0.0.1:4100",
        "Accept-Encoding: gzip, deflate",
        "Connection: keep-alive",
        "Accept: application/json",
        "Content-Type: application/json",
        "User-Agent: OpenAI/Python 2.8.1",
        "X-Stainless-Lang: python",
        "X-Stainless-Package-Version: 2.8.1",
        "X-Stainless-OS: Linux",
        "X-Stainless-Arch: x64",
        "X-Stainless-Runtime: CPython",
        "X-Stainless-Runtime-Version: 3.11.7",
        "Authorization: Bearer sk-proj-0123456789abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJ",
        "X-Stainless-Async: async:asyncio",
        "x-stainless-retry-count: 0",
        "x-stainless-read-timeout: 600",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


#: A chat completion answered as one JSON document.
JSON_CALL: Final = _request(_body(stream=False))

#: The same answered as a stream of events.
STREAM_CALL: Final = _request(_body(stream=True))
