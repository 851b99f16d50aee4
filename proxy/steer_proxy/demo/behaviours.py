"""What a provider of the demo does with a request: one healthy way, and many others."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from steer_proxy.demo.answers import ANSWER, beginning, ending, named, plain
from steer_proxy.demo.provider import Behaviour, Visit
from steer_proxy.demo.story import Tone

#: Seconds between two words of a stream, so that people can watch it come.
PACE: Final = 0.02


async def healthy(visit: Visit) -> None:
    """Answer as asked, whole or as a stream."""
    asked = visit.asked
    if not asked.stream:
        visit.says("200, the answer", Tone.GOOD)
        await visit.answer(200, plain(asked.dialect, asked.model))
        return
    visit.says("200, a stream begins", Tone.OPEN)
    await visit.begin_stream()
    for event in beginning(asked.dialect, asked.model, ANSWER.split(" ")):
        await visit.event(event)
        await asyncio.sleep(PACE)
    visit.says("200, a whole stream", Tone.GOOD)
    for event in ending(asked.dialect, asked.model):
        await visit.event(event)
    await visit.end_stream()


async def unavailable(visit: Visit) -> None:
    """503, without a word about when it will be better."""
    visit.says("503 Service Unavailable")
    await visit.refuse(503, "overloaded", "The engine is currently overloaded.")


async def resets(visit: Visit) -> None:
    """The connection is lost before a byte of the answer."""
    visit.says("connection reset")
    visit.reset()


async def silent(visit: Visit) -> None:
    """Not a byte, for ever."""
    visit.says("not a byte comes", Tone.OPEN)
    await visit.until_left()
    visit.says("not a byte came; Steer hung up")


async def no_first_token(visit: Visit) -> None:
    """200 and a stream that says it is there, but nothing else."""
    visit.says("200, but no first token comes", Tone.OPEN)
    await visit.begin_stream()
    for event in beginning(visit.asked.dialect, visit.asked.model, ()):
        await visit.event(event)
    await visit.until_left()
    visit.says("200, but no first token; Steer hung up")


async def error_first(visit: Visit) -> None:
    """200, and the stream's first event is an error (Anthropic's form)."""
    visit.says('200, first event: "overloaded_error"')
    await visit.begin_stream()
    error = {"type": "overloaded_error", "message": "Overloaded"}
    await visit.event(named("error", error=error))
    await visit.end_stream()


async def cut(visit: Visit) -> None:
    """Half an answer, and then the proper end of a chunked body: HTTP sees nothing wrong."""
    visit.says("200, a stream begins", Tone.OPEN)
    words = ANSWER.split(" ")
    await visit.begin_stream()
    for event in beginning(visit.asked.dialect, visit.asked.model, words[: len(words) // 2]):
        await visit.event(event)
        await asyncio.sleep(PACE)
    visit.says("the stream ends in mid-sentence")
    await visit.end_stream()


async def too_long(visit: Visit) -> None:
    """400: the prompt does not fit this model."""
    visit.says("400 context_length_exceeded")
    message = "This model's maximum context length is 8192 tokens."
    await visit.refuse(400, "context_length_exceeded", message)


async def tells_what_it_sees(visit: Visit) -> None:
    """503, and a word about the credentials that came with the request."""
    visit.says(f"sees {credentials(visit)}; 503")
    await visit.refuse(503, "overloaded", "The engine is currently overloaded.")


async def healthy_and_tells(visit: Visit) -> None:
    """The answer, and a word about the credentials that came with the request."""
    seen = credentials(visit)
    await healthy(visit)
    visit.says(f"sees {seen}; 200", Tone.GOOD)


def credentials(visit: Visit) -> str:
    """The key and the organisation that a request came with, in words."""
    organisation = visit.asked.headers.get("openai-organization", "no organisation")
    return f"{visit.asked.key}, {organisation}"


def throttled(seconds: float, *, by_reset_header: bool = False) -> Behaviour:
    """429 for everybody until `seconds` after the first request, then healthy.

    It says so as most providers do, by `Retry-After`, or only by `x-ratelimit-reset-requests`.
    """

    async def behave(visit: Visit) -> None:
        left = visit.provider.since + seconds - asyncio.get_running_loop().time()
        if left <= 0:
            await healthy(visit)
        elif by_reset_header:
            reset = f"{math.ceil(left * 1000)}ms"
            visit.says(f"429, x-ratelimit-reset-requests: {reset}")
            told = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
            await visit.refuse(429, "rate_limit_exceeded", "Rate limit reached.", told)
        else:
            seconds_left = math.ceil(left)
            visit.says(f"429, Retry-After: {seconds_left}")
            told = {"Retry-After": str(seconds_left)}
            await visit.refuse(429, "rate_limit_exceeded", "Rate limit reached.", told)

    return behave
