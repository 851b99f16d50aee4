"""What `steer doctor` looks at on the machine: Python, libraries, certificates, limits, disk.

Each check takes what it judges, so that tests can hand it any machine; `machine` reads this one.
"""

from __future__ import annotations

import os
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from steer_proxy import open_files
from steer_proxy.cli.findings import Finding, failure, note, ok, warning

if TYPE_CHECKING:
    from steer_proxy.engine.config import Limits

#: The versions of Python the tests run on.
TESTED: Final = ((3, 11), (3, 13))

#: The first aiohttp without the request smuggling and parser faults of its predecessors.
AIOHTTP: Final = (3, 14, 4)

#: SQLite's WAL-reset bug (https://sqlite.org/wal.html) came with 3.7.0; these releases, and later
#: ones of their branches, have it mended, and so has everything after the last.
WAL_BUG_SINCE: Final = (3, 7, 0)
WAL_BUG_MENDED: Final = ((3, 44, 6), (3, 50, 7), (3, 51, 3))

#: 2026-01-01T00:00:00Z: no clock that is right shows less.
BORN: Final = 1_767_225_600


def machine(limits: Limits) -> Iterator[Finding]:
    """This machine's findings; `limits` are the configuration's, or the defaults."""
    yield python(sys.version_info[:3])
    version, parser = _aiohttp()
    yield http_library(version, parser=parser, disabled="AIOHTTP_NO_EXTENSIONS" in os.environ)
    yield event_loop(_version_of("uvloop"), sys.platform)
    yield certificates(ssl.get_default_verify_paths(), _authorities(), os.environ)
    yield descriptors(limits.max_connections, *open_files.limits())
    yield spool(Path(tempfile.gettempdir()), limits.max_body)
    yield clock(time.time())
    yield sqlite(_sqlite_version())


def python(version: tuple[int, ...]) -> Finding:
    """Python is recent enough."""
    shown = "Python " + _dotted(version)
    if version < TESTED[0]:
        return failure("python", f"{shown} is too old", f"use {_dotted(TESTED[0])} or newer")
    if version[:2] > TESTED[1]:
        return note("python", f"{shown}; Steer is tested up to {_dotted(TESTED[1])}")
    return ok("python", shown)


def http_library(version: tuple[int, ...], *, parser: bool, disabled: bool) -> Finding:
    """The HTTP library is recent enough, and has its C parser: `steer serve` wants both."""
    shown = "aiohttp " + _dotted(version)
    if version < AIOHTTP:
        return failure(
            "aiohttp",
            f"{shown} lets smuggled requests through",
            f"pip install 'aiohttp>={_dotted(AIOHTTP)}'",
        )
    if not parser:
        remedy = "pip install --force-reinstall --only-binary :all: aiohttp"
        if disabled:
            remedy = "unset AIOHTTP_NO_EXTENSIONS"
        return failure("aiohttp", f"{shown} without its C extension: slow, and less strict", remedy)
    return ok("aiohttp", f"{shown} with its C extension")


def event_loop(version: str | None, platform: str) -> Finding:
    """Uvloop is there: Steer runs without it, more slowly."""
    if version is not None:
        return ok("uvloop", f"uvloop {version}")
    if platform == "win32":
        return note("uvloop", "there is no uvloop for Windows; asyncio's own loop is used")
    text = "uvloop cannot be imported; asyncio's own loop is used, which is slower"
    return warning("uvloop", text, "pip install uvloop")


def certificates(paths: ssl.DefaultVerifyPaths, loaded: int, environ: Mapping[str, str]) -> Finding:
    """Providers can be checked by certificate authorities; `loaded` is how many came at once."""
    for variable in (paths.openssl_cafile_env, paths.openssl_capath_env):
        named = environ.get(variable)
        if named and not Path(named).exists():
            return failure(
                "certificates",
                f"{variable} names {named}, which is not there",
                "mend or unset it: no provider's certificate can be checked",
            )
    if loaded:
        return ok("certificates", f"{loaded} authorities in {paths.cafile or paths.capath}")
    # A folder of hashed names is looked up when a certificate is checked: nothing is counted yet.
    if paths.capath and any(Path(paths.capath).glob("*.0")):
        return ok("certificates", f"authorities in {paths.capath}")
    return failure(
        "certificates",
        "no certificate authorities: calls over https will fail",
        "install ca-certificates, or set SSL_CERT_FILE",
    )


def descriptors(connections: int, soft: int | None, hard: int | None) -> Finding:
    """Open files suffice for `limits.max_connections`; None means that there is no limit.

    A call needs one for its caller and one for its upstream.
    """
    needed = open_files.needed(connections)
    if soft is None or soft >= needed:
        shown = "without limit" if soft is None else str(soft)
        return ok("descriptors", f"open files {shown}, for {connections} connections")
    remedy = f"ulimit -n {needed}, or a smaller limits.max_connections"
    if hard is not None and hard < needed:
        remedy = f"raise the hard limit ({hard}), then {remedy}"
    text = f"open files {soft}: limits.max_connections is {connections}, which may need {needed}"
    return warning("descriptors", text, remedy)


def spool(folder: Path, largest: int) -> Finding:
    """Large request bodies can be spooled to temporary files."""
    try:
        with tempfile.TemporaryFile(prefix="steer-doctor-", dir=folder) as file:
            file.write(b"steer")
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return failure(
            "spool",
            f"{folder} cannot be written to: {error.strerror or error}",
            "large requests are spooled there; set TMPDIR to a folder that can be",
        )
    shown = f"{folder} has {_size(free)} free"
    if free < largest:
        return failure(
            "spool",
            f"{shown}, less than one request of limits.max_body ({_size(largest)})",
            "make room, or set TMPDIR to a folder with more",
        )
    if free < 16 * largest:
        return warning(
            "spool",
            f"{shown}, room for {free // largest} requests of limits.max_body ({_size(largest)})",
            "make room, or set TMPDIR to a folder with more",
        )
    return ok("spool", shown)


def clock(now: float) -> Finding:
    """The clock shows a time at which Steer exists: certificates are judged by it."""
    if now < BORN:
        return failure(
            "clock",
            f"the clock shows {_day(now)}",
            "set it: certificates seem not to be valid yet",
        )
    return ok("clock", f"{_day(now)} UTC")


def sqlite(version: tuple[int, ...] | None) -> Finding:
    """The SQLite linked to Python.

    Its WAL-reset bug needs two connections that write at once. One process writes a ledger, and
    commands take turns with it: what remains are programs that are not ours.
    """
    if version is None:
        remedy = "use a Python with the module sqlite3"
        return failure("sqlite", "Python has no SQLite, which the ledger needs", remedy)
    shown = "SQLite " + _dotted(version)
    if not has_wal_bug(version):
        return ok("sqlite", shown)
    return note(
        "sqlite",
        f"{shown} has the WAL-reset bug (3.7.0 to 3.51.2; mended in 3.51.3, 3.50.7, 3.44.6), "
        "which Steer does not meet, but other programs can",
        "open a running ledger's file with them read-only: sqlite3 -readonly",
    )


def has_wal_bug(version: tuple[int, ...]) -> bool:
    """Whether two connections can corrupt a database in WAL mode with this SQLite."""
    if version < WAL_BUG_SINCE or version >= WAL_BUG_MENDED[-1]:
        return False
    return not any(version[:2] == mended[:2] and version >= mended for mended in WAL_BUG_MENDED)


def _aiohttp() -> tuple[tuple[int, ...], bool]:
    import aiohttp
    from aiohttp import http_parser
    from aiohttp.helpers import NO_EXTENSIONS

    python_parser = http_parser.HttpRequestParser is http_parser.HttpRequestParserPy
    return _numbers(aiohttp.__version__), not (NO_EXTENSIONS or python_parser)


def _version_of(package: str) -> str | None:
    from importlib import import_module

    try:
        return str(import_module(package).__version__)
    except ImportError:
        return None


def _authorities() -> int:
    try:
        return ssl.create_default_context().cert_store_stats()["x509_ca"]
    except (OSError, ssl.SSLError):
        return 0


def _sqlite_version() -> tuple[int, ...] | None:
    try:
        import sqlite3
    except ImportError:
        return None
    return sqlite3.sqlite_version_info


def _numbers(version: str) -> tuple[int, ...]:
    """`3.14.5` as numbers; what is no number (a release candidate's mark) ends it."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(now))
