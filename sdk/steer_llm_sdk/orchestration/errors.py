"""The errors of a run (defined in `steer_llm_sdk.errors`, which imports nothing)."""

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

__all__ = [
    "BudgetExceeded",
    "CircuitOpen",
    "ConflictError",
    "InvalidValue",
    "OrchestratorError",
    "PlanningError",
    "RunTimeout",
    "ToolExecutionError",
    "UnknownTool",
]
