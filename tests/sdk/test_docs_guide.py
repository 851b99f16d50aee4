"""The guide of the in-process API does what it says: every block of code runs and prints what it
shows."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
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
    told["circuit_breaker_state"].discard("provider:tool")
    assert found == told
