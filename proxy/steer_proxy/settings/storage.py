"""How the file names the ledger's database: a URL, or a reference to one that holds a password."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import PlainValidator, WithJsonSchema

from steer_proxy.ledger.address import FORMS, parse_address, password_in
from steer_proxy.settings.errors import Key
from steer_proxy.settings.fields import SECRET_SCHEMA, SecretRef, parse_secret

#: Where the ledger is when nothing else is said.
DEFAULT_URL: Final = "sqlite+aiosqlite:///steer.db"

PASSWORD: Final = (
    "a URL with a password is a secret: keep it in an environment variable or a file and write "  # noqa: S105
    "{env: NAME} or {file: PATH}, or set STEER_DATABASE__URL"
)


def parse_url(value: object) -> str | SecretRef:
    """A database URL without a password, or a reference to one that may have it."""
    if isinstance(value, Mapping):
        return parse_secret(value)
    if not isinstance(value, str):
        raise ValueError(f"expected {FORMS}; or a reference, {{env: NAME}} or {{file: PATH}}")  # noqa: TRY004 - pydantic's way
    if password_in(value):
        raise ValueError(PASSWORD)
    parse_address(value)
    return value.strip()


def by_reference(values: Mapping[str, Any], variables: Mapping[Key, str]) -> dict[str, Any]:
    """The values, with a URL that holds a password replaced by the variable it came from.

    A variable is where a secret may be: `STEER_DATABASE__URL` is a reference to itself.
    """
    variable = variables.get(("database", "url"))
    database = values.get("database")
    if variable is None or not isinstance(database, Mapping):
        return dict(values)
    url = database.get("url")
    if not isinstance(url, str) or not password_in(url):
        return dict(values)
    return {**values, "database": {**database, "url": {"env": variable}}}


_URL_SCHEMA: Final[Mapping[str, Any]] = {
    "anyOf": [
        {
            "type": "string",
            "pattern": r"^(sqlite(\+aiosqlite)?:///|postgresql(\+asyncpg)?://|memory:)",
        },
        SECRET_SCHEMA,
    ]
}

DatabaseUrl = Annotated[
    str | SecretRef, PlainValidator(parse_url), WithJsonSchema(dict(_URL_SCHEMA))
]
