"""What a run with an idempotency key may raise besides `ConflictError`, and in which words."""

from __future__ import annotations

from typing import Any, Final

from steer_llm_sdk.errors import ConflictError, OrchestratorError

_NONE: Final = object()


class IdempotencyError(OrchestratorError):
    """A run with an idempotency key could not be served.

    Attributes:
        executed: whether this very call has run its tool to the end.
        value: the result of that, which could not be kept; None when there is none.
    """

    def __init__(self, message: str, *, value: Any = _NONE) -> None:
        super().__init__(message)
        self.executed = value is not _NONE
        self.value = value if self.executed else None


class UncertainOutcomeError(IdempotencyError):
    """The tool may have been run for this key, and its result is lost: it is not run again.

    It was interrupted, or its process died. Find out what it did, then use a new key; one whose
    record is in SQL can be settled with `steer ledger resolve`. A manager with
    `on_uncertain="rerun"` runs it again without asking.
    """


class NotStorableError(IdempotencyError):
    """A request or a result is not JSON, or too large, and so nothing can be kept for its key.

    A request is refused before anything is run. Of a result the key remembers that there was one:
    its duplicates raise `ResultNotStoredError`.

    Attributes:
        path: where in the value, such as `content.items[3].when`; "" for the whole of it.
    """

    def __init__(self, message: str, path: str, *, value: Any = _NONE) -> None:
        super().__init__(message, value=value)
        self.path = path


class ResultNotStoredError(IdempotencyError):
    """The tool was run for this key, its result was not kept, and it is not run again."""


class StoreUnavailableError(IdempotencyError):
    """The store of idempotency records cannot be used now.

    Unless `executed`, nothing was run. The message says why and, where waiting does not help (a
    SQLite file that another process writes, a schema to be migrated first), what to do.
    """


class KeyInProgressError(IdempotencyError):
    """The run with this key goes on, and this duplicate has waited as long as it may.

    Run again with the same key to wait on.
    """


class JoinedRunFailedError(IdempotencyError):
    """The run with this key, made by another process, has failed; the key is free again."""


# --- What all stores say in the same words -------------------------------------------------------


def conflict(key: str) -> ConflictError:
    """The key is taken."""
    return ConflictError(
        f"the idempotency key {key!r} was used for another request, or for another tool named "
        "explicitly: use a new key for a new request"
    )


def not_stored(key: str) -> ResultNotStoredError:
    """The tool was run; what it gave is not there."""
    return ResultNotStoredError(
        f"the tool was run for the idempotency key {key!r}, and its result was not kept: it is not "
        "run again; use a new key"
    )


def uncertain(key: str, remedy: str = "") -> UncertainOutcomeError:
    """The tool may have been run."""
    return UncertainOutcomeError(
        f"the tool may have been run for the idempotency key {key!r}, and its result is lost, so "
        f"it is not run again: find out what it did, then {remedy}use a new key. A tool that tells "
        "repeats by the key, as HttpTool does, may be run again with the same one "
        '(on_uncertain="rerun")'
    )


def unavailable(error: Exception) -> StoreUnavailableError:
    """Nothing protects a run from being made twice now, so it is not made."""
    return StoreUnavailableError(
        "this run cannot be protected from being made twice now: the ledger is unavailable "
        f"({error}). Nothing was run."
    )
