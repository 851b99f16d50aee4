"""Whose circuit each tool stands under, what attempts teach it, and the telling of its changes."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import Final

from steer_llm_sdk.orchestration.metadata import ToolMetadata
from steer_llm_sdk.orchestration.run import Run
from steer_llm_sdk.reliability.breakers import DEFAULT, Breakers
from steer_llm_sdk.streaming.events import Told
from steer_policies.breaker import PermitPair, Rejected
from steer_policies.outcome import Failure, Verdict
from steer_policies.throttle import Gate, Pass
from steer_proxy.engine.clock import Clock
from steer_proxy.engine.gate import throttled
from steer_proxy.engine.registry import MAX_REMEMBERED

LOGGER: Final = logging.getLogger("steer.sdk")


@dataclass(slots=True)
class Entry:
    """An attempt that may be made: under whose name, and with what permit and admission."""

    provider: str
    permit: PermitPair | None
    gate: Gate | None = None
    admission: Pass | None = None

    def leave_gate(self, clock: Clock, verdict: Verdict | None) -> None:
        """Tell the gate what came of it; None for nothing."""
        if self.admission is not None and self.gate is not None:
            lesson = None if verdict is None else throttled(verdict)
            self.gate.settle(self.admission, lesson, clock.now())
            self.admission = None


class Circuits:
    """The circuits of an orchestrator's tools; without breakers, every tool may be called."""

    def __init__(self, breakers: Breakers | None) -> None:
        self._breakers = breakers
        self._learned: dict[str, tuple[ToolMetadata, str]] = {}

    def provider(self, metadata: ToolMetadata) -> str:
        """Whose circuit a tool stands under: as it last said, or as it declares."""
        learned = self._learned.get(metadata.name)
        if learned is not None and learned[0] is metadata:  # the same tool, not its successor
            return learned[1]
        return metadata.provider or DEFAULT

    def ready(self, run: Run, metadata: ToolMetadata) -> bool:
        """Whether a call or a probe would be admitted now."""
        if self._breakers is None or not run.options.enable_circuit_breaker:
            return True
        return self._breakers.open_for(self.provider(metadata), metadata.name) <= 0

    def gate(self, metadata: ToolMetadata) -> Gate | None:
        """The gate that a tool's provider may have closed; None while it never has."""
        if self._breakers is None:
            return None
        return self._breakers.gate(self.provider(metadata), metadata.name)

    async def enter(
        self, run: Run, metadata: ToolMetadata, gate: Gate | None, admission: Pass | None
    ) -> Entry | Rejected:
        """What an attempt needs to have, to be given back; or for how long there is none.

        `admission` is what the gate gave.
        """
        entry = Entry(self.provider(metadata), None, gate, admission)
        if self._breakers is None or not run.options.enable_circuit_breaker:
            return entry
        permit = self._breakers.acquire(entry.provider, metadata.name)
        if isinstance(permit, Rejected):
            entry.leave_gate(run.clock, None)
            return permit
        entry.permit = permit
        if permit.probe:
            try:
                await self._tell_changes(run, self._breakers)
            except BaseException:
                self.give_back(run, metadata, entry)
                raise
        return entry

    async def learn(
        self,
        run: Run,
        metadata: ToolMetadata,
        entry: Entry,
        verdict: Verdict,
        seconds: float,
        named: str | None,
    ) -> None:
        """Give the permit back with what the attempt taught.

        `named` is the provider that the result names, or the error: a result's word moves the tool
        to that one's circuit, an error's only where the tool declares no provider.
        """
        name = metadata.name
        moved = named is not None and named != entry.provider
        if not verdict.ok and metadata.provider:
            moved = False
        if named is not None and moved:
            if len(self._learned) >= MAX_REMEMBERED:
                self._learned.clear()
            self._learned[name] = (metadata, named)
        breakers, permit = self._breakers, entry.permit
        if breakers is not None and verdict.failure is Failure.THROTTLED and verdict.hint:
            provider = named if named is not None and moved else entry.provider
            breakers.throttle(provider, name, verdict.hint.seconds)
        entry.leave_gate(run.clock, verdict)
        if breakers is None or permit is None:
            return
        entry.permit = None
        if named is not None and moved:
            breakers.settle(entry.provider, name, permit, None)
            breakers.forget(entry.provider, name)
            breakers.credit(named, name, verdict)
        else:
            breakers.settle(entry.provider, name, permit, verdict, seconds)
        if breakers.changed:
            await self._tell_changes(run, breakers)

    def give_back(self, run: Run, metadata: ToolMetadata, entry: Entry) -> None:
        """Give back what nothing was learned with."""
        entry.leave_gate(run.clock, None)
        if self._breakers is not None and entry.permit is not None:
            self._breakers.settle(entry.provider, metadata.name, entry.permit, None)

    async def _tell_changes(self, run: Run, breakers: Breakers) -> None:
        for change in breakers.changes():
            LOGGER.info(
                "circuit %s: %s -> %s (%s)",
                change.name,
                change.before,
                change.after,
                change.reason,
            )
            try:
                done = change.call_back()
                if inspect.isawaitable(done):
                    await done
            except Exception as error:  # noqa: BLE001 - a user's function that only watches
                LOGGER.warning(
                    "on_%s of circuit %s failed: %s",
                    change.after,
                    change.name,
                    run.redactor.text(repr(error)),
                )
            await run.tell(
                Told.CIRCUIT_BREAKER_STATE,
                change.provider,
                circuit=change.name,
                source=change.tool or change.provider,
                before=change.before,
                state=change.after,
                reason=change.reason,
            )
