"""`steer ledger show --body`: a stored answer, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import Result

from steer_proxy.ledger import migrate
from steer_proxy.ledger.sealing import Sealer
from steer_proxy.ledger.values import CallRow
from tests.proxy.cli.conftest import Steer
from tests.support.ledger_data import statement

KEY = os.urandom(32)
BODY = bytes(range(256)) * 1000 + b"data: [DONE]\n\n"
HEAD = {"reason": "OK", "fields": [["content-type", "text/event-stream"], ["x", "a\x1b[2Jb"]]}

Show = Callable[..., Result]


@pytest.fixture(params=["plain", "encrypted"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A ledger with one answer, and a duplicate that was served from it."""
    sealer = Sealer([("new", KEY)] if request.param == "encrypted" else [])
    path = tmp_path / "steer.db"
    migrate.upgrade(f"sqlite:///{path}")
    step = 60_000
    rows = [
        sealer.seal("one", seq, seq * step, 0, BODY[seq * step : (seq + 1) * step])
        for seq in range(-(-len(BODY) // step))
    ]
    call = CallRow(
        id="one",
        request_id="r-1",
        idem_key="k",
        idem_scope="s",
        idem_role="owner",
        idem_state="completed",
        idem_live=1,
        keyring_id=sealer.key_id,
        resp_headers=sealer.seal_head("one", json.dumps(HEAD)),
        resp_bytes=len(BODY),
        resp_chunks=len(rows),
        resp_sha256=hashlib.sha256(BODY).hexdigest(),
    )
    replay = CallRow(
        id="two", request_id="r-2", idem_key="k", idem_role="replayed", served_from="one"
    )
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(statement("requests", call, "?"), [call, replay])
        connection.executemany(statement("response_chunks", rows[0], "?"), rows)
    return path


@pytest.fixture
def show(steer: Steer, path: Path) -> Show:
    """Run `steer ledger show` with the key that is needed, or others."""
    config = path.with_suffix(".yaml")
    config.write_text(
        f"database:\n  url: 'sqlite:///{path}'\n"
        "  encryption: {keys: [{id: newer, secret: {env: NEWER}}, {id: new, secret: {env: NEW}}]}\n"
    )

    def show(*arguments: str, key: bytes = KEY) -> Result:
        env = {"NEW": key.hex(), "NEWER": "0" * 64}
        return steer("ledger", "show", *arguments, "--config", str(config), **env)

    return show


@pytest.mark.parametrize("name", ["k", "one", "r-1", "r-2"])
def test_the_bytes(show: Show, name: str) -> None:
    """Decrypted and whole; a duplicate's are those it was given."""
    result = show(name, "--body")
    assert result.exit_code == 0
    assert result.stdout_bytes == BODY


def test_the_head(show: Show) -> None:
    """In words, without what moves a cursor, and as JSON."""
    lines = show("k").stdout.splitlines()
    assert "  content-type: text/event-stream" in lines
    assert "  x: a\\x1b[2Jb" in lines
    assert f"  resp_bytes   {len(BODY)}" in lines
    assert json.loads(show("k", "--json").stdout)["call"]["resp_headers"] == HEAD


@pytest.mark.parametrize("path", ["encrypted"], indirect=True)
def test_another_key(show: Show) -> None:
    """Says which one is needed; the call itself can be looked at all the same."""
    result = show("k", "--body", key=b"x" * 32)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the encryption key 'new' is another one" in result.stderr
    shown = show("k", key=b"x" * 32)
    assert shown.exit_code == 0
    assert "its headers cannot be read: the encryption key 'new'" in shown.stdout


@pytest.mark.parametrize("path", ["encrypted"], indirect=True)
def test_a_key_that_is_gone(steer: Steer, path: Path) -> None:
    """Without a ring."""
    result = steer("ledger", "show", "k", "--body", "--database-url", f"sqlite:///{path}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the encryption key 'new' is not in the ring" in result.stderr


@pytest.mark.parametrize("path", ["plain"], indirect=True)
def test_a_record_that_names_a_key_it_does_not_need(show: Show, path: Path) -> None:
    """What it says to be encrypted is not read in the clear."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE requests SET keyring_id = 'new'")
    result = show("one", "--body")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not encrypted with the key that its record names" in result.stderr
    assert "its headers cannot be read: it is not encrypted with" in show("one").stdout


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("DELETE FROM response_chunks WHERE seq = 1", "a piece of the answer of one is missing"),
        ("DELETE FROM response_chunks WHERE seq = 4", "is not what was stored"),
        ("UPDATE requests SET resp_sha256 = 'x' WHERE id = 'one'", "is not what was stored"),
        ("UPDATE response_chunks SET body = x'00' WHERE seq = 0", "steer: the "),
        ("UPDATE requests SET resp_chunks = NULL", "no answer is stored for one"),
        ("DELETE FROM requests WHERE id = 'one'", "no call has the id"),
    ],
)
def test_what_cannot_be_given_back(show: Show, path: Path, damage: str, expected: str) -> None:
    """Is said, with exit code 1."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(damage)
    result = show("r-2", "--body")
    assert result.exit_code == 1
    assert expected in result.stderr
