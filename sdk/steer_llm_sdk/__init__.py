"""Steer in-process: planning, retries, circuit breakers and idempotency for Python tools.

`steer_llm_sdk.orchestration` has the orchestrators, `.planning` and `.reliability` below it their
terms; `steer_llm_sdk.reliability` circuits and idempotency keys, `steer_llm_sdk.streaming` events.
The same policies decide as in the sidecar (`steer serve`), and the same ledger keeps what was run.
"""

from __future__ import annotations

from typing import Any

__all__ = ["__version__"]

__version__: str


def __getattr__(name: str) -> Any:
    # Reading a distribution's metadata costs more than importing the package.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from steer_proxy import __version__

    return __version__
