"""The files that TLS with a PostgreSQL server needs."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest

from steer_proxy.ledger import migrate
from steer_proxy.ledger.address import Postgres
from steer_proxy.ledger.postgres import PostgresLedger
from steer_proxy.ledger.postgres_errors import of_connecting
from steer_proxy.ledger.postgres_tls import tls_problem
from steer_proxy.ledger.protocol import LedgerUnusable
from steer_proxy.ledger.reading import reading

NOWHERE = "postgresql://u:hunter2@127.0.0.1:1/d"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without certificates, and an environment without options."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SSLMODE", "SSLROOTCERT", "SSLCRL", "SSLCERT", "SSLKEY", "SERVICE", "HOST"):
        monkeypatch.delenv(f"PG{name}", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("", None),
        ("?sslmode=prefer", None),
        ("?sslmode=require", None),
        ("?sslmode=disable&sslrootcert=/none.crt", None),
        ("?sslmode=prefer&sslrootcert=/none.crt", None),
        ("?sslmode=verify-full", "sslmode=verify-full needs .*: give sslrootcert=PATH"),
        ("?sslmode=verify-ca", "sslmode=verify-ca needs"),
        ("?sslmode=verify-ca&sslrootcert=/none.crt", "sslrootcert=/none.crt cannot be read: No s"),
        ("?sslmode=require&sslrootcert=%2Fno%20ne.crt", "sslrootcert=/no ne.crt cannot be read"),
        ("?sslcert=/none.crt", "sslcert=/none.crt cannot be read"),
        ("?sslmode=require&sslcert=/dev/null&sslkey=/none", "sslkey=/none cannot be read"),
        ("?sslmode=require&sslcrl=/none.crl", "sslcrl=/none.crl cannot be read"),
        ("?sslkey=/none", None),
        ("?service=s&sslmode=verify-full", None),
        ("?servicefile=/none&sslcert=/none.crt", None),
    ],
)
def test_files(options: str, problem: str | None) -> None:
    """What is missing is told with the option that names it, where it would be read."""
    found = tls_problem(NOWHERE + options)
    assert (found is None) is (problem is None)
    assert re.search(problem or "", found or "")
    assert "hunter2" not in (found or "")


def test_places_of_libpq(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root certificate may be where libpq has it, and an option in the environment."""
    (home / ".postgresql").mkdir()
    (home / ".postgresql" / "root.crt").touch()
    assert tls_problem(NOWHERE + "?sslmode=verify-full") is None
    monkeypatch.setenv("PGSSLROOTCERT", "/none.crt")
    assert "sslrootcert=/none.crt" in str(tls_problem(NOWHERE + "?sslmode=verify-full"))


@pytest.mark.parametrize(
    ("url", "environment", "refused"),
    [
        ("postgresql:///d?host=/run/postgresql", {}, False),
        ("postgresql://%2Frun%2Fpostgresql/d", {}, False),
        ("postgresql://u:p@/d", {"PGHOST": "/run/postgresql"}, False),
        ("postgresql:///d?host=/run/postgresql&sslmode=prefer", {}, True),
        ("postgresql:///d?host=/run/postgresql", {"PGSSLMODE": "prefer"}, True),
        ("postgresql:///d?host=/run/postgresql,localhost", {}, True),
        ("postgresql://u@h/d?host=/run/postgresql", {}, True),
        ("postgresql:///d", {}, True),
    ],
)
def test_no_files_for_sockets(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], refused: bool
) -> None:
    """TLS is not for Unix sockets, unless it is asked for."""
    monkeypatch.setenv("PGSSLCERT", "/none.crt")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (tls_problem(url) is not None) is refused


def test_no_key_without_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver reads a key for a certificate alone, and what a service has is its to find."""
    monkeypatch.setenv("PGSSLKEY", "/none")
    assert tls_problem(NOWHERE) is None
    assert tls_problem(NOWHERE + "?sslcert=/dev/null") is not None
    monkeypatch.setenv("PGSERVICE", "s")
    assert tls_problem(NOWHERE + "?sslcert=/dev/null") is None


async def test_a_ledger_says_so() -> None:
    """It cannot be opened: waiting would not help."""
    ledger = PostgresLedger(Postgres(NOWHERE + "?sslmode=verify-full"))
    with pytest.raises(LedgerUnusable, match="give sslrootcert=PATH"):
        await ledger.open()
    await ledger.close()


def test_a_certificate_that_is_none_of_its() -> None:
    """It is refused by TLS, which is told: the URL is understood."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    assert str(of_connecting(error)) == "the database cannot be reached: certificate verify failed"


def test_commands_say_so() -> None:
    """Those that migrate, and those that read."""
    url = NOWHERE + "?sslmode=require&sslrootcert=/none.crt"
    with pytest.raises(LedgerUnusable, match=r"sslrootcert=/none\.crt"):
        migrate.current(url)
    with pytest.raises(LedgerUnusable, match=r"sslrootcert=/none\.crt"), reading(Postgres(url)):
        pass
