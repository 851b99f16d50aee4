"""Versions of Steer to come, as far as migrations show them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from steer_proxy.ledger import migrate, schema
from steer_proxy.ledger.migrate import HEAD, REVISIONS

ROOT: Final = Path(__file__).resolve().parents[2]

#: What a later version may do while this one still runs: it adds.
ADDITIVE: Final = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{head}"


def upgrade() -> None:
    op.add_column("requests", sa.Column("region", sa.Text()))
    op.add_column("attempts", sa.Column("region", sa.Text(), server_default="somewhere"))
    op.add_column("owners", sa.Column("zone", sa.Text()))
    op.create_index("requests_region", "requests", ["region"])
    op.create_table("extra", sa.Column("id", sa.Text(), primary_key=True))
    op.execute("UPDATE requests SET region = 'here' WHERE upstream = 'openai'")


def downgrade() -> None:
    op.drop_table("extra")
    op.drop_index("requests_region", "requests")
    op.drop_column("owners", "zone")
    op.drop_column("attempts", "region")
    op.drop_column("requests", "region")
"""

#: One that fails after it has changed something.
FAILING: Final = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{head}"


def upgrade() -> None:
    op.add_column("requests", sa.Column("region", sa.Text()))
    op.execute("DELETE FROM attempts")
    op.execute("INSERT INTO no_such_table VALUES (1)")
"""

NextVersion = Callable[[str], None]
"""Makes this process the version of Steer that brings one more revision."""


def become(folder: Path, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    """Be that version, until the patches are undone."""
    shutil.copytree(ROOT / "migrations", folder)
    (folder / "versions" / "next.py").write_text(revision.format(head=HEAD))
    monkeypatch.setattr(migrate, "scripts", lambda: folder)
    for module in (schema, migrate):
        monkeypatch.setattr(module, "REVISIONS", (*REVISIONS, "next"))
        monkeypatch.setattr(module, "HEAD", "next")
