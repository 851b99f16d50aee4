"""Runs the demo: scenario after scenario, and at the end the sum."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from importlib import metadata
from typing import Protocol

from steer_proxy.demo.callers import NEEDED
from steer_proxy.demo.scenarios import SCENARIOS
from steer_proxy.demo.stage import Result, Scenario, perform
from steer_proxy.demo.story import Story


class Screen(Protocol):
    """Where the demo is shown. `pause` is how long an ended scenario is left to be read."""

    pause: float

    def open(self, introduction: str) -> None:
        """Say what is about to be seen."""

    def begin(self, scenario: Scenario, story: Story, number: int, count: int) -> None:
        """A scenario begins."""

    def end(self, result: Result) -> None:
        """A scenario has ended."""

    def close(self, results: Sequence[Result], last: str) -> None:
        """Sum up."""


async def play(screen: Screen, scenarios: Sequence[Scenario] = SCENARIOS) -> bool:
    """Play scenarios one after the other; whether all went as promised."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    screen.open(introduction())
    results = []
    for number, scenario in enumerate(scenarios, 1):
        story = Story()
        screen.begin(scenario, story, number, len(scenarios))
        result = await perform(scenario, story)
        results.append(result)
        screen.end(result)
        if number < len(scenarios):
            await asyncio.sleep(screen.pause)
    screen.close(results, conclusion(results, loop.time() - began))
    return all(result.fault is None for result in results)


def introduction() -> str:
    """What is about to be seen."""
    versions = []
    for name in NEEDED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return (
        f"The real SDKs ({', '.join(versions)}) call two scripted providers, home and spare, which "
        "misbehave; once through Steer and once without it. The SDKs have their defaults, retries "
        "included: only base_url differs. No key is needed, and nothing leaves this machine."
    )


def conclusion(results: Sequence[Result], seconds: float) -> str:
    """The last line."""
    good = sum(result.fault is None for result in results)
    text = f"{good} of {len(results)} went as promised, in {seconds:.0f} s."
    if good == len(results):
        text += (
            ' Try it with your own: `make run`, then `eval "$(steer env)"` where your code runs.'
        )
    return text
