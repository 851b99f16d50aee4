"""The configuration as the data plane sees it: frozen, resolved, checked.

`steer_proxy.settings.load` makes a `Config`; `http` and `engine` import only this module. Every
name in it is resolved: a route's candidates exist, share its dialect, and have credentials of their
own where a caller's must not go. A reload makes a new value with another `revision`; a call keeps
the one it began with.

All durations are seconds, all sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from steer_policies.config import ByteSize, DialectName, Seconds, UpstreamPolicy
from steer_policies.route import RoutePolicy
from steer_proxy.engine.secret import Secret, SecretUnavailable
from steer_proxy.ledger.address import Address, parse_address
from steer_proxy.ledger.sealing import Sealer, key_bytes

__all__ = [
    "Admin",
    "Alias",
    "Config",
    "Credential",
    "Database",
    "EncryptionKey",
    "LedgerTerms",
    "Limits",
    "Listen",
    "Route",
    "Secret",
    "SecretUnavailable",
    "Upstream",
]

_FORBID_UNKNOWN: Final = {"extra": "forbid"}

#: Keys of `X-Steer-Metadata` that can become labels: each is a column's worth of every row.
MAX_LABELS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the data plane listens, and whom it serves.

    `token`, when set, must be presented by every caller. `allowed_hosts` are the `Host` values
    accepted besides loopback names and the address itself.
    """

    host: str = "127.0.0.1"
    port: int = 4100
    token: Secret | None = None
    allowed_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """Where the admin plane listens; its health pages need no `token`."""

    host: str = "127.0.0.1"
    port: int = 4101
    token: Secret | None = None
    allowed_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the data plane.

    `max_body` is the largest request body; up to `spool_above` bytes of it stay in memory, the rest
    goes to a temporary file; `body_memory` bounds the memory of all bodies together.
    `max_connections` counts callers' connections. `head_timeout` and `body_timeout` bound the wait
    for a request's head and for each further part of its body; `keep_alive` an idle connection.
    """

    __pydantic_config__ = _FORBID_UNKNOWN

    max_body: ByteSize = 64 * 2**20
    spool_above: ByteSize = 2**20
    body_memory: ByteSize = 128 * 2**20
    max_connections: int = 4096
    head_timeout: Seconds = 30.0
    body_timeout: Seconds = 60.0
    keep_alive: Seconds = 75.0

    def __post_init__(self) -> None:
        for name in ("max_body", "body_memory", "max_connections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("head_timeout", "body_timeout", "keep_alive"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0")
        if self.spool_above > self.body_memory:
            raise ValueError("spool_above must not exceed body_memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionKey:
    """A key of the ring that stored answers are encrypted with: its name and its secret.

    The name is written beside what it encrypted. The secret is 32 bytes as base64 or hexadecimal.
    """

    id: str
    secret: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Where the ledger is.

    `url` is `sqlite:///PATH`, `postgresql://...` (with or without the driver's name, as in
    `sqlite+aiosqlite` and `postgresql+asyncpg`), or `memory:`; a reference where it holds a
    password. With `encryption` stored answers are encrypted with the first key; the others still
    decrypt. Without `plaintext` an answer that is not encrypted is refused. `required` makes
    start-up and readiness depend on the ledger.
    """

    url: str | Secret = "memory:"
    encryption: tuple[EncryptionKey, ...] = ()
    plaintext: bool = True
    required: bool = False

    def address(self) -> Address:
        """The place itself.

        Raises:
            SecretUnavailable: when the reference no longer resolves.
            ValueError: when what it holds is no database URL.
        """
        return parse_address(self.url if isinstance(self.url, str) else self.url.read())

    def ring(self) -> tuple[tuple[str, bytes], ...]:
        """The names and keys that answers are sealed with.

        Raises:
            SecretUnavailable: when a reference no longer resolves.
            ValueError: when what it holds is no key.
        """
        return tuple((key.id, key_bytes(key.secret.read())) for key in self.encryption)

    def sealer(self) -> Sealer:
        """What seals and opens stored answers; raises what `ring` does."""
        return Sealer(self.ring(), plaintext=self.plaintext)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerTerms:
    """What the ledger keeps.

    `retention` is how long rows are kept after their call, in seconds; `max_bytes` bounds all
    stored answers together, None for no bound. `queue` is how many rows may wait to be written:
    more are dropped, and counted. `labels` are the keys of `X-Steer-Metadata` that become a call's
    labels. `redact` names a function, `package.module:function`, that is given the text columns of
    every row as a dict and returns what is to be written.
    """

    __pydantic_config__ = _FORBID_UNKNOWN

    retention: Seconds = 30 * 86_400.0
    max_bytes: ByteSize | None = 10 * 2**30
    queue: int = 10_000
    labels: tuple[str, ...] = ()
    redact: str | None = None

    def __post_init__(self) -> None:
        if self.retention <= 0:
            raise ValueError("retention must be greater than 0")
        if self.queue < 1:
            raise ValueError("queue must be at least 1")
        if len(self.labels) > MAX_LABELS or not all(1 <= len(each) <= 64 for each in self.labels):
            raise ValueError(f"labels must be at most {MAX_LABELS} names of 1 to 64 characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A credential Steer puts on a request: the lower-case header name, a prefix, the secret."""

    header: str
    prefix: str
    secret: Secret

    def value(self) -> str:
        """The header's value now.

        Raises:
            SecretUnavailable: when the reference no longer resolves.
        """
        return self.prefix + self.secret.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One endpoint with one credential.

    `base_url` has no trailing slash, no query, no user info; a call's remaining path is appended.
    `credential` is what Steer injects; None with `anonymous` False passes the caller's own through;
    None with `anonymous` True removes the caller's and puts nothing in its place. `headers` are
    added to every request (lower-case names). `trust_env` honours HTTP_PROXY and its kin.
    """

    name: str
    dialect: DialectName
    base_url: str
    policy: UpstreamPolicy
    credential: Credential | None = None
    anonymous: bool = False
    trust_env: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def passthrough(self) -> bool:
        """Whether the caller's own credential goes to this upstream."""
        return self.credential is None and not self.anonymous


@dataclass(frozen=True, slots=True)
class Alias:
    """A request path that begins with `prefix` is read as if it began with `means`.

    Both are matched at segment boundaries; the longest prefix of all routes and aliases wins.
    """

    prefix: str
    means: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A path prefix and what becomes of the calls below it.

    `path` begins with a slash and does not end with one (the root alone is `/`). `home` is the
    first candidate's upstream: the only one a caller's credential may go to.
    """

    name: str
    path: str
    policy: RoutePolicy
    home: str
    aliases: tuple[Alias, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the proxy needs to know; `revision` is a short digest of what was configured.

    Secrets do not enter the digest, only their references. `credential_headers` are the lower-case
    names of the headers in which any upstream takes a credential: they may hold a caller's.
    """

    routes: tuple[Route, ...]
    upstreams: Mapping[str, Upstream]
    listen: Listen = field(default_factory=Listen)
    admin: Admin = field(default_factory=Admin)
    limits: Limits = field(default_factory=Limits)
    database: Database = field(default_factory=Database)
    ledger: LedgerTerms = field(default_factory=LedgerTerms)
    drain_timeout: float = 20.0
    revision: str = ""
    credential_headers: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = frozenset(
            upstream.credential.header.lower()
            for upstream in self.upstreams.values()
            if upstream.credential is not None
        )
        object.__setattr__(self, "credential_headers", names)
