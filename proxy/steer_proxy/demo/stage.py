"""Plays one scenario: its providers, a sidecar between them and an SDK, and the SDK alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from steer_proxy.app import Sidecar
from steer_proxy.demo.answers import ANSWER
from steer_proxy.demo.behaviours import healthy
from steer_proxy.demo.callers import Caller, Seen, caller
from steer_proxy.demo.ending import NOT_TRIED, Ending, ending
from steer_proxy.demo.provider import Behaviour, Provider
from steer_proxy.demo.story import Story, Tone
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.config import Config
from steer_proxy.settings import load

#: The keys: the application's own, which only `home` takes, and the operator's for `spare`.
CALLERS_KEY: Final = "sk-of-the-caller"
SPARE_KEY: Final = "sk-of-the-spare"

#: A scenario that takes longer than this is stuck, in seconds.
PATIENCE: Final = 20.0

Play = Callable[["Stage"], Awaitable[None]]

_ENGINE_LOG: Final = logging.getLogger("steer")


async def one_call(stage: Stage) -> None:
    """What most scenarios play."""
    await stage.ask()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How a scenario's last call has to end.

    `error` is the SDK's exception, None for the whole answer. `home` and `spare` are how often each
    is asked in all.
    """

    error: str | None = None
    upstream: str = "home"
    attempts: int = 1
    home: int = 1
    spare: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One thing that goes wrong, and what is promised about it.

    `first` is what `home` does with its first requests, `then` with all others; `spare` what the
    other candidate does with each. `route` and `home` are configuration over the demo's own. `play`
    makes the calls through Steer, `alone` those without it (None: there is nothing to compare),
    which are watched for `watch` seconds at most. `check` says what else is not as promised.
    """

    name: str
    title: str
    about: str
    expected: Expected
    dialect: str = "openai"
    stream: bool = False
    first: tuple[Behaviour, ...] = ()
    then: Behaviour = healthy
    spare: Behaviour = healthy
    route: Mapping[str, Any] = field(default_factory=dict)
    home: Mapping[str, Any] = field(default_factory=dict)
    play: Play = one_call
    alone: Play | None = one_call
    watch: float = 3.0
    check: Callable[[Stage], str | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Result:
    """How a scenario ended, with Steer and without; `fault` is why it is not as promised."""

    scenario: Scenario
    story: Story
    steered: Ending
    alone: Ending
    seconds: float
    fault: str | None = None


@dataclass(slots=True)
class Stage:
    """What a scenario can act on while it plays."""

    scenario: Scenario
    story: Story
    home: Provider
    spare: Provider
    caller: Caller
    seen: list[Seen] = field(default_factory=list)

    async def ask(self) -> Seen:
        """Make the scenario's call."""
        self.story.heard = ""
        seen = await self.caller.ask(stream=self.scenario.stream, heard=self.story.hear)
        self.seen.append(seen)
        return seen

    async def ask_and_tell(self, which: str) -> Seen:
        """Make a call and tell how it ended: for scenarios of several."""
        seen = await self.ask()
        self.story.tell("caller", f"{which}: {ending(seen).text}", Tone.NOTE)
        return seen


@dataclass(frozen=True, slots=True)
class _ToldClock(Clock):
    """The sidecar's clock: its waits are told when they begin, and its dice always show the middle,
    so that the demo is the same every time."""

    jitter: Callable[[], float] = lambda: 0.5
    story: Story = field(default_factory=Story)

    async def sleep(self, seconds: float) -> None:
        """Wait, and say so."""
        if seconds > 0:
            self.story.tell("Steer", f"waits {seconds:.2f} s", Tone.WAIT, seconds)
        await asyncio.sleep(seconds)


class _Listener(logging.Handler):
    """Tells what the engine logs about breakers, gates and credentials."""

    def __init__(self, story: Story) -> None:
        super().__init__()
        self._story = story

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "steer.engine":
            self._story.tell("Steer", record.getMessage(), Tone.NOTE)


async def perform(scenario: Scenario, story: Story) -> Result:
    """Play a scenario, beside the same call without Steer."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    alone = (
        None if scenario.alone is None else asyncio.create_task(_alone(scenario.alone, scenario))
    )
    try:
        async with asyncio.timeout(PATIENCE):
            stage = await _with(scenario, story)
            without = NOT_TRIED if alone is None else await alone
    except TimeoutError:
        stuck = Ending(f"no end in {PATIENCE:g} s", "no end", good=False)
        return Result(scenario, story, stuck, NOT_TRIED, PATIENCE, stuck.text)
    finally:
        if alone is not None and not alone.done():
            alone.cancel()
            await asyncio.wait({alone})
    steered = ending(stage.seen[-1])
    return Result(scenario, story, steered, without, loop.time() - began, _fault(stage))


async def _with(scenario: Scenario, story: Story) -> Stage:
    home = Provider("home", CALLERS_KEY, scenario.then, deque(scenario.first), story)
    spare = Provider("spare", SPARE_KEY, scenario.spare, story=story)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_listening(story))
        for provider in (home, spare):
            await provider.start()
            stack.push_async_callback(provider.stop)
        config = configuration(scenario, home.address, spare.address)
        sidecar = await stack.enter_async_context(Sidecar(config, _ToldClock(story=story)))
        client = caller(
            scenario.dialect,
            f"http://127.0.0.1:{sidecar.port}/{scenario.dialect}",
            CALLERS_KEY,
        )
        stack.push_async_callback(client.close)
        stage = Stage(scenario, story, home, spare, client)
        story.begin()
        await scenario.play(stage)
    return stage


async def _alone(play: Play, scenario: Scenario) -> Ending:
    """The same, made by the same SDK of the same kind of provider, with nothing in between."""
    home = Provider("home", CALLERS_KEY, scenario.then, deque(scenario.first))
    spare = Provider("spare", SPARE_KEY, scenario.spare)
    await home.start()
    client = caller(scenario.dialect, home.address, CALLERS_KEY)
    stage = Stage(scenario, Story(), home, spare, client)
    try:
        async with asyncio.timeout(scenario.watch):
            await play(stage)
    except TimeoutError:
        text = f"not a word in {scenario.watch:g} s; the SDK would wait for 10 minutes"
        return Ending(text, "still waiting", good=False)
    finally:
        await client.close()
        await home.stop()
    requests = len(home.asked)
    end = ending(stage.seen[-1])
    return end if requests < 2 else replace(end, text=f"{end.text}, {requests} requests")


def configuration(scenario: Scenario, home: str, spare: str) -> Config:
    """The sidecar's configuration for a scenario, as a file would say it."""
    version = "" if scenario.dialect == "anthropic" else "/v1"
    upstream = {"dialect": scenario.dialect}
    values = {
        "listen": {"port": 0},
        "admin": {"port": 0},
        "catalogue": False,
        # Made-up calls have no place in a ledger that somebody keeps.
        "database": {"url": "memory:"},
        "upstreams": {
            "home": upstream | {"base_url": home + version} | dict(scenario.home),
            "spare": upstream
            | {
                "base_url": spare + version,
                "credential": {"env": "SPARE_KEY"},
                "models": {"large": {"context_tokens": 128_000}},
            },
        },
        "routes": [
            {
                "name": "demo",
                "path": f"/{scenario.dialect}{version}",
                "candidates": ["home", "spare"],
                **scenario.route,
            }
        ],
    }
    return load(None, {"SPARE_KEY": SPARE_KEY}, values)


@contextlib.contextmanager
def _listening(story: Story) -> Iterator[None]:
    """Hear the engine's log, and keep it off the screen."""
    listener = _Listener(story)
    level, propagate = _ENGINE_LOG.level, _ENGINE_LOG.propagate
    _ENGINE_LOG.addHandler(listener)
    _ENGINE_LOG.setLevel(logging.INFO)
    _ENGINE_LOG.propagate = False
    try:
        yield
    finally:
        _ENGINE_LOG.removeHandler(listener)
        _ENGINE_LOG.setLevel(level)
        _ENGINE_LOG.propagate = propagate


def _fault(stage: Stage) -> str | None:
    """Why a scenario did not end as promised; None when it did."""
    expected, seen = stage.scenario.expected, stage.seen[-1]
    if expected.error is None and seen.error is None and seen.text != ANSWER:
        return f"expected the whole answer, got {seen.text!r}"
    facts: list[tuple[str, object, object]] = [
        ("the outcome", expected.error or "an answer", seen.error or "an answer"),
        ("the upstream", expected.upstream, seen.upstream),
        ("the number of attempts", expected.attempts, seen.attempts),
        ("requests to home", expected.home, len(stage.home.asked)),
        ("requests to spare", expected.spare, len(stage.spare.asked)),
    ]
    for what, wanted, got in facts:
        if wanted != got:
            return f"expected {what} to be {wanted}, got {got} {seen.message}".rstrip()
    return stage.scenario.check(stage)
