"""What the demo plays. Limits are scaled down, so that nobody has to wait a minute to see one."""

from __future__ import annotations

import asyncio
from typing import Final

from steer_proxy.demo.behaviours import (
    cut,
    error_first,
    healthy_and_tells,
    no_first_token,
    resets,
    silent,
    tells_what_it_sees,
    throttled,
    too_long,
    unavailable,
)
from steer_proxy.demo.stage import CALLERS_KEY, Expected, Scenario, Stage
from steer_proxy.demo.story import Tone

_SHORT_WAITS: Final = {"initial_delay": 0.4, "max_attempts": 2}


async def _two_calls(stage: Stage) -> None:
    """One is refused; the other comes while the provider wants to be left alone."""
    first = asyncio.create_task(stage.ask_and_tell("first call"))
    try:
        await asyncio.sleep(0.3)
        stage.story.tell("caller", "makes a second call", Tone.NOTE)
        await stage.ask_and_tell("second call")
        await first
    finally:
        first.cancel()
    # Whichever came back last, the first is the one that was refused, and that is judged.
    stage.seen.sort(key=lambda seen: seen.attempts)


async def _crash_and_return(stage: Stage) -> None:
    await _crash(stage)
    for which in ("first call", "second call", "third call"):
        await stage.ask_and_tell(which)
    await stage.home.start()
    stage.story.tell("home", "is back", Tone.GOOD)
    await asyncio.sleep(1.0)
    await stage.ask_and_tell("a second later")


async def _call_after_crash(stage: Stage) -> None:
    await _crash(stage)
    await stage.ask()


async def _crash(stage: Stage) -> None:
    await stage.home.stop()
    stage.story.tell("home", "has crashed: connections are refused", Tone.BAD)


def _skipped_while_open(stage: Stage) -> str | None:
    attempts = [seen.attempts for seen in stage.seen]
    if attempts != [2, 2, 1, 1]:
        return f"expected the third call to pass over home; attempts were {attempts}"
    return None


def _keys_stayed_apart(stage: Stage) -> str | None:
    for asked in stage.spare.asked:
        for name, value in asked.headers.items():
            if CALLERS_KEY in value or "of-the-caller" in value:
                return f"the caller's credential reached spare in {name}"
    return None


SCENARIOS: Final = (
    Scenario(
        name="retry-after",
        title="429 with Retry-After",
        about="The provider wants to be left alone for a second, and is: by the call it refused, "
        "and by another that comes meanwhile. Without Steer that one is refused as well.",
        then=throttled(1.0),
        play=_two_calls,
        alone=_two_calls,
        expected=Expected(attempts=2, home=3),
    ),
    Scenario(
        name="reset-header",
        title="429 with only x-ratelimit-reset",
        about="No Retry-After, but a header says when the limit is lifted. The SDK does not read "
        "it and spends its retries too early.",
        then=throttled(1.8, by_reset_header=True),
        expected=Expected(attempts=2, home=2),
    ),
    Scenario(
        name="fallback",
        title="503, and it stays",
        about="Two attempts with a short wait between them, then the next candidate.",
        then=unavailable,
        route={"retry": _SHORT_WAITS},
        expected=Expected(upstream="spare", attempts=3, home=2, spare=1),
    ),
    Scenario(
        name="reset",
        title="Connection lost before the answer",
        about="Nothing has reached the caller, so it can be hidden. (The SDK's own retries would "
        "save this one, too.)",
        first=(resets,),
        route={"retry": _SHORT_WAITS},
        expected=Expected(attempts=2, home=2),
    ),
    Scenario(
        name="silence",
        title="A provider that says nothing",
        about="timeouts.first_byte (60 s, here 0.8 s) ends the wait. Asking the silent one again "
        "would cost as much again: the next candidate is asked.",
        stream=True,
        then=silent,
        home={"timeouts": {"first_byte": 0.8}},
        expected=Expected(upstream="spare", attempts=2, home=1, spare=1),
        watch=1.2,
    ),
    Scenario(
        name="slow-first-token",
        title="200, and then no first token",
        about="The head came, the text does not. timeouts.first_token (120 s, here 0.8 s) ends the "
        "wait; the caller has seen nothing yet.",
        stream=True,
        then=no_first_token,
        home={"timeouts": {"first_token": 0.8}},
        expected=Expected(upstream="spare", attempts=2, home=1, spare=1),
        watch=1.2,
    ),
    Scenario(
        name="error-in-200",
        title="An error inside a 200 stream",
        about="Anthropic says it is overloaded in the first event of a stream. To HTTP that is a "
        "success; to Steer it is a failure like any other before the first token.",
        dialect="anthropic",
        stream=True,
        first=(error_first,),
        route={"retry": _SHORT_WAITS},
        expected=Expected(attempts=2, home=2),
    ),
    Scenario(
        name="cut",
        title="A stream that ends in mid-sentence",
        about="Its framing ends properly, so HTTP sees nothing wrong, and without Steer neither "
        "does the SDK. With Steer it never looks like a clean end.",
        stream=True,
        then=cut,
        expected=Expected(error="APIError"),
    ),
    Scenario(
        name="resume",
        title="The same, with on_break: resume",
        about="Another candidate is asked. Its answer begins with what the caller already has, so "
        "the rest of it follows, in the first stream's envelope.",
        stream=True,
        then=cut,
        route={"on_break": "resume"},
        expected=Expected(home=1, spare=1),
    ),
    Scenario(
        name="too-long",
        title="A prompt too long for the model",
        about="Asking the same model again is useless. A candidate that declares a larger context "
        "is asked instead; its options change the model.",
        then=too_long,
        home={"models": {"small": {"context_tokens": 8192}}},
        route={"candidates": ["home", {"upstream": "spare", "options": {"model": "large"}}]},
        expected=Expected(upstream="spare", attempts=2, home=1, spare=1),
    ),
    Scenario(
        name="circuit",
        title="A crashed provider, and its return",
        about="After two failures (failure_threshold, here 2) its circuit opens, and it is not "
        "asked any more. After open_duration (30 s, here 1 s) one call finds out that it is back.",
        home={"breaker": {"failure_threshold": 2, "open_duration": 1}},
        route={"retry": {"max_attempts": 1}},
        play=_crash_and_return,
        alone=_call_after_crash,
        check=_skipped_while_open,
        expected=Expected(home=1, spare=3),
    ),
    Scenario(
        name="keys",
        title="Keys do not cross",
        about="The caller's key goes to home alone. The spare is given its own, and nothing of the "
        "caller's account.",
        then=tells_what_it_sees,
        spare=healthy_and_tells,
        route={"retry": {"max_attempts": 1}},
        check=_keys_stayed_apart,
        expected=Expected(upstream="spare", attempts=2, home=1, spare=1),
        alone=None,
    ),
    Scenario(
        name="no-multiplying",
        title="Everything is down",
        about="Four attempts, then the provider's own answer with x-should-retry: false: the SDK's "
        "two retries would have made twelve of them.",
        then=unavailable,
        spare=unavailable,
        route={"retry": _SHORT_WAITS},
        expected=Expected(error="InternalServerError", attempts=4, home=2, spare=2),
    ),
)
