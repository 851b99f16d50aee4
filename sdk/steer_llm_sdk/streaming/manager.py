"""The event manager: the events of runs, given to callbacks."""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from steer_llm_sdk import checks
from steer_llm_sdk.streaming.events import Event, EventType, Redactor
from steer_proxy.engine.clock import new_id

LOGGER: Final = logging.getLogger("steer.sdk")

Callback: TypeAlias = Callable[[Event], Awaitable[Any] | Any]


class EventManager:
    """Gives the events of runs to callbacks, in order, and waits for each.

    Callbacks are coroutine functions, or plain ones. What a callback raises is logged and goes no
    further: a run does not fail, and is never repeated, because somebody who watched it did.

    One manager may serve several runs at once; each event tells which run it belongs to.
    `request_id` and `trace_id` are for events that a program emits itself, outside any run.
    `redactor_cb` is applied to every text in every event, beside the run's own.

    Raises:
        InvalidValue: for a callback that cannot be called.
    """

    def __init__(
        self,
        on_start: Callback | None = None,
        on_delta: Callback | None = None,
        on_usage: Callback | None = None,
        on_complete: Callback | None = None,
        on_error: Callback | None = None,
        request_id: str | None = None,
        trace_id: str | None = None,
        redactor_cb: Callable[[str], str] | None = None,
    ) -> None:
        self._callbacks: Final[Mapping[EventType, Callback | None]] = {
            EventType.START: on_start,
            EventType.DELTA: on_delta,
            EventType.USAGE: on_usage,
            EventType.COMPLETE: on_complete,
            EventType.ERROR: on_error,
        }
        for kind, callback in self._callbacks.items():
            checks.function(f"on_{kind}", callback)
        checks.function("redactor_cb", redactor_cb)
        self.request_id = request_id
        self.trace_id = trace_id
        self._redactors: tuple[Redactor, ...] = ()
        if redactor_cb is not None:
            self._redactors = (Redactor(redactor_cb),)
        self._wall: Callable[[], float] = time.time

    def of_run(
        self, request_id: str, trace_id: str, redactor: Redactor, wall: Callable[[], float]
    ) -> EventManager:
        """The same callbacks, for the events of one run: with its ids and its redaction.

        `wall` gives Unix time in seconds.
        """
        bound = copy.copy(self)
        bound.request_id = request_id
        bound.trace_id = trace_id
        bound._redactors = (*self._redactors, redactor)  # noqa: SLF001 - one of our own
        bound._wall = wall  # noqa: SLF001
        return bound

    async def emit(self, event: Event) -> None:
        """Give an event to its callback, redacted, and wait for that."""
        callback = self._callbacks[event.type]
        if callback is None:
            return
        metadata: Any = event.metadata
        provider, model = event.provider, event.model
        for redactor in self._redactors:
            metadata = redactor.value(metadata)
            provider = provider and redactor.text(provider)
            model = model and redactor.text(model)
        event = Event(
            type=event.type,
            request_id=event.request_id,
            trace_id=event.trace_id,
            timestamp=event.timestamp,
            provider=provider,
            model=model,
            metadata=metadata,
        )
        try:
            done = callback(event)
            if inspect.isawaitable(done):
                await done
        except Exception as error:  # noqa: BLE001 - a user's function that only watches
            reason = repr(error)
            for redactor in self._redactors:
                reason = redactor.text(reason)
            LOGGER.warning("on_%s failed for request %s: %s", event.type, event.request_id, reason)

    async def start(self, metadata: Mapping[str, Any], **about: str | None) -> None:
        """Tell that something begins."""
        await self._tell(EventType.START, metadata, about)

    async def delta(self, metadata: Mapping[str, Any], **about: str | None) -> None:
        """Tell a step of what is under way: a streaming tool does so with each piece.

        `provider` and `model` may be given beside the metadata, here as with the other kinds.
        """
        await self._tell(EventType.DELTA, metadata, about)

    async def usage(self, metadata: Mapping[str, Any], **about: str | None) -> None:
        """Tell what was used."""
        await self._tell(EventType.USAGE, metadata, about)

    async def complete(self, metadata: Mapping[str, Any], **about: str | None) -> None:
        """Tell that it ended well."""
        await self._tell(EventType.COMPLETE, metadata, about)

    async def error(self, metadata: Mapping[str, Any], **about: str | None) -> None:
        """Tell that it failed."""
        await self._tell(EventType.ERROR, metadata, about)

    async def _tell(
        self, kind: EventType, metadata: Mapping[str, Any], about: Mapping[str, str | None]
    ) -> None:
        if self._callbacks[kind] is None:
            return
        wall = self._wall()
        request_id = self.request_id or new_id(wall)
        await self.emit(
            Event(
                type=kind,
                request_id=request_id,
                trace_id=self.trace_id or request_id,
                timestamp=wall,
                provider=about.get("provider"),
                model=about.get("model"),
                metadata=dict(metadata),
            )
        )
