"""The guide of the in-process API does what it says: every block of code runs and prints what it
shows."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import errno
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
import yaml

from steer_llm_sdk.errors import OrchestratorError
from steer_llm_sdk.orchestration import (
    ConflictError,
    OrchestrationConfig,
    OrchestrationOutput,
    ReliableOrchestrator,
    Tool,
    ToolRegistry,
    errors,
    get_global_registry,
)
from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    PlanRequest,
    RuleAction,
    RuleBasedPlanner,
)
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig, RetryPolicy
from steer_llm_sdk.reliability import CircuitBreakerConfig, ProviderError, idempotency
from steer_llm_sdk.streaming.events import Event, EventType, Told
from steer_llm_sdk.streaming.manager import EventManager
from steer_policies.operators import Operator
from tests.provider import Provider, faults, json_answer
from tests.support.sidecar import configure, running

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "guide"
PAGES: Final = {path.name: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.md"))}
TOPICS: Final = sorted(set(PAGES) - {"README.md"})

_FENCE: Final = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)

#: What a page may hold beside Python: its output, and what other tests check.
_OTHER_KINDS: Final = frozenset({"text", "yaml", "mermaid"})


@dataclass(frozen=True)
class Block:
    """A block of Python, and the output shown right below it."""

    page: str
    line: int
    code: str
    shown: str | None

    @property
    def program(self) -> bool:
        """Whether it brings its own loop, and so has to be run as a program."""
        return "asyncio.run(" in self.code


def blocks(page: str) -> Iterator[Block]:
    text = PAGES[page]
    for match in _FENCE.finditer(text):
        if match["kind"] != "python":
            continue
        after = _FENCE.match(text, match.end() + 1) if text[match.end() :].strip() else None
        shown = after["body"] if after is not None and after["kind"] == "text" else None
        yield Block(page, text.count("\n", 0, match.start("body")), match["body"], shown)


PROGRAMS: Final = [block for page in PAGES for block in blocks(page) if block.program]


def test_there_is_a_guide() -> None:
    """Pages, each with code; the regular expression that finds it works."""
    assert len(TOPICS) >= 15
    assert all(any(blocks(page)) for page in TOPICS)
    for page, text in PAGES.items():
        found = [match["kind"] for match in _FENCE.finditer(text)]
        assert len(found) * 2 == len(re.findall(r"^```", text, re.MULTILINE)), page
        assert set(found) <= {"python", *_OTHER_KINDS}, page
        outputs = sum(block.shown is not None for block in blocks(page))
        assert outputs == found.count("text"), f"{page}: an output without its code"


@pytest.mark.parametrize("page", TOPICS)
async def test_every_block_runs(page: str, tmp_path: Path, monkeypatch: Any) -> None:
    """In the order of the page, in one namespace, printing what stands below it."""
    monkeypatch.chdir(tmp_path)
    try:
        if page == "sidecar.md":
            async with library(tmp_path) as address:
                await run_page(page, {"http://127.0.0.1:4100": address})
        else:
            await run_page(page, {})
    finally:
        get_global_registry().clear()


async def run_page(page: str, addresses: Mapping[str, str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if not block.program:
            printed = await run(block, names, addresses)
            place = f"{page}:{block.line + 1}"
            assert block.shown in {None, printed}, f"{place} prints\n{printed}"
            assert block.shown is not None or not printed, f"{place} prints\n{printed}"


@contextlib.asynccontextmanager
async def library(tmp_path: Path) -> AsyncIterator[str]:
    """The sidecar that the page configures, before the service it speaks of; gives its address."""
    found = _FENCE.finditer(PAGES["sidecar.md"])
    configuration = next(match["body"] for match in found if match["kind"] == "yaml")
    titles = json_answer(200, {"titles": ["The Tides", "Moon and Sea"]})
    async with Provider(name="library") as service:
        service.then(faults.status(503), to=lambda attempt: True)
        service.when(lambda attempt: b"trouble" in attempt.body, faults.status(503))
        service.always(titles)
        settings = yaml.safe_load(configuration.replace("http://127.0.0.1:9000", service.base_url))
        async with running(configure(settings, tmp_path)) as steer:
            yield steer.url


async def run(block: Block, names: dict[str, Any], addresses: Mapping[str, str]) -> str:
    """Run a block as the asyncio REPL would, with `await` outside of functions."""
    source = "\n" * block.line + block.code
    for told, actual in addresses.items():
        source = source.replace(told, actual)
    code = compile(
        source,
        f"docs/guide/{block.page}",
        "exec",
        ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, names)  # noqa: S307 - our own documentation
        if inspect.iscoroutine(result):
            await result
    return printed.getvalue()


@pytest.mark.parametrize("block", [pytest.param(each, id=each.page) for each in PROGRAMS])
def test_every_program_runs(block: Block, tmp_path: Path) -> None:
    """Copied to a file and started, on the real clock."""
    file = tmp_path / "program.py"
    file.write_text(block.code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == block.shown


# --- form


@pytest.mark.parametrize("page", TOPICS)
def test_pages_begin_with_the_gain_and_end_with_the_dangers(page: str) -> None:
    """What the reader gets comes first, and the last heading tells what can go wrong."""
    first = PAGES[page].split("\n\n")[1]
    assert first.startswith("**You get** "), page
    headings = re.findall(r"^## (.+)$", _FENCE.sub("", PAGES[page]), re.MULTILINE)
    assert headings[-1] == "Dangers"
    assert PAGES[page].partition("\n## Dangers\n")[2].count("\n- ") >= 2


def test_every_page_is_listed() -> None:
    """The table of contents links each page once."""
    linked = re.findall(r"\]\(([a-z-]+\.md)\)", PAGES["README.md"])
    assert sorted(set(linked)) == TOPICS


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    below = f"\n{PAGES[page]}".partition(f"\n{heading}\n")[2]
    lines = below.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    return found


# --- reference


def names(cell: str) -> list[str]:
    """The names in backquotes of a cell, in order."""
    return re.findall(r"`([^`]+)`", cell)


def named(page: str, heading: str) -> list[str]:
    """The names in the first column of a table."""
    return [name for row in table(page, heading) for name in names(row[0])]


@pytest.mark.parametrize(
    ("page", "heading", "kind"),
    [
        ("first-run.md", "## Options of a run", OrchestrationConfig),
        ("retries.md", "## How long is waited", RetryPolicy),
        ("circuit-breakers.md", "## Settings", CircuitBreakerConfig),
    ],
)
def test_settings_are_those_of_the_code(page: str, heading: str, kind: Any) -> None:
    """Every field, with its default."""
    told = {name: names(row[1])[0] for row in table(page, heading) for name in names(row[0])}
    expected = {}
    for each in fields(kind):
        if each.init:
            made = each.default_factory
            value = each.default if made is MISSING else made()
            expected[each.name] = repr(value)
    assert told == expected


def test_the_fields_of_results_are_those_of_the_code() -> None:
    told = named("first-run.md", "## What comes back")
    assert sorted(told) == sorted(each.name for each in fields(OrchestrationOutput))


def test_the_context_is_that_of_the_code() -> None:
    told = named("planning.md", "## Context")
    assert sorted(told) == sorted(each.name for each in fields(PlanRequest) if each.init)


def test_the_usual_breakers_are_those_of_the_code() -> None:
    """What an orchestrator uses that is given no configuration."""
    below = PAGES["circuit-breakers.md"].partition("An orchestrator's own, by provider:")[2]
    told = re.findall(
        r"^\| `(\w+)` \| (\d+) \| (\d+) s \| (\d+) s \| (\d+) \|$", below, re.MULTILINE
    )
    assert told == [
        (
            name,
            f"{config.failure_threshold}",
            f"{config.timeout:g}",
            f"{config.window_size:g}",
            f"{config.success_threshold}",
        )
        for name, config in OrchestratorReliabilityConfig().circuit_breaker_configs.items()
    ]


def test_members_of_tools_are_those_of_the_code() -> None:
    told = named("tools.md", "# Tools")
    assert set(told) >= {name for name in vars(Tool) if not name.startswith("_")}


def test_operators_are_those_of_the_code() -> None:
    assert sorted(named("rules.md", "## Operators")) == sorted(Operator)


def test_events_are_those_of_the_code() -> None:
    assert list(named("events.md", "## Callbacks")) == [f"on_{kind}" for kind in EventType]
    assert sorted(named("events.md", "## Steps")) == sorted(Told)


def test_every_error_is_told() -> None:
    """Those of a run, and those of keys."""
    told = set(named("first-run.md", "## When there is no result"))
    known = {*errors.__all__, *(name for name in idempotency.__all__ if name.endswith("Error"))}
    assert told == known
    assert all(
        issubclass(getattr(errors, name, None) or getattr(idempotency, name), OrchestratorError)
        for name in known
    )


class _Ailing(Tool):
    """Fails every time."""

    provider = "north"

    @property
    def name(self) -> str:
        return "ailing"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        raise ProviderError("down", "north", status_code=500)


class _Well(Tool):
    @property
    def name(self) -> str:
        return "well"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return "done"


async def test_what_events_hold_is_told() -> None:
    """Every member of every step's metadata is in the table, and there is no other."""
    told = {names(row[0])[0]: set(names(row[2])) for row in table("events.md", "## Steps")}
    found: dict[str, set[str]] = {}

    async def on_delta(event: Event) -> None:
        members = set(event.metadata) - {"event_type"}
        found.setdefault(event.metadata["event_type"], set()).update(members)

    registry = ToolRegistry()
    registry.register_tool(_Ailing())
    registry.register_tool(_Well())
    action = RuleAction(tool_name="ailing", fallback_tools=["well"])
    orchestrator = ReliableOrchestrator(
        planner=RuleBasedPlanner([PlanningRule(name="always", action=action)]),
        reliability_config=OrchestratorReliabilityConfig(
            circuit_breaker_configs={"north": CircuitBreakerConfig(failure_threshold=2)}
        ),
        registry=registry,
    )
    options = OrchestrationConfig(idempotency_key="k")
    events = EventManager(on_delta=on_delta)
    for _ in range(2):
        await orchestrator.run("a", options=options, event_manager=events)
    with pytest.raises(ConflictError):
        await orchestrator.run("b", options=options, event_manager=events)
    shy = _Scripted(refused(429, retry_after=3))
    registry.register_tool(shy)
    for _ in range(2):  # the second waits for what the first was told
        with contextlib.suppress(OrchestratorError):
            await orchestrator.run(
                "a",
                shy.name,
                options=OrchestrationConfig(retry_on_failure=False),
                event_manager=events,
            )
    told["circuit_breaker_state"].discard("provider:tool")
    assert found == told


# --- tables of behaviour


class _Scripted(Tool):
    """Raises, or waits, once; then answers."""

    provider = "north"
    resource_requirements = MappingProxyType({"cost_usd": 0.2})

    def __init__(self, trouble: BaseException | float) -> None:
        self.trouble: BaseException | float | None = trouble
        self.calls = 0

    @property
    def name(self) -> str:
        return "scripted"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.calls += 1
        trouble, self.trouble = self.trouble, None
        if isinstance(trouble, BaseException):
            raise trouble
        await asyncio.sleep(trouble or 0)
        return "done"


def refused(status: int, **more: Any) -> ProviderError:
    return ProviderError("no", "north", status_code=status, **more)


#: What the first column of "What is tried again" stands for.
TROUBLES: Final[dict[str, list[BaseException | float]]] = {
    "`ProviderError` with 429": [refused(429), refused(429, retry_after=3)],
    "`ProviderError` with 500, 502, 503, 504, 529 and other 5xx": [
        refused(status) for status in (500, 502, 503, 504, 529, 520, 599)
    ],
    "`ProviderError` with 408, 409, 425": [refused(status) for status in (408, 409, 425)],
    "`TimeoutError`, `per_agent_timeout_ms`": [TimeoutError(), 10.0],
    "`ConnectionError`, network errors among `OSError`": [
        ConnectionError(),
        ConnectionRefusedError(),
        ConnectionResetError(),
        OSError(errno.ENETUNREACH, "unreachable"),
    ],
    "`ProviderError` with 401, 403": [refused(401), refused(403)],
    "`ProviderError` with 400, 404 and other 4xx": [refused(400), refused(404), refused(422)],
    "`ValueError`, `TypeError`, whatever their message says": [
        ValueError("429 timeout"),
        TypeError("connection reset, try again"),
    ],
    "`LookupError`, `AttributeError` and the like; `OSError` not of the network": [
        KeyError("odd"),
        AttributeError("odd"),
        AssertionError("odd"),
        FileNotFoundError(errno.ENOENT, "odd"),
    ],
    "anything else": [RuntimeError("odd"), OSError("odd")],
    "`CancelledError`": [asyncio.CancelledError()],
}


def test_every_kind_of_failure_is_tried_out() -> None:
    assert [row[0] for row in table("retries.md", "## What is tried again")] == list(TROUBLES)


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row[0]) for row in table("retries.md", "## What is tried again")]
)
async def test_what_is_tried_again(row: list[str]) -> None:
    """As the table says, with and without the switch; a fallback is asked where it says so."""
    kind, told, switch = row
    for off in (False, True) if switch else (False,):
        flags: dict[str, Any] = {names(switch)[0].partition("=")[0]: False} if off else {}
        for trouble in TROUBLES[kind]:
            alone, policy = _Scripted(trouble), RetryPolicy(**flags)
            await falls_back(alone, policy)
            assert (alone.calls > 1) is (told.startswith("yes") and not off), (trouble, off)
            fell_back = await falls_back(_Scripted(trouble), policy, _Well())
            assert fell_back is (off or "fallback" in told), (trouble, off)


async def falls_back(tool: Tool, policy: RetryPolicy, *others: Tool) -> bool:
    """Whether another tool gives the result in this one's place."""
    registry = ToolRegistry()
    for each in (tool, *others):
        registry.register_tool(each)
    action = RuleAction(tool_name=tool.name, fallback_tools=[each.name for each in others])
    orchestrator = ReliableOrchestrator(
        planner=RuleBasedPlanner([PlanningRule(name="always", action=action)]),
        reliability_config=OrchestratorReliabilityConfig(retry_policy=policy),
        registry=registry,
    )
    options = OrchestrationConfig(per_agent_timeout_ms=5_000)
    try:
        output = await orchestrator.run("x", options=options)
    except (OrchestratorError, asyncio.CancelledError):
        return False
    return bool(output.metadata["fallback_used"])


@dataclass(frozen=True)
class Ending:
    """How a run with a key is made to end."""

    trouble: BaseException | float
    tool: str = "scripted"
    timeout_ms: float | None = None
    budget: Mapping[str, float] | None = None


#: What the first column of the table of keys stands for, in its order.
ENDINGS: Final = (
    [Ending(0.0)],
    [
        Ending(0.0, tool="nobody"),
        Ending(0.0, budget={"cost_usd": 0.1}),
        Ending(ConnectionRefusedError()),
        Ending(refused(429)),
        Ending(refused(503)),
        Ending(ValueError("no")),
    ],
    [
        Ending(TimeoutError()),
        Ending(ConnectionResetError()),
        Ending(refused(502)),
        Ending(refused(504)),
        Ending(RuntimeError("odd")),
    ],
    [Ending(10.0, timeout_ms=5_000), Ending(asyncio.CancelledError())],
)
KEYS: Final = table("idempotency.md", "## Uncertain outcomes")


@pytest.mark.parametrize(
    ("row", "endings"),
    [
        pytest.param(row, endings, id=str(number))
        for number, (row, endings) in enumerate(zip(KEYS, ENDINGS, strict=True))
    ],
)
@pytest.mark.parametrize("on_failure", ["release", "uncertain"])
async def test_what_becomes_of_keys(row: list[str], endings: list[Ending], on_failure: str) -> None:
    """The table says whether the next run with the key executes, replays or is refused."""
    told = row[1].partition(";")[0]
    if f'"{on_failure}"' in row[1]:
        told = row[1].rpartition(": ")[2]
    for ending in endings:
        assert await next_run(ending, on_failure) == told, ending


async def next_run(ending: Ending, on_failure: str) -> str:
    """Run twice with one key; what the first run has left to the second."""
    tool = _Scripted(ending.trouble)
    registry = ToolRegistry()
    registry.register_tool(tool)
    orchestrator = ReliableOrchestrator(
        idempotency_manager=idempotency.IdempotencyManager(on_failure=on_failure),
        registry=registry,
    )

    async def go(name: str, **limits: Any) -> bool:
        options = OrchestrationConfig(idempotency_key="k", retry_on_failure=False, **limits)
        try:
            await orchestrator.run("x", name, options=options)
        except idempotency.UncertainOutcomeError:
            return False
        return True

    with contextlib.suppress(OrchestratorError, asyncio.CancelledError):
        await go(ending.tool, timeout_ms=ending.timeout_ms, budget=ending.budget)
    before = tool.calls
    if not await go("scripted"):
        return "uncertain"
    return "free" if tool.calls > before else "holds it"
