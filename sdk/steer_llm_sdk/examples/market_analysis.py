"""A market analysis by three made-up analysts, one of them unreliable; nothing leaves this process.

    python -m steer_llm_sdk.examples.market_analysis

It prints the same each time: a plan and its reasons, attempts and waits, a fallback, the circuits
before, during and after an outage, a replay, a conflict, and what all of it cost.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import Any, Final

from steer_llm_sdk.orchestration import (
    ConflictError,
    OrchestrationConfig,
    ReliableOrchestrator,
    Tool,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
)
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig, RetryPolicy
from steer_llm_sdk.reliability import CircuitBreakerConfig, ProviderError
from steer_llm_sdk.streaming.events import Event, Told
from steer_llm_sdk.streaming.manager import EventManager

#: How long a circuit stays open, in seconds: short, so that you can see it close.
OPEN_FOR: Final = 0.3

QUESTION: Final[dict[str, Any]] = {
    "type": "market_analysis",
    "query": "Is there room for a second bakery in Mill Lane?",
    "metadata": {"depth": "thorough", "region": "north"},
}


class Analyst(Tool):
    """A stand-in for a paid service: it fails as often as `troubles` says, then answers."""

    def __init__(self, name: str, provider: str, cost_usd: float, quality: float) -> None:
        self._name = name
        self._provider = provider
        self._cost_usd = cost_usd
        self._quality = quality
        self.troubles = 0
        self.calls = 0

    @property
    def name(self) -> str:
        """What rules and results call it."""
        return self._name

    @property
    def provider(self) -> str:
        """Whose it is, and so which circuit it is behind."""
        return self._provider

    @property
    def resource_requirements(self) -> dict[str, float]:
        """What a planner may reckon with."""
        return {"cost_usd": self._cost_usd, "quality": self._quality, "ms": 50}

    async def execute(
        self,
        request: Any,
        options: Any = None,  # noqa: ARG002 - nothing to choose here
        event_manager: EventManager | None = None,  # noqa: ARG002 - it does not stream
    ) -> dict[str, Any]:
        """The next trouble, or the answer when they are over."""
        self.calls += 1
        await asyncio.sleep(0.01)
        if self.troubles:
            self.troubles -= 1
            raise ProviderError("overloaded", self._provider, status_code=503)
        return {
            "finding": "there is, if it opens before six",
            "asked": request["query"],
            "confidence": self._quality,
            "usage": {"prompt_tokens": 420, "completion_tokens": 80},
            "cost_usd": self._cost_usd,
        }


@dataclass
class Office:
    """The analysts, the orchestrator over them, and what has been spent."""

    survey: Analyst = field(default_factory=lambda: Analyst("deep_survey", "northwind", 0.04, 0.9))
    poll: Analyst = field(default_factory=lambda: Analyst("street_poll", "eastgate", 0.015, 0.8))
    desk: Analyst = field(default_factory=lambda: Analyst("desk_research", "archive", 0.002, 0.6))
    spent_usd: float = 0.0
    spared_usd: float = 0.0
    orchestrator: ReliableOrchestrator = field(init=False)

    def __post_init__(self) -> None:
        registry = ToolRegistry()
        for tool in self.analysts:
            registry.register_tool(tool)
        self.orchestrator = ReliableOrchestrator(
            planner=RuleBasedPlanner([thorough(), anything_else()]),
            reliability_config=OrchestratorReliabilityConfig(
                retry_policy=RetryPolicy(max_attempts=3, initial_delay=0.05),
                circuit_breaker_configs={
                    "northwind": CircuitBreakerConfig(
                        failure_threshold=4, success_threshold=1, timeout=OPEN_FOR
                    )
                },
            ),
            registry=registry,
        )

    @property
    def analysts(self) -> tuple[Analyst, ...]:
        """All of them."""
        return self.survey, self.poll, self.desk

    async def ask(self, number: int, request: dict[str, Any] = QUESTION, **terms: Any) -> None:
        """Put a question; tell what happens meanwhile, and what came of it."""
        output = await self.orchestrator.run(
            request,
            options=OrchestrationConfig(
                request_id=f"question-{number}",
                deterministic=True,  # the same waits each time
                **terms,
            ),
            event_manager=EventManager(on_delta=tell),
        )
        made, cost = output.metadata, output.cost_usd or 0.0
        if made["request_id"] == f"question-{number}":
            self.spent_usd += cost
        else:
            self.spared_usd += cost
        finding = output.content["finding"] if isinstance(output.content, dict) else output.content
        line("answer", f"{made['tool_name']}: {finding}")
        line(
            "",
            f"attempts {made['retry_attempts']}, confidence {made['confidence']}, {cost:.3f} USD",
        )

    def circuits(self) -> None:
        """Show the state of every circuit."""
        for name, state in self.orchestrator.circuit_breaker_states().items():
            line("circuit", f"{name} is {state}")


def thorough() -> PlanningRule:
    """Thorough questions about the north go to the dearest analyst; others stand in for it."""
    return PlanningRule(
        name="thorough_in_the_north",
        priority=20,
        conditions=[
            RuleCondition("type", "equals", "market_analysis"),
            RuleCondition("metadata.depth", "in", ["thorough", "exhaustive"]),
            RuleCondition("metadata.region", "equals", "north"),
        ],
        action=RuleAction(tool_name="deep_survey", fallback_tools=["street_poll", "desk_research"]),
    )


def anything_else() -> PlanningRule:
    """What no other rule takes."""
    return PlanningRule(name="anything_else", action=RuleAction(tool_name="desk_research"))


async def tell(event: Event) -> None:
    """Print a step of a run as it happens."""
    told = event.metadata
    match told["event_type"]:
        case Told.PLAN_SELECTED:
            line("plan", ", else ".join([told["tool_name"], *told["fallback_tools"]]))
            for reason in told["reasoning"].split("; "):
                line("because", reason)
        case Told.RETRY_ATTEMPT:
            line("again", f"{told['source']} in {told['delay']:g} s, for it was {told['error']}")
        case Told.FALLBACK:
            line("instead", f"{told['to_tool']}, for {told['from_tool']} was {told['reason']}")
        case Told.CIRCUIT_BREAKER_STATE:
            line("circuit", f"{told['circuit']} {told['before']} -> {told['state']}")
        case Told.IDEMPOTENT_REPLAY:
            line("replay", f"of {told['original_request_id']}: nobody was asked")
        case Told.CONFLICT:
            line("conflict", told["error"].partition(",")[0])
        case _:
            pass


async def analyse() -> None:
    """Play all scenes."""
    office = Office()
    say(QUESTION["query"])

    scene("A passing failure is tried again")
    office.survey.troubles = 1
    await office.ask(1)

    scene("An outage: another analyst answers, and the circuit opens")
    office.survey.troubles = 3
    await office.ask(2)
    office.circuits()

    scene("While it is open, the plan does without")
    await office.ask(3)

    scene("Its time is over: a probe finds out that it is back")
    await asyncio.sleep(OPEN_FOR)
    await office.ask(4)
    office.circuits()

    scene("A small budget")
    await office.ask(5, budget={"cost_usd": 0.01})

    scene("One key, one answer that is paid for")
    await office.ask(6, idempotency_key="bakery:mill-lane")
    await office.ask(7, idempotency_key="bakery:mill-lane")

    scene("The same key for something else")
    other = {**QUESTION, "query": "Is there room for a third one?"}
    try:
        await office.ask(8, other, idempotency_key="bakery:mill-lane")
    except ConflictError:
        line("answer", "none: a key belongs to one request")

    scene("What it cost")
    for analyst in office.analysts:
        line("calls", f"{analyst.name} {analyst.calls}")
    line("spent", f"{office.spent_usd:.3f} USD")
    line("spared", f"{office.spared_usd:.3f} USD by the replay")


def scene(title: str) -> None:
    """Print a heading."""
    say(f"\n{title}")


def line(kind: str, text: str) -> None:
    """Print something that happened, below its scene."""
    say(f"  {kind:<9} {text}")


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


def main() -> None:
    """Run the example."""
    asyncio.run(analyse())


if __name__ == "__main__":
    main()
