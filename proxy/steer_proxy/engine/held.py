"""The records that a process runs, and who has their keys when the ledger does not find them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from steer_proxy.ledger.protocol import Ledger
from steer_proxy.ledger.values import CallRow, Claim, Ref

LOGGER: Final = logging.getLogger("steer.ledger")


class Whose(Enum):
    """Who has the key of a call that this process runs."""

    OURS = auto()
    NOBODYS = auto()
    THEIRS = auto()


@dataclass(slots=True, repr=False)  # a secret is in it
class Held:
    """A record that this process runs, or asks for: its row as it was last written.

    `secret` is what its scope was made with. `lost` is called when somebody else has taken it over,
    `adrift` when nobody has it any more. It is not `written` before the ledger has said so.
    """

    row: CallRow
    ref: Ref
    secret: bytes | None
    lost: Callable[[], None]
    adrift: Callable[[], None]
    written: bool = False


_TOLD: Final = {
    Whose.THEIRS: "the lease had lapsed, and %d calls were taken over",
    Whose.NOBODYS: "the records of %d running calls are gone or were settled by hand: their "
    "answers will not be stored",
    Whose.OURS: "the records of %d running calls were gone, and are written anew",
}


class HeldRecords:
    """What a process runs, by record."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._held: dict[str, Held] = {}

    def __contains__(self, id: object) -> bool:  # noqa: A002 - the column's name
        return id in self._held

    def ids(self) -> tuple[str, ...]:
        """The ids of all of them."""
        return tuple(self._held)

    def hold(self, held: Held) -> None:
        """One more."""
        self._held[held.ref.id] = held

    def let_go(self, ref: Ref) -> None:
        """This process has nothing more to do for a record."""
        self._held.pop(ref.id, None)

    def find(self, ref: Ref) -> Held | None:
        """What is held by this id and epoch."""
        held = self._held.get(ref.id)
        return held if held is not None and held.ref == ref else None

    async def tell_lost(self, ids: frozenset[str]) -> None:
        """The ledger does not have these as this process's own: tell those who run them.

        Raises:
            LedgerUnavailable: when it cannot say who has them; nobody was told then.
        """
        held = [self._held[each] for each in ids if each in self._held]
        found = await asyncio.gather(*(self.whose(each) for each in held))
        for each, whose in zip(held, found, strict=True):
            if self._held.get(each.ref.id) is not each:
                continue  # it has come to its end meanwhile
            if whose is Whose.THEIRS:
                each.lost()
            elif whose is Whose.NOBODYS:
                each.adrift()
        for whose, told in _TOLD.items():
            if count := found.count(whose):
                LOGGER.warning(told, count)

    async def whose(self, held: Held) -> Whose:
        """Who has the key of a call whose record the ledger does not have as its owner's.

        A record that is gone with its file is made anew: the call may be under way, and is not to
        be made twice. Not so where the ledger is another one, which calls the key by another scope,
        nor in a database of several: what befell it befell all of them.
        """
        if not held.written:
            return Whose.THEIRS  # nothing was sent for it, and its claim is freed
        ledger = self._ledger
        found = await ledger.find(held.row.idem_scope or "")
        if found is None:
            there = (await ledger.follow(held.ref.id, 0, 0)).record
            if there is not None or ledger.shared or ledger.secret != held.secret:
                return Whose.NOBODYS
            found = await ledger.claim(Claim(held.row._replace(idem_epoch=held.ref.epoch)))
        ours = found is None or Ref(found.id, found.epoch) == held.ref
        return Whose.OURS if ours else Whose.THEIRS
