"""Whoever is late looks before it judges."""

from __future__ import annotations

import asyncio
import socket

from steer_proxy.lateness import A_LOOK, LATE, after_a_look, is_late


async def test_late_is_what_had_no_turn() -> None:
    """A timer in its time is not, by the little that timers are always late."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    assert not is_late(loop, now)
    assert not is_late(loop, now - LATE / 2)
    assert is_late(loop, now - 2 * LATE)


async def test_who_waited_comes_first() -> None:
    """What had arrived is read, and its reader has it in hands."""
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    order: list[str] = []
    done = loop.create_future()

    async def read() -> None:
        await reader.readexactly(1)
        order.append("read")

    def judge() -> None:
        order.append("judged")
        done.set_result(None)

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    began = loop.time()
    after_a_look(loop, judge)
    await asyncio.sleep(A_LOOK / 2)
    there.send(b"x")
    loop.advance(A_LOOK)  # type: ignore[attr-defined]
    await done
    await reading
    assert order == ["read", "judged"]
    assert loop.time() - began >= A_LOOK
    there.close()
    writer.close()
    await writer.wait_closed()
