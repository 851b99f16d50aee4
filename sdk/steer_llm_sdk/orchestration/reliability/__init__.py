"""How an orchestrator retries, falls back and breaks circuits."""

from __future__ import annotations

from steer_llm_sdk.orchestration.reliability.config import (
    OrchestratorReliabilityConfig,
    RetryPolicy,
)

ReliabilityConfig = OrchestratorReliabilityConfig

__all__ = ["OrchestratorReliabilityConfig", "ReliabilityConfig", "RetryPolicy"]
