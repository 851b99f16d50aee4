"""What PostgreSQL and its driver raise, in the ledger's terms.

Messages are short, and hold neither a password nor a value that was to be written.
"""

from __future__ import annotations

import re
from typing import Final

import asyncpg

from steer_proxy.ledger.parameters import Statement
from steer_proxy.ledger.protocol import LedgerRefused, LedgerUnavailable, LedgerUnusable

#: What a driver's call may raise, apart from bugs. The last two are the driver's own: a connection
#: that is closed; a server that is none of those asked for (`target_session_attrs`).
DRIVER_ERRORS: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

#: SQLSTATE codes and classes after which a connection is of no more use: it is lost, the server
#: goes down, or it has become one that only reads (a failover).
_LOST: Final = ("08", "57P0", "25006", "F0", "XX")

#: The server, or a pooler before it, does not know a prepared statement, or knows another one.
_PREPARED: Final = ("26000", "42P05", "08P01")

#: A setting that the server does not know, or a value that is none of it.
_SETTINGS: Final = ("42704", "22023")

#: A role's rights do not suffice.
_DENIED: Final = "42501"
_RIGHTS: Final = "use one that may SELECT, INSERT, UPDATE and DELETE in all of its tables"

_UPGRADE: Final = "run `steer db upgrade`"

#: Where the server's own words need a remedy.
_REMEDIES: Final = {
    "25006": "the server only reads (a standby?)",
    "42P01": f"the schema is not there: {_UPGRADE}",
    "42703": f"the schema is not this version's: {_UPGRADE}",
    "57014": "the statement took longer than 2 s",
}

_ARGUMENT: Final = re.compile(r"query argument \$(\d+)\b")


def sqlstate(error: BaseException) -> str:
    """The five letters by which PostgreSQL names an error; empty for others."""
    found = getattr(error, "sqlstate", None)
    return found if isinstance(found, str) else ""


def is_lost(error: BaseException) -> bool:
    """Whether a connection cannot be used any more after this error."""
    code = sqlstate(error)
    if not code:
        return not isinstance(error, asyncpg.DataError)
    return code.startswith(_LOST)


def is_conflict(error: BaseException) -> bool:
    """Whether a statement gave way to others, and may go at once when it is run again.

    Serialization failures and deadlocks: nothing of it was carried out.
    """
    return sqlstate(error) in ("40001", "40P01")


def is_of_a_pooler(error: BaseException) -> bool:
    """Whether this comes of prepared statements behind a pooler that does not know them.

    Such a statement was not run: the error stops it before it begins.
    """
    return sqlstate(error) in _PREPARED and "prepared statement" in str(error)


def refuses_settings(error: BaseException) -> bool:
    """Whether this is PgBouncer's answer to a connection that brings settings with it."""
    return sqlstate(error) == "08P01" and "startup parameter" in str(error)


def of_connecting(error: BaseException) -> LedgerUnavailable | LedgerUnusable:
    """Why there is no connection."""
    # A certificate that is refused is both.
    if isinstance(error, asyncpg.InterfaceError | ValueError) and not isinstance(error, OSError):
        # Its words may quote the URL, and that a password.
        return LedgerUnusable("database.url is not understood: see its options and port")
    if sqlstate(error) in _SETTINGS:
        return LedgerUnusable(f"an option in database.url is not the server's: {_reason(error)}")
    if sqlstate(error) == _DENIED:  # it was reached
        return LedgerUnavailable(f"the database: {_reason(error)}")
    return LedgerUnavailable(f"the database cannot be reached: {_reason(error)}")


def without_rights(missing: str) -> LedgerUnavailable:
    """A role's rights do not suffice for the ledger's tables: somebody may grant them any time."""
    return LedgerUnavailable(f"the database: {_denied(missing)}")


def _denied(words: str) -> str:
    return f"its role may not write it ({words}): {_RIGHTS}"


def of_statement(error: BaseException, statement: Statement) -> LedgerUnavailable | LedgerRefused:
    """Why a statement failed."""
    if isinstance(error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError):
        argument = _ARGUMENT.search(str(error))
        if argument is None:
            return LedgerRefused(f"the database refuses a value: {_reason(error)}")
        name = statement.names[int(argument[1]) - 1]
        return LedgerRefused(f"the database does not take this value of {name}")
    if is_lost(error) and not sqlstate(error).startswith(("25", "57")):
        return LedgerUnavailable(f"the connection to the database was lost: {_reason(error)}")
    return LedgerUnavailable(f"the database: {_reason(error)}")


def _reason(error: BaseException) -> str:
    code = sqlstate(error)
    if code in _REMEDIES:
        return _REMEDIES[code]
    if isinstance(error, asyncpg.PostgresError):
        # Not str(): it adds the server's details, which quote values.
        words = str(getattr(error, "message", "") or type(error).__name__).partition("\n")[0]
        return _denied(words) if code == _DENIED else words
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__
