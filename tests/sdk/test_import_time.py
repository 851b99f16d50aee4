"""Importing the in-process API is quick, and loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = [
    *("aiohttp", "aiohttp_retry", "alembic", "asyncpg", "cryptography", "genai_prices"),
    *("opentelemetry", "pydantic", "re2", "rich", "sqlalchemy", "sqlite3", "typer", "yaml"),
    "steer_proxy.cli",
]

MOST = 0.6

SCRIPT = """
import json, sys, time
began = time.process_time()
{}
took = time.process_time() - began
print(json.dumps([took, sorted(sys.modules)]))
"""


@pytest.mark.real_time
@pytest.mark.parametrize(
    "statement",
    [
        "import steer_llm_sdk",
        "from steer_llm_sdk.orchestration import *",
        "from steer_llm_sdk.orchestration.planning import *",
        "from steer_llm_sdk.orchestration.reliability import *",
        "from steer_llm_sdk.reliability import *",
        "from steer_llm_sdk.reliability.idempotency import IdempotencyManager",
        "from steer_llm_sdk.streaming.manager import EventManager",
    ],
)
def test_each_import_stands_alone(statement: str) -> None:
    """In a fresh process, whichever comes first, within twice the 300 ms of processor time that the
    benchmark holds it to: a slow machine is no mistake of ours, a heavy module is."""
    took, loaded = 1.0, []
    for _ in range(3):  # the first may have had to compile, and a busy machine is a slower one
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(statement)],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds, loaded = json.loads(done.stdout)
        took = min(took, seconds)
        if took <= MOST:
            break
    assert took <= MOST
    assert not [name for name in HEAVY if name in loaded]


def test_the_version_is_the_distributions() -> None:
    """Looked up when it is asked for; other names are refused."""
    import steer_llm_sdk
    import steer_proxy

    assert steer_llm_sdk.__version__ == steer_proxy.__version__
    with pytest.raises(AttributeError, match="nothing"):
        _ = steer_llm_sdk.nothing
