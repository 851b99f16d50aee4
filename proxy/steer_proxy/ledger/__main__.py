"""`python -m steer_proxy.ledger [FILE]` writes the SQL of a new SQLite file; see `make schema`."""

from __future__ import annotations

import sys
from pathlib import Path

from steer_proxy.ledger import sqlite_new
from steer_proxy.ledger.migrate import HEAD, rendered


def main(arguments: list[str]) -> None:
    """Write the text to the file named, or to its place in the package."""
    place = Path(arguments[0]) if arguments else sqlite_new.TEXT
    place.write_text(sqlite_new.written(rendered("sqlite", None, HEAD)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
