"""Scripted tools and an ear for events, for tests of the in-process API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from steer_llm_sdk.orchestration import ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.orchestration.planning import PlanningRule, RuleAction, RuleBasedPlanner
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig, RetryPolicy
from steer_llm_sdk.reliability import ProviderError
from steer_llm_sdk.streaming.events import Event
from steer_llm_sdk.streaming.manager import EventManager


class Scripted(Tool):
    """Plays a script: returns values, raises exceptions, awaits what it is handed; then the last
    step again. Remembers what it was called with, and when."""

    def __init__(
        self,
        name: str,
        *script: Any,
        provider: str | None = None,
        capabilities: tuple[str, ...] = (),
        defaults: Mapping[str, Any] | None = None,
        needs: Mapping[str, Any] | None = None,
        valid: Callable[[Any], Any] = lambda _: True,
    ) -> None:
        self._name = name
        self._provider = provider
        self._capabilities = capabilities
        self._defaults = defaults or {}
        self._needs = needs or {}
        self._valid = valid
        self.script = list(script) or [{"by": name}]
        self.requests: list[Any] = []
        self.options: list[dict[str, Any]] = []
        self.managers: list[EventManager | None] = []
        self.moments: list[float] = []
        self.running = 0
        self.most = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def provider(self) -> str | None:
        return self._provider

    @property
    def capabilities(self) -> tuple[str, ...]:
        return self._capabilities

    @property
    def default_options(self) -> Mapping[str, Any]:
        return self._defaults

    @property
    def resource_requirements(self) -> Mapping[str, Any]:
        return self._needs

    def validate_request(self, request: Any) -> Any:
        return self._valid(request)

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.requests.append(request)
        self.options.append(options)
        self.managers.append(event_manager)
        self.moments.append(asyncio.get_running_loop().time())
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if callable(step) and not isinstance(step, type):
                step = await step(request, options, event_manager)
        finally:
            self.running -= 1
        if isinstance(step, BaseException):
            raise step
        return step

    @property
    def calls(self) -> int:
        return len(self.requests)

    @property
    def waits(self) -> list[float]:
        """Seconds between its calls."""
        pairs = zip(self.moments, self.moments[1:], strict=False)
        return [round(later - before, 6) for before, later in pairs]


def lasting(seconds: float, value: Any = "done") -> Callable[..., Any]:
    """A step that takes its time."""

    async def step(*_: Any) -> Any:
        await asyncio.sleep(seconds)
        return value

    return step


def unwell(
    status: int | None = 503, retry_after: float | None = None, provider: str = "acme"
) -> ProviderError:
    return ProviderError("not now", provider, status_code=status, retry_after=retry_after)


class Ear:
    """Hears every event of runs it is given to."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.manager = EventManager(self._hear, self._hear, self._hear, self._hear, self._hear)

    async def _hear(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.events.append(event)

    @property
    def types(self) -> list[str]:
        """What each event is about, in order."""
        return [str(event.metadata["event_type"]) for event in self.events]

    def of(self, event_type: str) -> list[Mapping[str, Any]]:
        """The facts of every event about this."""
        return [
            event.metadata for event in self.events if event.metadata["event_type"] == event_type
        ]


def registry_of(*tools: Tool) -> ToolRegistry:
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    return registry


def always(name: str, *fallbacks: str, **action: Any) -> RuleBasedPlanner:
    """A planner that sends everything to one tool, with fallbacks."""
    return RuleBasedPlanner(
        [PlanningRule("always", action=RuleAction(name, fallback_tools=fallbacks, **action))]
    )


def reliable(
    *tools: Tool,
    retry: Mapping[str, Any] | None = None,
    planner: RuleBasedPlanner | None = None,
    manager: Any = None,
    **config: Any,
) -> ReliableOrchestrator:
    """An orchestrator over these tools; without a planner, all but the first are its fallbacks."""
    return ReliableOrchestrator(
        planner or always(tools[0].name, *(tool.name for tool in tools[1:])),
        OrchestratorReliabilityConfig(
            retry_policy=RetryPolicy(**{"jitter_factor": 0.0, **(retry or {})}), **config
        ),
        manager,
        registry=registry_of(*tools),
    )
