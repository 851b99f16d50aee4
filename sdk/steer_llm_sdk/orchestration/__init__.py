"""Orchestrators, the terms of their runs, tools, and what can go wrong."""

from __future__ import annotations

from steer_llm_sdk.errors import (
    BudgetExceeded,
    CircuitOpen,
    ConflictError,
    InvalidValue,
    OrchestratorError,
    PlanningError,
    RunTimeout,
    ToolExecutionError,
    UnknownTool,
)
from steer_llm_sdk.orchestration.base import Orchestrator
from steer_llm_sdk.orchestration.config import OrchestrationConfig
from steer_llm_sdk.orchestration.orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.tools import Tool, ToolRegistry, get_global_registry

__all__ = [
    "BudgetExceeded",
    "CircuitOpen",
    "ConflictError",
    "InvalidValue",
    "OrchestrationConfig",
    "OrchestrationOutput",
    "Orchestrator",
    "OrchestratorError",
    "PlanningError",
    "ReliableOrchestrator",
    "RunTimeout",
    "Tool",
    "ToolExecutionError",
    "ToolRegistry",
    "UnknownTool",
    "get_global_registry",
]
