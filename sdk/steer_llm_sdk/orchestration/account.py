"""What became of a trial's attempts: for the error when none gave a result, and for the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from steer_llm_sdk.errors import CircuitOpen, ToolExecutionError, words_of
from steer_llm_sdk.orchestration.attempt import Candidate
from steer_llm_sdk.orchestration.run import Run
from steer_policies.outcome import Executed, Verdict
from steer_policies.retry import WaitSource
from steer_proxy.engine.attempt import AttemptRecord

#: Why a tool was not tried.
OPEN: Final = "its circuit is open"
SHUT: Final = "its provider asked not to be called yet"
UNFIT: Final = "refuses the request"


@dataclass(slots=True)
class Account:
    """The account of one trial.

    `made` counts attempts; `last` is the last failure; `maybe_executed` says that an attempt may
    have had an effect although it gave no result.
    """

    run: Run
    made: int = 0
    maybe_executed: bool = False
    last: Exception | None = None
    _details: list[dict[str, Any]] = field(default_factory=list)
    _retry_at: float | None = None

    def attempted(self, candidate: Candidate, provider: str, verdict: Verdict) -> None:
        """An attempt has ended; what has succeeded needs no account."""
        failure = verdict.failure
        if failure is None:
            return
        self._details.append(
            {
                "tool": candidate.name,
                "provider": provider,
                "attempt": candidate.attempts,
                "outcome": str(verdict.outcome),
                "failure": str(failure),
            }
        )
        if verdict.executed is not Executed.NO:
            self.maybe_executed = self.run.maybe_executed = True

    def record(
        self,
        candidate: Candidate,
        verdict: Verdict,
        started: float,
        waited: tuple[float, WaitSource],
        status: int | None = None,
    ) -> None:
        """Keep an attempt, where attempts are kept."""
        records = self.run.records
        if records is None:
            return
        records.append(
            AttemptRecord(
                number=len(records) + 1,
                upstream=candidate.name,
                model=None,
                started=started,
                seconds=self.run.clock.now() - started,
                waited=waited[0],
                wait_source=waited[1],
                status=status,
                verdict=verdict,
            )
        )

    def refused(self, candidate: Candidate, why: str, retry_in: float | None = None) -> None:
        """A tool was not tried; `retry_in` is in how many seconds it may be, where that is
        known."""
        candidate.refused = why
        self._details.append({"tool": candidate.name, "attempt": 0, "refused": why})
        if retry_in is not None:
            at = self.run.clock.now() + retry_in
            self._retry_at = at if self._retry_at is None else min(at, self._retry_at)

    def asked(self, seconds: float) -> None:
        """A provider asked to be left alone for so long, and that was not waited for."""
        self._retry_at = self.run.clock.now() + seconds

    def failure(self) -> ToolExecutionError:
        """What is raised when no tool gave a result."""
        tale = "; ".join(
            f"{each['tool']}: {each.get('refused') or each['failure']}" for each in self._details
        )
        wait = None
        if self._retry_at is not None:
            wait = max(0.0, self._retry_at - self.run.clock.now())
        names = [each["tool"] for each in self._details]
        kind = ToolExecutionError
        message = f"no tool gave a result ({tale})"
        if not self.made and wait is not None:
            if all(each["refused"] != SHUT for each in self._details):
                kind = CircuitOpen
            message = f"no tool can be called now ({tale})"
        elif self.last is not None:
            message = f"{words_of(self.last)} ({tale})"
        error = kind(
            message,
            tool_name=names[-1] if names else None,
            attempts=self.made,
            retry_after=wait,
            maybe_executed=self.maybe_executed,
            details=tuple(self._details),
        )
        error.__cause__ = self.last
        return error
