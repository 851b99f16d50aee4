"""A ledger that fails on demand, around one that works.

    ledger = FaultyLedger(MemoryLedger(wall))
    ledger.down()                          # every method raises LedgerUnavailable
    ledger.up()
    ledger.fail("claim", times=1)          # the next claim raises, and is not carried out
    ledger.lose_reply("finish", times=1)   # the next finish is carried out, and then raises
    ledger.hang("mark_sent")               # waits until it is cancelled, or `up` is called
    ledger.before("find", hook)            # a function, or coroutine function, called with nothing
    ledger.after("claim", hook)

`called` counts the calls of each method, failed ones included.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum, auto
from typing import Any

from steer_policies.idempotency import Move
from steer_proxy.ledger.protocol import Ledger, LedgerUnavailable
from steer_proxy.ledger.values import (
    Batch,
    ChunkRow,
    Claim,
    Finish,
    Following,
    Lease,
    Purge,
    Purged,
    Record,
    Ref,
    StoredAnswer,
)

Hook = Callable[[], Any]


class _Fault(Enum):
    FAIL = auto()
    LOSE_REPLY = auto()
    HANG = auto()


class FaultyLedger:
    """See the module. Method names are those of the protocol; "*" means every method."""

    def __init__(self, inner: Ledger) -> None:
        self.inner = inner
        self.called: Counter[str] = Counter()
        self._faults: dict[str, tuple[_Fault, float]] = {}
        self._before: dict[str, Hook] = {}
        self._after: dict[str, Hook] = {}
        self._released = asyncio.Event()
        self._worked = True

    # --- Telling it what to do ------------------------------------------------------------------

    def down(self) -> None:
        """Fail everything from now on, but for `open` and `close`."""
        self.fail("*")

    def up(self) -> None:
        """Forget every fault (hooks stay); what hangs goes on."""
        self._faults.clear()
        self._released.set()
        self._released = asyncio.Event()

    def fail(self, method: str, times: float = float("inf")) -> None:
        """Raise LedgerUnavailable without doing anything."""
        self._set(method, _Fault.FAIL, times)

    def lose_reply(self, method: str, times: float = float("inf")) -> None:
        """Do it, then raise LedgerUnavailable."""
        self._set(method, _Fault.LOSE_REPLY, times)

    def hang(self, method: str, times: float = float("inf")) -> None:
        """Wait until cancelled, or until `up`; only then do it."""
        self._set(method, _Fault.HANG, times)

    def before(self, method: str, hook: Hook | None) -> None:
        """Call `hook` before each call of a method; None takes it away."""
        self._hook(self._before, method, hook)

    def after(self, method: str, hook: Hook | None) -> None:
        """Call `hook` after each call of a method that was carried out; None takes it away."""
        self._hook(self._after, method, hook)

    def _set(self, method: str, fault: _Fault, times: float) -> None:
        assert method == "*" or hasattr(type(self), method), method
        self._faults[method] = (fault, times)

    def _hook(self, hooks: dict[str, Hook], method: str, hook: Hook | None) -> None:
        assert hasattr(type(self), method), method
        if hook is None:
            hooks.pop(method, None)
        else:
            hooks[method] = hook

    def _fault(self, method: str) -> _Fault | None:
        for name in (method, "*"):
            if name in self._faults:
                fault, times = self._faults[name]
                if times <= 1:
                    del self._faults[name]
                else:
                    self._faults[name] = (fault, times - 1)
                return fault
        return None

    async def _do(self, method: str, *arguments: Any, **more: Any) -> Any:
        self.called[method] += 1
        await _run(self._before.get(method))
        fault = self._fault(method)
        if fault is _Fault.FAIL:
            self._worked = False
            raise LedgerUnavailable("the test says so")
        if fault is _Fault.HANG:
            await self._released.wait()
        result = await getattr(self.inner, method)(*arguments, **more)
        await _run(self._after.get(method))
        if fault is _Fault.LOSE_REPLY:
            self._worked = False
            raise LedgerUnavailable("the test lost the reply")
        self._worked = True
        return result

    # --- The ledger -----------------------------------------------------------------------------

    @property
    def shared(self) -> bool:
        return self.inner.shared

    @property
    def secret(self) -> bytes | None:
        return self.inner.secret

    @property
    def available(self) -> bool:
        return self._worked and self.inner.available

    async def open(self) -> None:
        # "*" means a database that goes away later; `fail("open")` one that is down at start.
        if "open" in self._faults:
            await self._do("open")
        else:
            await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def check_keys(self, checks: Mapping[str, str]) -> dict[str, str]:
        result: dict[str, str] = await self._do("check_keys", checks)
        return result

    async def renew(
        self,
        owner: str,
        instance: str,
        lease: float,
        held: Sequence[str],
        *,
        unsure: bool = False,
    ) -> Lease:
        result: Lease = await self._do("renew", owner, instance, lease, held, unsure=unsure)
        return result

    async def retire(self, owner: str) -> None:
        await self._do("retire", owner)

    async def claim(self, claim: Claim) -> Record | None:
        result: Record | None = await self._do("claim", claim)
        return result

    async def take_over(self, claim: Claim, found: Record) -> Record | None:
        result: Record | None = await self._do("take_over", claim, found)
        return result

    async def mark_sent(self, ref: Ref) -> bool:
        result: bool = await self._do("mark_sent", ref)
        return result

    async def finish(self, finish: Finish) -> bool:
        result: bool = await self._do("finish", finish)
        return result

    async def begin_answer(
        self, ref: Ref, status: int, headers: str, keyring_id: str | None = None
    ) -> bool:
        result: bool = await self._do("begin_answer", ref, status, headers, keyring_id)
        return result

    async def add_chunks(self, chunks: Sequence[ChunkRow]) -> None:
        await self._do("add_chunks", chunks)

    async def trim_chunks(self, ref: Ref, before: int) -> None:
        await self._do("trim_chunks", ref, before)

    async def drop_chunks(self, ref: Ref) -> None:
        await self._do("drop_chunks", ref)

    async def find(self, scope: str) -> Record | None:
        result: Record | None = await self._do("find", scope)
        return result

    async def answer(self, id: str, first: int = 0) -> StoredAnswer | None:  # noqa: A002
        result: StoredAnswer | None = await self._do("answer", id, first)
        return result

    async def chunks(self, id: str, after: int, limit: int) -> list[ChunkRow]:  # noqa: A002
        result: list[ChunkRow] = await self._do("chunks", id, after, limit)
        return result

    async def follow(self, id: str, after: int, limit: int) -> Following:  # noqa: A002
        result: Following = await self._do("follow", id, after, limit)
        return result

    def watch(self, id: str) -> AbstractAsyncContextManager[asyncio.Event]:  # noqa: A002
        return self.inner.watch(id)

    def followed(self, id: str) -> bool:  # noqa: A002
        return self.inner.followed(id)

    async def settle(self, id: str, move: Move) -> bool:  # noqa: A002
        result: bool = await self._do("settle", id, move)
        return result

    async def write(self, batch: Batch) -> None:
        await self._do("write", batch)

    async def purge(self, purge: Purge) -> Purged:
        result: Purged = await self._do("purge", purge)
        return result


async def _run(hook: Hook | None) -> None:
    if hook is not None and inspect.isawaitable(result := hook()):
        await result
