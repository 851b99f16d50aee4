"""Where a ledger is, read from a URL."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_proxy.ledger.address import (
    Address,
    Memory,
    Postgres,
    Sqlite,
    parse_address,
    password_in,
)


@pytest.mark.parametrize(
    ("url", "expected", "shown"),
    [
        ("memory:", Memory(), "memory"),
        ("sqlite:///steer.db", Sqlite("steer.db"), "SQLite file steer.db"),
        ("sqlite+aiosqlite:///./a b.db", Sqlite("./a b.db"), "SQLite file ./a b.db"),
        ("SQLite:////var/x.db", Sqlite("/var/x.db"), "SQLite file /var/x.db"),
        (
            "postgresql://u:p@h:5432/db",
            Postgres("postgresql://u:p@h:5432/db"),
            "PostgreSQL h:5432/db",
        ),
        ("postgresql+asyncpg://h/d%20b", Postgres("postgresql://h/d%20b"), "PostgreSQL h/d b"),
        (
            " postgresql:///db?host=/run/pg&password=p ",
            Postgres("postgresql:///db?host=/run/pg&password=p"),
            "PostgreSQL /run/pg/db",
        ),
        ("postgresql://a:1,b:2/db", Postgres("postgresql://a:1,b:2/db"), "PostgreSQL a:1,b:2/db"),
        ("postgresql://", Postgres("postgresql://"), "PostgreSQL localhost"),
        (
            "postgresql://h/d?connect_timeout=10&sslmode=require&keepalives=1&channel_binding=prefer",
            Postgres("postgresql://h/d?sslmode=require"),
            "PostgreSQL h/d",
        ),
        ("postgresql://h/d?gssencmode=disable", Postgres("postgresql://h/d"), "PostgreSQL h/d"),
    ],
)
def test_forms(url: str, expected: Address, shown: str) -> None:
    """What each names, and how it is shown: without a password."""
    found = parse_address(url)
    assert found == expected
    assert str(found) == shown
    assert "p@" not in repr(found)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "expected sqlite:///PATH"),
        ("steer.db", "expected sqlite:///PATH"),
        ("mysql://h/db", "expected sqlite:///PATH"),
        ("memory", "or memory:"),
        ("memory:x", "or memory:"),
        ("sqlite:", "sqlite:///steer.db"),
        ("sqlite://", "sqlite:///steer.db"),
        ("sqlite:steer.db", "sqlite:///steer.db"),
        ("sqlite://host/steer.db", "sqlite:////var/lib/steer/steer.db"),
        ("sqlite:///", "names a file"),
        ("sqlite:///:memory:", "write memory:"),
        ("sqlite:///a.db?mode=ro", "no options"),
        ("sqlite:///dir/", "not a directory"),
        ("postgres://h/db", "write postgresql://"),
        ("postgresql:db", "postgresql://HOST:PORT/DATABASE"),
        ("postgresql://[h/db", "postgresql://USER@HOST:PORT/DATABASE"),
        ("postgresql://h/db#x", "# as %23"),
        ("postgresql://u:p/w@h/db", "/ as %2F"),
        ("postgresql://u:p?w@h/db", "? as %3F"),
        (
            "postgresql://h/db?channel_binding=require",
            "channel_binding other than disable or prefer",
        ),
        ("postgresql://h/db?a=1&require%5Fauth=scram-sha-256", "option require_auth here"),
        ("postgresql+psycopg://h/db", "expected sqlite:///PATH"),
        ("sqlite:///a\nb.db", "one line"),
        ("sqlite:///" + "x" * 5000, "one line"),
    ],
)
def test_what_is_refused(url: str, expected: str) -> None:
    """With what was expected."""
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_address(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h/db", True),
        ("postgresql://u:p%40@h/db", True),
        ("postgresql://h/db?user=u&password=p", True),
        ("postgresql://h/db?sslpassword=p", True),
        ("postgresql://u:p@[h/db", True),
        ("postgresql://u@h/db", False),
        ("postgresql://u:@h/db", False),
        ("sqlite:///a:b@c.db", False),
        ("memory:", False),
    ],
)
def test_passwords(url: str, expected: bool) -> None:
    """Wherever a URL may hold one; a URL that cannot be read is taken to."""
    assert password_in(url) is expected


@given(st.text(max_size=60).map("postgresql:".__add__) | st.text(max_size=60))
def test_it_is_total(text: str) -> None:
    """An address that can be shown, or a ValueError."""
    password_in(text)
    with contextlib.suppress(ValueError):
        assert str(parse_address(text))
