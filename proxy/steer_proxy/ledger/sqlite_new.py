"""What makes a new SQLite file a ledger: the SQL of all its revisions, written down ahead of time.

Alembic and SQLAlchemy take half a second to say the same, and 23 MB of every process that has asked
them. A pod whose disk is its own starts with a new file each time.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: The revision that the text leads to. Where it is not the newest, Alembic is asked.
REVISION: Final = "0002"
#: The text; `make schema` writes it.
TEXT: Final = Path(__file__).with_name("sqlite_new.sql")

_NOTE: Final = "-- Written by `make schema`, from the revisions in migrations/. Not to be edited."
#: Where each ledger has a secret of its own.
_PLACE: Final = "{secret}"


def statements() -> list[str]:
    """The SQL that makes an empty file a ledger at `REVISION`, with a secret of its own."""
    text = TEXT.read_text("utf-8").replace(_PLACE, secrets.token_hex(32))
    return text.split("\n\n")[1:]


def written(found: Iterable[str]) -> str:
    """The text, from the statements that Alembic has for a new file."""
    tidy = [re.sub(r"[ \t]+$", "", each, flags=re.MULTILINE) for each in found]
    text = "\n\n".join([_NOTE, *tidy]) + "\n"
    return re.sub(r"(?<=')[0-9a-f]{64}(?=')", _PLACE, text)
