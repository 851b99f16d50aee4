"""The files that TLS with a PostgreSQL server needs, looked at before anything is connected.

The driver says of a missing one that it is missing, not which option named it, and in words that
look like a server that is away. An option that is not in the URL may be in the environment, as
libpq's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

#: With these the server's certificate, or what it is checked by, is read.
_CHECKED: Final = ("require", "verify-ca", "verify-full")


def tls_problem(dsn: str) -> str | None:
    """What is wrong with a file that a libpq URL names; None when nothing is."""
    try:
        options = dict(parse_qsl(urlsplit(dsn).query))
    except ValueError:
        return None  # the driver says so
    mode = options.get("sslmode") or os.environ.get("PGSSLMODE", "prefer")
    if mode == "disable":
        return None
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


def _named(options: dict[str, str], mode: str) -> Iterator[tuple[str, str]]:
    for option in ("sslrootcert", "sslcrl", "sslcert", "sslkey"):
        if option in ("sslrootcert", "sslcrl") and mode not in _CHECKED:
            continue
        if path := options.get(option) or os.environ.get(f"PG{option.upper()}"):
            yield option, path


def _own_root() -> bool:
    try:
        return (Path.home() / ".postgresql" / "root.crt").exists()
    except (OSError, RuntimeError):
        return False
