"""Whether the encryption keys of the ring are those that the ledger's answers were sealed with.

A key of the same name and another secret would go unnoticed until an answer cannot be replayed, and
would seal more of them. The ledger therefore has a check value of each key that was ever used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from steer_proxy.engine.trouble import LOGGER
from steer_proxy.ledger.protocol import Ledger, LedgerUnusable


def wrong_key(
    own: Mapping[str, str], known: Mapping[str, str], references: Mapping[str, str]
) -> str | None:
    """What is wrong with the first key whose check value is another one than the ledger has.

    `references` says where each key is kept. None when nothing is wrong.
    """
    for name, check in own.items():
        if known.get(name, check) != check:
            place = f" ({references[name]})" if name in references else ""
            return (
                f"encryption key {name!r}{place} is not the key of that name that this ledger's "
                "answers were encrypted with: give it another name, or the right secret"
            )
    return None


class KeyCheck:
    """Compares the ring with the ledger, until that was possible once."""

    def __init__(
        self, ledger: Ledger, own: Mapping[str, str], references: Mapping[str, str]
    ) -> None:
        self._ledger: Final = ledger
        self._own: Final = own
        self._references: Final = references
        self._passed = False

    async def ensure(self) -> None:
        """Make sure that every key may be used with this ledger.

        Raises:
            LedgerUnusable: a key is another one; the message names it, and where it is kept.
            LedgerUnavailable: it cannot be told now.
        """
        if self._passed:
            return
        known = await self._ledger.check_keys(self._own)
        if (wrong := wrong_key(self._own, known, self._references)) is not None:
            raise LedgerUnusable(wrong)
        self._passed = True
        for name in known.keys() - self._own.keys():
            LOGGER.warning(
                "the ledger has had answers encrypted with key %r, which is not in the ring: what "
                "is left of them cannot be replayed",
                name,
            )
