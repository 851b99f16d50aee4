"""What a run of the in-process API costs around a tool that does nothing."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.table import Table

from bench.report import short
from steer_llm_sdk.orchestration import OrchestrationConfig, ReliableOrchestrator, Tool
from steer_llm_sdk.orchestration.planning import (
    RuleBasedPlanner,
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
)
from steer_llm_sdk.orchestration.tools import ToolRegistry

_MICRO: Final = 1e6
_MILLI: Final = 1e3

#: Runs measured one by one, and rounds of them; the best round's median counts.
ROUNDS: Final = 5

#: Processes that import the package, for the time that takes.
IMPORTS: Final = 5

_REQUEST: Final = {
    "type": "analysis",
    "query": "How do umbrellas sell in a dry spring?",
    "metadata": {"priority": "usual"},
}
_IMPORT: Final = (
    "import time; began = time.perf_counter(); from steer_llm_sdk.orchestration import *; "
    "print(time.perf_counter() - began)"
)


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds, per round (the median of its runs) or per process."""

    direct: list[float] = field(default_factory=list)
    named: list[float] = field(default_factory=list)
    planned: list[float] = field(default_factory=list)
    keyed: list[float] = field(default_factory=list)
    replayed: list[float] = field(default_factory=list)
    imported: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report; `target` is the most it may be."""

    what: str
    unit: str
    value: float
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.value <= self.target


class _Idle(Tool):
    """A tool that does nothing."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def provider(self) -> str:
        """Whose circuit it has."""
        return "openai"

    async def execute(
        self,
        request: Any,  # noqa: ARG002
        options: Any = None,  # noqa: ARG002
        event_manager: Any = None,  # noqa: ARG002
    ) -> Any:
        """Nothing."""
        return {"text": "ok"}


def measure(runs: int, say: Callable[[str], None]) -> Samples:
    """Measure so many runs in each round."""
    samples = Samples()
    for number in range(ROUNDS):
        say(f"in-process runs, round {number + 1} of {ROUNDS}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_round(samples, runs))
    for _ in range(IMPORTS):
        say("importing the in-process API")
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True
        )
        samples.imported.append(float(done.stdout))
    return samples


async def _round(samples: Samples, runs: int) -> None:
    registry = ToolRegistry()
    for name in ("analysis_tool", "deep_tool", "check_tool"):
        registry.register_tool(_Idle(name))
    planner = RuleBasedPlanner(
        [
            create_keyword_based_rule(["deep", "thorough"], "query", "deep_tool", priority=20),
            create_type_based_rule("check", "check_tool", priority=10),
            create_budget_aware_rule("analysis_tool", priority=5),
        ]
    )
    orchestrator = ReliableOrchestrator(planner, registry=registry)
    tool = registry.get_tool("analysis_tool")
    numbers = iter(range(10 * runs))

    def keyed(number: int) -> Any:
        options = OrchestrationConfig(idempotency_key=f"key-{number}")
        return orchestrator.run(_REQUEST, options=options)

    await _times(lambda: orchestrator.run(_REQUEST), runs // 10)  # warm
    samples.direct.append(await _times(lambda: tool.execute(_REQUEST), runs))
    samples.named.append(
        await _times(lambda: orchestrator.run(_REQUEST, tool_name="analysis_tool"), runs)
    )
    samples.planned.append(await _times(lambda: orchestrator.run(_REQUEST), runs))
    samples.keyed.append(await _times(lambda: keyed(next(numbers)), runs))
    samples.replayed.append(await _times(lambda: keyed(-1), runs))


async def _times(work: Callable[[], Any], runs: int) -> float:
    """The median of each one's time, in seconds."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def figures(samples: Samples) -> list[Figure]:
    """The report's lines; of several rounds the best, for all else only makes them slower."""

    def median(name: str) -> float:
        best: float = min(getattr(samples, name))
        return best * _MICRO

    return [
        Figure("the tool alone, median", "µs", median("direct")),
        Figure("run of a named tool, median", "µs", median("named")),
        Figure("run with planner and circuit, median", "µs", median("planned"), 60.0),
        Figure("run with a new key, in memory, median", "µs", median("keyed")),
        Figure("replay of a key, in memory, median", "µs", median("replayed")),
        Figure("import", "ms", min(samples.imported) * _MILLI, 300.0),
    ]


def show(lines: list[Figure]) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("in-process")
    for name in ("Steer", "unit", "target"):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
    table.add_column("")
    for each in lines:
        table.add_row(
            each.what,
            short(each.value),
            each.unit,
            "" if each.target is None else f"{each.target:g}",
            {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[each.met],
        )
    Console(highlight=False).print(table)
