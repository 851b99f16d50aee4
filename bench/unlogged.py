"""`python -m bench.unlogged serve ...`: Steer without its books, to see what they cost.

Nothing of a call is written down, nor made ready to be. There is no such setting: this is for the
comparison only.
"""

from __future__ import annotations

from typing import Any

from steer_proxy import app
from steer_proxy.cli import main
from steer_proxy.http.gateway import Gateway


class _Forgetful(Gateway):
    """A gateway that is given no books."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{**named, "books": None})


if __name__ == "__main__":
    app.Gateway = _Forgetful  # type: ignore[attr-defined]
    main()
