"""Alembic's entry: turns revisions into SQL text, without a connection.

Steer's own drivers (`sqlite3`, `asyncpg`) run that text in one transaction of theirs, see
`steer_proxy.ledger.migrate`. So a revision cannot read data into Python: what it does to data, it
says in SQL. By hand, `alembic -c migrations/alembic.ini -x dialect=postgresql upgrade head --sql`
prints the same text.
"""

from __future__ import annotations

from alembic import context


def _dialect() -> str:
    given = context.config.attributes.get("dialect")
    return str(given or context.get_x_argument(as_dictionary=True).get("dialect", "sqlite"))


if not context.is_offline_mode():
    raise SystemExit("Use `steer db upgrade`, or print the SQL with --sql.")

context.configure(
    dialect_name=_dialect(),
    # Without it a percent sign is doubled, for drivers that we do not use.
    dialect_opts={"paramstyle": "named"},
    literal_binds=True,
    # The transaction belongs to whoever runs the text.
    transactional_ddl=False,
)
context.run_migrations()
