"""The files that TLS with a PostgreSQL server needs, looked at before anything is connected.

The driver says of a missing one that it is missing, not which option named it, and in words that
look like a server that is away. An option that is not in the URL may be in the environment, as
libpq's. What the driver would not read is no problem, nor is what a service file may say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

#: With these the server's certificate, or what it is checked by, is read.
_CHECKED: Final = ("require", "verify-ca", "verify-full")


def tls_problem(dsn: str) -> str | None:
    """What is wrong with a file that a libpq URL names; None when nothing is."""
    try:
        parts = urlsplit(dsn)
        options = dict(parse_qsl(parts.query))
    except ValueError:
        return None  # the driver says so
    if options.keys() & {"service", "servicefile"} or "PGSERVICE" in os.environ:
        return None  # it has options that are not known here
    mode = options.get("sslmode") or os.environ.get("PGSSLMODE")
    if mode == "disable" or (mode is None and _sockets(parts.netloc, options)):
        return None
    mode = mode or "prefer"
    named = dict(_named(options, mode))
    for option, path in named.items():
        try:
            Path(path).open("rb").close()
        except OSError as error:
            return f"database.url: {option}={path} cannot be read: {error.strerror}"
    if mode.startswith("verify-") and "sslrootcert" not in named and not _own_root():
        return (
            f"database.url: sslmode={mode} needs the certificate that the server's is checked by: "
            "give sslrootcert=PATH, or have it in ~/.postgresql/root.crt"
        )
    return None


def _sockets(place: str, options: dict[str, str]) -> bool:
    """Whether Unix sockets alone are named: without a host `localhost` is tried, too."""
    named = unquote(place.partition("@")[2] if "@" in place else place)
    hosts = named or options.get("host") or os.environ.get("PGHOST") or "localhost"
    return all(host.startswith("/") for host in hosts.split(","))


def _named(options: dict[str, str], mode: str) -> Iterator[tuple[str, str]]:
    """The files that are read, by their options: a key is read for a certificate alone."""

    def path_of(option: str) -> str | None:
        return options.get(option) or os.environ.get(f"PG{option.upper()}")

    checking = ("sslrootcert", "sslcrl") if mode in _CHECKED else ()
    own = ("sslcert", "sslkey") if path_of("sslcert") else ()
    for option in (*checking, *own):
        if path := path_of(option):
            yield option, path


def _own_root() -> bool:
    try:
        return (Path.home() / ".postgresql" / "root.crt").exists()
    except (OSError, RuntimeError):
        return False
