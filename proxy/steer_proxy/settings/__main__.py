"""`python -m steer_proxy.settings [FILE]` writes the JSON Schema; see `make schema`."""

from __future__ import annotations

import sys
from pathlib import Path

from steer_proxy.settings.schema import schema_text


def main(arguments: list[str]) -> None:
    """Write the schema to the file named, or to the one that is checked in."""
    Path(arguments[0] if arguments else "docs/steer.schema.json").write_text(
        schema_text(), encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
