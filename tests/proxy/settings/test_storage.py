"""Where the ledger is, what it keeps, and a route's terms for keyed calls."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from steer_policies.idempotency import IdempotencyPolicy, OnLedgerDown, OnUncertain, Save
from steer_proxy.engine.config import Database, EncryptionKey, LedgerTerms
from steer_proxy.engine.secret import Secret
from steer_proxy.ledger.address import Memory, Postgres, Sqlite
from steer_proxy.ledger.sealing import Unreadable
from tests.proxy.settings.conftest import Load, Refusals

WITH_PASSWORD = "postgresql://steer:hunter2@db/steer"
KEY = "0f" * 32
GOOD = "{id: a, secret: {env: K}}"


def test_by_default_a_file_in_the_working_directory(configure: Load) -> None:
    """Nothing encrypted, nothing required, a month of rows."""
    config = configure()
    assert config.database == Database(url="sqlite+aiosqlite:///steer.db")
    assert config.database.address() == Sqlite("steer.db")
    assert config.database.ring() == ()
    assert config.ledger == LedgerTerms(
        retention=30 * 86400.0, max_bytes=10 * 2**30, queue=10_000, labels=(), redact=None
    )
    assert {route.policy.idempotency for route in config.routes} == {IdempotencyPolicy()}


@pytest.mark.parametrize(
    "url",
    [
        "memory:",
        "sqlite:///steer.db",
        "sqlite+aiosqlite:////var/lib/steer.db",
        "postgresql://steer@db:5432/steer?sslmode=require",
        "postgresql+asyncpg://db/steer",
    ],
)
def test_every_form(configure: Load, url: str) -> None:
    """As it is written, in the file, the environment and a flag."""
    assert configure(f"database: {{url: '{url}'}}").database.url == url
    assert configure("", {"STEER_DATABASE__URL": url}).database.url == url
    assert configure("database: {url: x}", database={"url": url}).database.url == url


def test_a_reference(configure: Load, tmp_path: Path) -> None:
    """Where a URL holds a password."""
    (tmp_path / "url").write_text(WITH_PASSWORD + "\n")
    config = configure(f"database: {{url: {{file: {tmp_path}/url}}}}")
    assert config.database.url == Secret(file=f"{tmp_path}/url")
    assert config.database.address() == Postgres(WITH_PASSWORD)
    assert "hunter2" not in repr(config)
    by_name = configure("database: {url: {env: U}}", {"U": "memory:"})
    assert by_name.database.address() == Memory()


def test_the_environment_may_hold_a_password(configure: Load) -> None:
    """It is a place for secrets, and from there on one is known by its reference alone."""
    config = configure("database: {url: {file: /x}}", {"STEER_DATABASE__URL": WITH_PASSWORD})
    assert config.database.url == Secret(env="STEER_DATABASE__URL")
    assert config.database.address() == Postgres(WITH_PASSWORD)
    other = WITH_PASSWORD.replace("hunter2", "hunter3")
    rotated = configure("database: {url: {file: /x}}", {"STEER_DATABASE__URL": other})
    assert rotated.revision == config.revision


def test_a_reference_over_another(configure: Load) -> None:
    """The environment's takes the place of the file's."""
    env = {"STEER_DATABASE__URL__ENV": "U", "U": "memory:"}
    assert configure("database: {url: {file: /nowhere}}", env).database.url == Secret(env="U")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("database: {url: steer.db}", "database.url: expected sqlite:///PATH"),
        ("database: {url: 'mysql://h/d'}", "database.url: expected sqlite:///PATH"),
        ("database: {url: 7}", "or a reference, {env: NAME} or {file: PATH}"),
        (
            f"database: {{url: '{WITH_PASSWORD}'}}",
            "database.url: a URL with a password is a secret: keep it in an environment variable",
        ),
        ("database: {url: {env: NOWHERE}}", "environment variable NOWHERE is not set"),
        ("database: {url: {env: ODD}}", "environment variable ODD: expected sqlite:///PATH"),
        ("database: {url: {env: A, file: B}}", "database.url: expected exactly one of env and"),
        ("database: {ulr: x}", "database.ulr: unknown key; did you mean url?"),
        ("database: {required: perhaps}", "database.required: expected true or false"),
        ("database: {encryption: {keys: []}}", "encryption.keys: expected at least one"),
        ("database: {encryption: {}}", "database.encryption.keys: is required"),
        (
            "database: {encryption: {keys: [{id: a, secret: hunter2}]}}",
            "database.encryption.keys[0].secret: a secret is written as a reference",
        ),
        (
            "database: {encryption: {keys: [{id: a, secret: {env: NOWHERE}}]}}",
            "database.encryption.keys[0].secret: environment variable NOWHERE is not set",
        ),
        (
            "database: {encryption: {keys: [{id: a, secret: {file: /nowhere}}]}}",
            "database.encryption.keys[0].secret: file /nowhere cannot be read",
        ),
        (
            f"database: {{encryption: {{keys: [{GOOD}, {{id: b, secret: {{env: ODD}}}}]}}}}",
            "keys[1].secret: environment variable ODD: must hold 32 bytes as base64 or hexadecimal",
        ),
        (
            f"database: {{encryption: {{keys: [{GOOD}, {GOOD}]}}}}",
            "database.encryption.keys[1].id: a is taken by keys[0]",
        ),
        (
            "database: {encryption: {keys: [{id: 'a b', secret: {env: K}}]}}",
            "database.encryption.keys[0].id: expected a name of letters",
        ),
        (
            f"database: {{encryption: {{plaintext: maybe, keys: [{GOOD}]}}}}",
            "database.encryption.plaintext: ",
        ),
        ("ledger: {retention: 0}", "ledger.retention: must be greater than 0, got 0"),
        ("ledger: {max_bytes: much}", "ledger.max_bytes: a size is a whole number"),
        ("ledger: {queue: 0}", "ledger.queue: must be at least 1, got 0"),
        ("ledger: {labels: team}", "ledger.labels: expected a list, got 'team'"),
        ("ledger: {labels: ['']}", "ledger.labels: must be at most 32 names of 1 to 64 characters"),
        ("ledger: {lables: []}", "ledger.lables: unknown key; did you mean labels?"),
        ("ledger: {redact: hooks}", "ledger.redact: expected package.module:function"),
        (
            "ledger: {redact: 'no_such_module:f'}",
            "ledger.redact: no_such_module cannot be imported",
        ),
        ("ledger: {redact: 'json:dumbs'}", "ledger.redact: json has no function dumbs"),
    ],
)
def test_what_is_refused(refusals: Refusals, text: str, expected: str) -> None:
    """With the key path and what was expected, and never with a secret."""
    (problem,) = refusals(text, {"K": KEY, "ODD": "hunter2"})
    assert expected in problem
    assert "hunter2" not in problem


def test_no_password_on_the_command_line(refusals: Refusals) -> None:
    """Every user of the machine could read it."""
    (problem,) = refusals(database={"url": WITH_PASSWORD})
    assert problem.startswith("command line: database.url: a URL with a password is a secret")
    assert "hunter2" not in problem


def test_a_ring(configure: Load, tmp_path: Path) -> None:
    """Keys by reference, the first one first, whatever way their bytes are written."""
    (tmp_path / "key").write_text(base64.b64encode(b"k" * 32).decode() + "\n")
    config = configure(
        "database: {encryption: {keys: [{id: new, secret: {env: K}}, "
        f"{{id: old, secret: {{file: {tmp_path}/key}}}}]}}}}",
        {"K": KEY},
    )
    assert config.database.ring() == (("new", b"\x0f" * 32), ("old", b"k" * 32))
    assert config.database.encryption[0] == EncryptionKey(id="new", secret=Secret(env="K"))
    assert KEY not in repr(config)
    assert config.database.plaintext


def test_plaintext(configure: Load) -> None:
    """Answers that are not encrypted can be refused."""
    config = configure(
        f"database: {{encryption: {{plaintext: refuse, keys: [{GOOD}]}}}}", {"K": KEY}
    )
    assert not config.database.plaintext
    with pytest.raises(Unreadable):
        config.database.sealer().open_head("id", "{}")


def test_terms(configure: Load) -> None:
    """With units, and null for no bound."""
    config = configure(
        "ledger: {retention: 7d, max_bytes: null, queue: 9, labels: [team], redact: 'json:dumps'}",
        {"STEER_LEDGER__QUEUE": "10"},
        database={"required": True},
    )
    assert config.ledger == LedgerTerms(
        retention=7 * 86400.0, max_bytes=None, queue=10, labels=("team",), redact="json:dumps"
    )
    assert config.database.required is True


def test_a_route_s_terms(configure: Load) -> None:
    """Every key of them, and the environment's over the file's."""
    config = configure(
        """
routes:
  - name: openai
    idempotency: {retention: 48h, join_timeout: 60, on_uncertain: rerun, on_ledger_down: open,
      scope: "header:X-Tenant", require_key: true, save: final, max_stored: 1MiB, adopt: false,
      adopt_grace: 3}
""",
        {"STEER_ROUTES__OPENAI__IDEMPOTENCY__JOIN_TIMEOUT": "2m"},
    )
    (policy,) = (route.policy.idempotency for route in config.routes if route.name == "openai")
    assert policy == IdempotencyPolicy(
        retention=172800.0,
        join_timeout=120.0,
        on_uncertain=OnUncertain.RERUN,
        on_ledger_down=OnLedgerDown.OPEN,
        scope="header:X-Tenant",
        require_key=True,
        save=Save.FINAL,
        max_stored=2**20,
        adopt=False,
        adopt_grace=3.0,
    )


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ("retention: 0", "retention: must be greater than 0, got 0"),
        ("retention: 1h", "retention: must be at least 4200 s, as long as a call may take"),
        ("join_timeout: never", "join_timeout: a duration is a number of seconds or text"),
        ("on_uncertain: retry", "on_uncertain: expected one of fail, rerun; did you mean rerun?"),
        ("on_ledger_down: opn", "expected one of fail, open; did you mean open?, got 'opn'"),
        ("scope: everybody", "scope: must be caller, route or header:NAME, got 'everybody'"),
        ("scope: 'header:'", "scope: must be caller, route or header:NAME, got 'header:'"),
        ("scope: 'header:a b'", "scope: must be caller, route or header:NAME, got 'header:a b'"),
        ("save: all", "save: expected one of success, final, nothing"),
        ("max_stored: -1", "max_stored: a size is a whole number of bytes"),
        ("retentoin: 1", "retentoin: unknown key; did you mean retention?"),
    ],
)
def test_terms_that_cannot_be(refusals: Refusals, terms: str, expected: str) -> None:
    """Named by their key path."""
    (problem,) = refusals(f"routes: [{{name: openai, idempotency: {{{terms}}}}}]")
    assert "routes[0].idempotency" in problem
    assert expected in problem
