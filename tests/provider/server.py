"""The provider itself: listens, logs attempts, chooses what each of them gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal, Self

from tests.provider.attempt import Attempt
from tests.provider.choosing import (
    Behaviour,
    Fault,
    Outage,
    Predicate,
    Script,
    as_fault,
    is_generation,
)
from tests.provider.connection import Connection
from tests.provider.faults import overloaded
from tests.provider.healthy import HealthyAnswers
from tests.provider.steps import Answer
from tests.provider.wire import RequestHead
from tests.provider.world import World


class Provider(World):
    """A scripted provider on 127.0.0.1, as an asynchronous context manager.

    What a healthy answer says is set by the attributes inherited from `World` (`text`, `name`,
    `pace`, `tokens`, `distinct`, `date`, `refusal`). What goes wrong is set by `then`, `when`,
    `always`, `flapping` and `down_between`, in that order of precedence, until `healthy()`.

    An error in a test's script, or a request that is no HTTP, is raised at the end of the block.
    """

    def __init__(self, port: int = 0, *, keep_attempts: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.port = port
        self.attempts: list[Attempt] = []
        """Every request that reached this provider, in order of arrival."""
        self.errors: list[Exception] = []
        """Raised at the end of the block; a test that expects them clears the list."""
        self.on_connect: Literal["serve", "reset", "close", "ignore"] = "serve"
        """What meets a new connection: service, or an end or silence before any request is read."""
        self.total_connections = 0
        self.total_attempts = 0
        self._keep_attempts = keep_attempts
        self._connections: dict[Connection, None] = {}
        self._script = Script()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._changes: list[asyncio.Future[None]] = []
        self._answers = HealthyAnswers(self)
        self._server: asyncio.Server | None = None

    # --- life

    async def __aenter__(self) -> Self:
        await self.start_listening()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *trace: object
    ) -> None:
        await self.stop_listening()
        await self._drop(list(self._connections))
        for waiter in [*self._changes, *(waiter for _, waiter in self._waiters)]:
            waiter.cancel()
        if error is None and self.errors:
            raise self.errors[0]
        if error is not None:
            for failure in self.errors:
                error.add_note(f"The provider itself failed: {failure!r}")

    async def start_listening(self) -> None:
        """Listen, on the same port as before if there was one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, loop), "127.0.0.1", self.port, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop_listening(self) -> None:
        """Refuse new connections (the kernel answers them with RST); open ones live on."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for _ in range(5):  # what was accepted already becomes a connection within a few turns
                await asyncio.sleep(0)

    async def drop_connections(self) -> None:
        """End every open connection with RST, as a crash of the provider would."""
        for connection in list(self._connections):
            connection.reset()
        await self._drop(list(self._connections))

    async def close_idle_connections(self) -> None:
        """Close the connections without a request under way: what makes a pooled one stale."""
        idle = [connection for connection in self._connections if connection.idle]
        for connection in idle:
            connection.close()
        for connection in idle:
            await connection.closed.wait()

    async def _drop(self, connections: list[Connection]) -> None:
        tasks = [connection.stop() for connection in connections]
        await asyncio.gather(*[task for task in tasks if task is not None], return_exceptions=True)
        for connection in connections:
            await connection.closed.wait()

    # --- what tests look at

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    async def wait_for_attempts(self, count: int) -> list[Attempt]:
        """Wait until at least that many requests have arrived; returns them."""
        if self.total_attempts < count:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((count, waiter))
            await waiter
        return self.attempts[:count]

    async def wait_for_connections(self, count: int) -> None:
        """Wait until exactly that many connections are open."""
        while len(self._connections) != count:
            changed = asyncio.get_running_loop().create_future()
            self._changes.append(changed)
            await changed

    # --- the script

    def then(self, *behaviours: Behaviour, to: Predicate = is_generation) -> Self:
        """Queue one behaviour for each of the next requests that `to` is true of."""
        self._script.queue.extend((to, as_fault(behaviour)) for behaviour in behaviours)
        return self

    def when(self, predicate: Predicate, behaviour: Behaviour) -> Self:
        """Use the behaviour whenever the predicate is true of a request; the first rule wins.

        A behaviour that acts before the body sees its predicate asked before the body, too.
        """
        self._script.rules.append((predicate, as_fault(behaviour)))
        return self

    def always(self, behaviour: Behaviour) -> Self:
        """Use the behaviour for every request nothing else is said about."""
        self._script.always = as_fault(behaviour)
        return self

    def flapping(
        self, healthy: Callable[[float], bool], behaviour: Behaviour | None = None
    ) -> Self:
        """Down whenever `healthy(seconds since now)` is false; overloaded unless told otherwise."""
        began = asyncio.get_running_loop().time()
        return self._outage(lambda now: not healthy(now - began), behaviour)

    def down_between(self, start: float, end: float, behaviour: Behaviour | None = None) -> Self:
        """Down from `start` until `end`, in the loop's time; overloaded unless told otherwise."""
        return self._outage(lambda now: start <= now < end, behaviour)

    def _outage(self, down: Callable[[float], bool], behaviour: Behaviour | None) -> Self:
        fault = overloaded() if behaviour is None else as_fault(behaviour)
        self._script.outages.append(Outage(down, fault))
        return self

    @property
    def queued(self) -> int:
        """How many behaviours of `then` have met no request yet."""
        return len(self._script.queue)

    def healthy(self) -> Self:
        """Forget every behaviour: answer healthily from now on."""
        self._script.clear()
        return self

    # --- what connections ask (see `connection.Host`)

    def opened(self, connection: Connection) -> bool:
        self.total_connections += 1
        connection.number = self.total_connections
        self._connections[connection] = None
        self._connections_changed()
        match self.on_connect:
            case "reset":
                connection.reset()
            case "close":
                connection.close()
            case "ignore":
                connection.ignore()
            case "serve":
                return True
        return False

    def lost(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        self._connections_changed()

    def _connections_changed(self) -> None:
        changes, self._changes = self._changes, []
        for changed in changes:
            if not changed.done():
                changed.set_result(None)

    def arrived(self, connection: Connection, head: RequestHead) -> Attempt:
        self.total_attempts += 1
        attempt = Attempt(
            number=self.total_attempts,
            at=asyncio.get_running_loop().time(),
            connection=connection.number,
            first_on_connection=connection.requests == 1,
            method=head.method,
            target=head.target,
            version=head.version,
            headers=head.headers,
        )
        if self._keep_attempts:
            self.attempts.append(attempt)
        for index in range(len(self._waiters) - 1, -1, -1):
            count, waiter = self._waiters[index]
            if self.total_attempts >= count:
                del self._waiters[index]
                if not waiter.done():
                    waiter.set_result(None)
        return attempt

    def choose_at_head(self, attempt: Attempt) -> Fault | None:
        return self._script.at_head(attempt)

    def answer(self, attempt: Attempt, chosen: Fault | None) -> tuple[Answer, bytes | None]:
        fault = chosen or self._script.at_body(attempt)
        healthy, wire = self._answers.of(attempt)
        if fault is None:
            return healthy, wire
        attempt.behaviour = fault.name
        return fault.apply(attempt, healthy), None

    def failed(self, error: Exception) -> None:
        self.errors.append(error)
