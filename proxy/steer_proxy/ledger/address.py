"""Where a ledger is, read from a database URL.

Forms: `sqlite:///PATH`, `sqlite+aiosqlite:///PATH`, `postgresql://...`, `postgresql+asyncpg://...`,
`memory:`. A path with three slashes is relative to the working directory, with four absolute.
Messages never quote the URL: it may hold a password.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

FORMS: Final = (
    "sqlite:///PATH (four slashes for an absolute path), postgresql://HOST/DATABASE, or memory:"
)

_SQLITE: Final = frozenset({"sqlite", "sqlite+aiosqlite"})
_POSTGRES: Final = frozenset({"postgresql", "postgresql+asyncpg"})
_MAX_LENGTH: Final = 4096
#: Our own option, which no driver knows.
_PREPARED: Final = frozenset({"prepared=on", "prepared=off"})

#: Options of libpq that our driver does not know, and would send to the server, which knows them no
#: better: these change nothing for us, whatever they are. Our own time-outs are shorter.
_IDLE: Final = frozenset(
    {
        "connect_timeout",
        "fallback_application_name",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "sslcompression",
        "tcp_user_timeout",
    }
)
#: These ask for nothing with the values given here, and for what we do not have with others.
_REFUSED: Final = {
    "channel_binding": ("disable", "prefer"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "hostaddr": (),
    "load_balance_hosts": ("disable",),
    "replication": ("false", "off", "no", "0"),
    "require_auth": (),
    "requirepeer": (),
    "requiressl": ("0",),
    "sslcertmode": ("allow",),
    "sslcrldir": (),
    "sslsni": ("1",),
}


@dataclass(frozen=True, slots=True)
class Memory:
    """A ledger of this process alone, gone with it."""

    def __str__(self) -> str:
        return "memory"


@dataclass(frozen=True, slots=True)
class Sqlite:
    """A file; `path` as it was written, relative to the working directory or absolute."""

    path: str

    def __str__(self) -> str:
        return f"SQLite file {self.path}"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A database; `dsn` is what libpq and asyncpg take, and may hold a password.

    `prepared` is False when the URL said `prepared=off`: there is a pooler before the server that
    does not know prepared statements.
    """

    dsn: str
    prepared: bool = True

    def __str__(self) -> str:
        parts = urlsplit(self.dsn)
        options = dict(parse_qsl(parts.query))
        host = parts.netloc.rpartition("@")[2] or options.get("host", "localhost")
        database = unquote(parts.path.lstrip("/")) or options.get("dbname", "")
        return f"PostgreSQL {host}" + (f"/{database}" if database else "")

    def __repr__(self) -> str:
        return f"<{self}>"


Address = Memory | Sqlite | Postgres


def parse_address(url: str) -> Address:
    """The place a database URL names.

    Raises:
        ValueError: saying what was expected; it does not quote the URL.
    """
    text = url.strip()
    if not text.isprintable() or len(text) > _MAX_LENGTH:
        raise ValueError(f"expected one line: {FORMS}")
    if text == "memory:":
        return Memory()
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if colon and scheme in _SQLITE:
        return _sqlite(rest)
    if colon and scheme in _POSTGRES:
        return _postgres(rest)
    if scheme == "postgres":
        raise ValueError("write postgresql:// in place of postgres://")
    raise ValueError(f"expected {FORMS}")


def password_in(url: str) -> bool:
    """Whether a database URL holds a password, in whichever of its places."""
    try:
        parts = urlsplit(url.strip())
        options = dict(parse_qsl(parts.query))
    except ValueError:
        return "@" in url
    return bool(parts.password or options.get("password") or options.get("sslpassword"))


def _sqlite(rest: str) -> Sqlite:
    path = rest.removeprefix("///")
    if not rest.startswith("///"):
        raise ValueError(
            "a SQLite file is written sqlite:///steer.db, or with an absolute path "
            "sqlite:////var/lib/steer/steer.db"
        )
    if not path or path == ":memory:":
        raise ValueError("a SQLite URL names a file; for a ledger in memory write memory:")
    if "?" in path:
        raise ValueError("a SQLite URL takes no options after a question mark")
    if path.endswith("/"):
        raise ValueError("a SQLite URL names a file, not a directory")
    return Sqlite(path)


def _postgres(rest: str) -> Postgres:
    if not rest.startswith("//"):
        raise ValueError("a PostgreSQL database is written postgresql://HOST:PORT/DATABASE")
    try:
        # Several hosts, `a:1,b:2`, are for the driver to read: no port is looked at here.
        parts = urlsplit(f"postgresql:{rest}")
    except ValueError:
        raise ValueError(
            "a PostgreSQL database is written postgresql://USER@HOST:PORT/DATABASE"
        ) from None
    if "#" in rest or "@" in parts.path or "@" in parts.query:
        # A password that is not encoded: what follows would be taken for the host, and shown.
        raise ValueError(
            "a PostgreSQL URL has special characters of user and password percent-encoded: "
            "@ as %40, / as %2F, # as %23, ? as %3F"
        )
    place, mark, query = rest.partition("?")
    options = [option for option in query.split("&") if option and not _dropped(option)]
    return Postgres(
        f"postgresql:{place}{mark if options else ''}{'&'.join(options)}",
        prepared="prepared=off" not in query.split("&"),
    )


def _dropped(option: str) -> bool:
    """Whether the driver need not see an option.

    Raises:
        ValueError: it cannot be had.
    """
    if option in _PREPARED:
        return True
    name, _, value = map(unquote, option.partition("="))
    if name in _IDLE:
        return True
    if name not in _REFUSED:
        return False
    if value in _REFUSED[name]:
        return True
    only = f" other than {' or '.join(_REFUSED[name])}" if _REFUSED[name] else ""
    raise ValueError(
        f"a PostgreSQL URL cannot have the option {name}{only} here, where the driver lacks it: "
        "leave it out"
    )
