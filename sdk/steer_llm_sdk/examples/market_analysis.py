"""A market analysis by three made-up analysts, one of them unreliable; nothing leaves this process.

    python -m steer_llm_sdk.examples.market_analysis

It prints the same each time: a plan and its reasons, attempts and waits, a fallback, the circuits
before and after an outage, a replay, a conflict, and what all of it cost.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, Final

from steer_llm_sdk.orchestration import (
    ConflictError,
    OrchestrationConfig,
    OrchestrationOutput,
    ReliableOrchestrator,
    Tool,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    create_type_based_rule,
)
from steer_llm_sdk.orchestration.reliability import OrchestratorReliabilityConfig, RetryPolicy
from steer_llm_sdk.reliability import CircuitBreakerConfig, ProviderError
from steer_llm_sdk.streaming.manager import EventManager

#: Seconds for which the unreliable vendor's circuit stays open; short, so that you see it close.
OUTAGE: Final = 0.3

QUESTION: Final = {
    "type": "market_analysis",
    "query": "Is there room for a second bakery in Mill Lane?",
    "metadata": {"depth": "thorough"},
}


class Analyst(Tool):
    """A tool that plays a script: what is an exception is raised, what is a text is answered."""

    def __init__(self, name: str, provider: str, cost_usd: float, quality: float) -> None:
        self._name = name
        self._provider = provider
        self._cost_usd = cost_usd
        self._quality = quality
        self.script: list[Exception] = []
        self.calls = 0

    @property
    def name(self) -> str:
        """What rules and results call it."""
        return self._name

    @property
    def provider(self) -> str:
        """Whose it is: the circuit it belongs to."""
        return self._provider

    async def execute(
        self,
        request: Any,
        options: dict[str, Any] | None = None,
        event_manager: EventManager | None = None,
    ) -> Any:
        """The next step of the script, or the answer when it is over."""
        self.calls += 1
        if self.script:
            raise self.script.pop(0)
        return {
            "finding": f"{self._name}: yes, if it opens before six",
            "confidence": self._quality,
            "usage": {"prompt_tokens": 420, "completion_tokens": 80, "total_tokens": 500},
            "cost_usd": self._cost_usd,
        }


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")


def main() -> None:
    """Run the example."""
    asyncio.run(analyse())


if __name__ == "__main__":
    main()
