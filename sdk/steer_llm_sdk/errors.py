"""What can go wrong in a run, by whose fault it is; `orchestration` exports most of these.

Every one is an `OrchestratorError`. Where Python has a word of its own for the same thing, an error
is that too: a refused value is a `ValueError`, an unknown tool a `LookupError`, a passed deadline a
`TimeoutError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.output import OrchestrationOutput


def words_of(error: BaseException | None) -> str:
    """What an exception says of itself, or else its name: foreign ones may fail even at that."""
    if error is None:
        return ""
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - a foreign method
        return type(error).__name__


class OrchestratorError(Exception):
    """Anything that keeps a run from its result.

    `request_id` and `trace_id` are those of the run that met it, once it has any; who joined that
    run by its key gets the same error.
    """

    request_id: str | None = None
    trace_id: str | None = None


class InvalidValue(OrchestratorError, ValueError):
    """A value that cannot be used; the message begins with the name of its field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class UnknownTool(OrchestratorError, LookupError):
    """No tool of this name is registered; the message names those that are."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.tool_name = name


class PlanningError(OrchestratorError):
    """No registered tool can take the request; `reasons` say why each of them dropped out."""

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class ConflictError(OrchestratorError):
    """The idempotency key belongs to another request, or to another tool."""


class BudgetExceeded(OrchestratorError):
    """A budget would be, or was, exceeded.

    Attributes:
        budget_type: ms, tokens or cost_usd.
        limit: the budget, in its own unit.
        actual: what was estimated before the run, or measured in it.
        output: what the run gave, when it was finished before its cost was known; else None.
    """

    def __init__(
        self,
        budget_type: str,
        limit: float,
        actual: float,
        output: OrchestrationOutput | None = None,
    ) -> None:
        super().__init__(f"budget.{budget_type}: {actual:g} exceed the limit of {limit:g}")
        self.budget_type = budget_type
        self.limit = limit
        self.actual = actual
        self.output = output


class RunTimeout(OrchestratorError, TimeoutError):
    """The run did not end within its `timeout_ms`."""


class ToolExecutionError(OrchestratorError):
    """No tool gave a result; the last tool's own error is the `__cause__`.

    Attributes:
        tool_name: the tool that failed last.
        attempts: how many attempts the run made, at all tools.
        retry_after: seconds after which another run may do better, where that is known.
        maybe_executed: an attempt may have had an effect although it gave no result.
        details: what became of each attempt: tool, provider, failure and words of it.
    """

    def __init__(
        self,
        message: str,
        *,
        tool_name: str | None = None,
        attempts: int = 0,
        retry_after: float | None = None,
        maybe_executed: bool = False,
        details: tuple[dict[str, Any], ...] = (),
    ) -> None:
        super().__init__(message)
        self.tool_name = tool_name
        self.attempts = attempts
        self.retry_after = retry_after
        self.maybe_executed = maybe_executed
        self.details = details


class CircuitOpen(ToolExecutionError):
    """Nothing was tried, since the circuit of every tool in question is open.

    `retry_after` says in how many seconds the first of them is probed.
    """


class ProviderError(Exception):
    """A provider's failure, raised by tools so that retries and breakers can tell its kind.

    `status_code` is the HTTP status, `retry_after` the delay that the provider asked for, in
    seconds; None where there was none.
    """

    def __init__(
        self,
        message: str,
        provider: str,
        status_code: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status_code = status_code
        self.retry_after = retry_after
