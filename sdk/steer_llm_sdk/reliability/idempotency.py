"""The manager of idempotency keys: in memory, in the SQL ledger, or over a store of one's own."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from steer_llm_sdk import checks
from steer_llm_sdk.errors import ConflictError, InvalidValue
from steer_llm_sdk.reliability.idempotency_errors import (
    IdempotencyError,
    JoinedRunFailedError,
    KeyInProgressError,
    NotStorableError,
    ResultNotStoredError,
    StoreUnavailableError,
    UncertainOutcomeError,
)
from steer_llm_sdk.reliability.json_text import NotJSON, json_text
from steer_llm_sdk.reliability.once import Identity, Once, OnFailure, Terms
from steer_llm_sdk.reliability.stored import VERSION, Known, Store, StoreOnce
from steer_policies.idempotency import OnLedgerDown, OnUncertain, State

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.in_sql import SqlOnce

__all__ = [
    "ConflictError",
    "IdempotencyError",
    "IdempotencyManager",
    "JoinedRunFailedError",
    "KeyInProgressError",
    "NotStorableError",
    "OnFailure",
    "OnLedgerDown",
    "OnUncertain",
    "ResultNotStoredError",
    "StoreUnavailableError",
    "UncertainOutcomeError",
    "once_of",
]

_DEFAULTS: Final = Terms()

#: Of AES-256, in bytes.
KEY_SIZE: Final = 32


class IdempotencyManager:
    """Remembers what was run for a key, so that its duplicates are given the same result.

    By default in memory: at most `max_entries` results, the least recently used make room, each
    for `ttl_seconds` after its run has ended. With `database_url` (`sqlite:///steer.db`,
    `postgresql://...`) in the SQL ledger that sidecars write, where results outlive the process and
    processes that share PostgreSQL run a key once among them; a SQLite file has one writing
    process. PostgreSQL is prepared by `steer db upgrade`, a file prepares itself.

    For another store, override `get` and `store`, and nothing else; `super().__init__` need not
    be called. Such a store is given JSON objects, and its duplicates in one process wait for each
    other. Between processes only completed runs are recognised: two that begin a key at the same
    time both execute it, since `get` and `store` cannot claim it.

    A run that is under way is never forgotten, whatever the bounds. It ends early only when all who
    wait for its key have been cancelled or have run out of time.

    Attributes:
        on_failure: what becomes of the key when the tool failed and may have had an effect:
            `uncertain` keeps it, `release` frees it. A tool that was interrupted always leaves its
            key uncertain, one that provably did nothing always frees it.
        on_uncertain: what a duplicate of such a key gets: `fail` (`UncertainOutcomeError`) or
            `rerun`.
        on_store_down: what becomes of a run while the store cannot be used: `fail`
            (`StoreUnavailableError`) or `open` (it runs, unprotected). Either way an event tells.
        join_timeout: how long a duplicate waits for the running one, in seconds.
        max_stored: the largest result that is kept, in bytes of JSON.
    """

    on_failure: str = _DEFAULTS.on_failure
    on_uncertain: str = _DEFAULTS.on_uncertain
    on_store_down: str = _DEFAULTS.on_store_down
    join_timeout: float = _DEFAULTS.join_timeout
    max_stored: int = _DEFAULTS.max_stored

    # What is here stands for what a subclass's constructor leaves out.
    _ttl: float = _DEFAULTS.ttl
    _once: Once | None = None
    _sql: SqlOnce | None = None

    def __init__(  # noqa: PLR0913 - every one is a term of its own
        self,
        ttl_seconds: float = 900,
        max_entries: int = 1000,
        database_url: str | None = None,
        *,
        on_failure: str = OnFailure.UNCERTAIN,
        on_uncertain: str = OnUncertain.FAIL,
        on_store_down: str = OnLedgerDown.FAIL,
        join_timeout: float = 300.0,
        max_stored: int = 8 * 2**20,
        encryption: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Make a manager; a database is opened when it is first needed.

        `encryption` is a ring of names and keys of 32 bytes: results in SQL are encrypted with the
        first (AES-GCM), and decrypted with any.

        Raises:
            InvalidValue: a ValueError that names the argument.
        """
        checks.whole("max_entries", max_entries, least=1)
        self._ttl = ttl_seconds
        self._max_entries = max_entries
        self._entries: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self.on_failure = on_failure
        self.on_uncertain = on_uncertain
        self.on_store_down = on_store_down
        self.join_timeout = join_timeout
        self.max_stored = max_stored
        terms = self._terms()
        ring = _ring(encryption)
        if database_url is not None:
            self._sql = _in_sql(database_url, terms, ring)
        elif ring:
            raise InvalidValue("encryption", "is for results in SQL: give a database_url, too")

    def _terms(self) -> Terms:
        return Terms(
            ttl=self._ttl,
            on_failure=checks.choice("on_failure", OnFailure, self.on_failure),
            on_uncertain=checks.choice("on_uncertain", OnUncertain, self.on_uncertain),
            on_store_down=checks.choice("on_store_down", OnLedgerDown, self.on_store_down),
            join_timeout=self.join_timeout,
            max_stored=self.max_stored,
        )

    # --- The store ------------------------------------------------------------------------------

    async def get(self, key: str) -> Any:
        """What is kept for a key: a JSON value of the caller's own; None when there is nothing.

        Of a run that is `{"steer": 1, "state": "completed", "fingerprint": ..., "value": ...}`.
        """
        if self._sql is not None:
            found = await self._sql.find(key)
            return None if found is None else _as_stored(*found)
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires, text = entry
        if expires <= asyncio.get_running_loop().time():
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return json.loads(text)

    async def store(self, key: str, value: Any) -> None:
        """Keep a JSON value for a key, in place of what was there.

        In SQL a key's record is what it is: another value for it is a conflict.

        Raises:
            NotStorableError: for a value that is not JSON, naming the place; nothing is kept.
            ConflictError, StoreUnavailableError: see there; with a database.
        """
        try:
            text = json_text(value)
        except NotJSON as error:
            raise NotStorableError(f"what is stored must be JSON: {error}", error.path) from None
        if self._sql is not None:
            stored = {_STORED: value}
            await self._sql.run(Identity(key, stored), lambda: _given(stored))
            return
        self._entries[key] = (asyncio.get_running_loop().time() + self._ttl, text)
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    # --- Runs -----------------------------------------------------------------------------------

    def once(self) -> Once:
        """How runs with keys are made; the same for all who share this manager."""
        if self._once is not None:
            return self._once
        once: Once
        if self._sql is not None and not _overrides(type(self)):
            once = self._sql
        else:
            once = StoreOnce(self, self._terms())
        object.__setattr__(self, "_once", once)  # also of a subclass that is a frozen dataclass
        return once

    # --- Life -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """End what runs under a key, and close the database; both begin again when needed.

        Without it a database is closed with its event loop.
        """
        if isinstance(self._once, StoreOnce):
            await self._once.close()
        if self._sql is not None:
            await self._sql.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


#: Of managers that are no subclass, what is known of the runs of each. By identity: one that is
#: equal to another has a store of its own, and many that can be compared have no hash.
_KNOWN: Final[dict[int, Known]] = {}

#: Those of which nobody would tell us that they are gone.
_KEPT: Final[list[Store]] = []


def once_of(manager: IdempotencyManager | Store) -> Once:
    """How a manager makes runs with keys: any subclass, or anything with async get and store.

    Raises:
        InvalidValue: it has not both.
    """
    if isinstance(manager, IdempotencyManager):
        return manager.once()
    for name in ("get", "store"):
        if not callable(getattr(manager, name, None)):
            raise InvalidValue(
                "idempotency_manager", f"{checks.shown(manager)} has no method {name}"
            )
    return StoreOnce(manager, _DEFAULTS, _known(manager))


def _known(manager: Store) -> Known:
    """What is known of a manager's runs, for as long as there is that manager."""
    known = _KNOWN.get(id(manager))
    if known is None:
        known = _KNOWN[id(manager)] = Known(_DEFAULTS)
        try:
            weakref.finalize(manager, _KNOWN.pop, id(manager), None).atexit = False
        except TypeError:  # its id must not become another's
            _KEPT.append(manager)
    return known


def _overrides(kind: type[IdempotencyManager]) -> bool:
    return kind.get is not IdempotencyManager.get or kind.store is not IdempotencyManager.store


#: What `store` wraps a value in, where a run's result would be.
_STORED: Final = "stored"


def _as_stored(fingerprint: str, value: Any) -> Any:
    if isinstance(value, dict) and list(value) == [_STORED]:
        return value[_STORED]
    return {
        "steer": VERSION,
        "state": str(State.COMPLETED),
        "fingerprint": fingerprint,
        "value": value,
    }


async def _given(value: dict[str, Any]) -> dict[str, Any]:
    return value


def _ring(encryption: Sequence[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    """A ring of keys, checked."""
    try:
        ring = tuple((name, bytes(key)) for name, key in encryption)
    except (TypeError, ValueError):
        raise InvalidValue("encryption", "must be a list of pairs of a name and a key") from None
    for name, key in ring:
        checks.text("encryption", name)
        if len(key) != KEY_SIZE:
            raise InvalidValue("encryption", f"key {name} must have {KEY_SIZE} bytes")
    return ring


def _in_sql(url: str, terms: Terms, encryption: Sequence[tuple[str, bytes]]) -> SqlOnce:
    from steer_llm_sdk.reliability.in_sql import SqlOnce
    from steer_proxy.ledger.address import parse_address

    checks.text("database_url", url)
    try:
        parse_address(url)
    except ValueError as error:
        raise InvalidValue("database_url", str(error)) from None
    return SqlOnce(url, terms, encryption)
