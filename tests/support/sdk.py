"""The official SDKs twice: straight at a provider, and through Steer at another just like it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.provider import Behaviour, Provider
from tests.support.sidecar import Running, configure, running

# Where each dialect is found: at the provider, and through Steer's own routes.
BASES = {
    "openai": ("/v1", "/openai/v1"),
    "anthropic": ("", "/anthropic"),
    "gemini": ("", "/gemini"),
    "http": ("/api", "/tools"),
}
UPSTREAMS = {"openai": "openai", "anthropic": "anthropic", "gemini": "gemini", "http": "tools"}
NPM = Path(__file__).parents[1] / "npm"
SCRIPTS = Path(__file__).parents[1] / "acceptance" / "npm"


@dataclass(frozen=True)
class Doubles:
    """Two equal providers, Steer in front of the second."""

    direct: Provider
    behind: Provider
    steer: Running

    @property
    def port(self) -> int:
        """Steer's."""
        return self.steer.sidecar.port

    def both(self, behaviour: Behaviour) -> None:
        """Script both alike."""
        self.direct.always(behaviour)
        self.behind.always(behaviour)

    def urls(self, dialect: str) -> tuple[str, str]:
        """The base URLs for an SDK: the first provider's, and Steer's."""
        bare, steered = BASES[dialect]
        return self.direct.base_url + bare, self.steer.url + steered


@contextlib.asynccontextmanager
async def doubles(
    tmp_path: Path, *, quick_retries: bool = False, **upstream: Any
) -> AsyncIterator[Doubles]:
    """Two providers and Steer with its own routes; `upstream` refines every upstream.

    Breakers are put out of the way: failures in a row are passed on like anything else. With
    `quick_retries`, for tests in real time, the routes wait next to nothing between attempts.
    """
    async with Provider() as direct, Provider() as behind:
        shared = {"breaker": {"failure_threshold": 10_000, "min_calls": 10_000}, **upstream}
        retry = {"retry": {"initial_delay": 0.01}} if quick_retries else {}
        settings: dict[str, Any] = {
            "upstreams": {
                "openai": {"base_url": f"{behind.base_url}/v1", **shared},
                "anthropic": {"base_url": behind.base_url, **shared},
                "gemini": {"base_url": behind.base_url, **shared},
                "tools": {"dialect": "http", "base_url": f"{behind.base_url}/api", **shared},
            },
            "routes": [
                {"name": name, "path": BASES[dialect][1], "candidates": [name], **retry}
                for dialect, name in UPSTREAMS.items()
            ],
        }
        for dialect in ("openai", "anthropic"):
            # Port 9 is nobody's: connections to it are refused.
            name = f"unreachable-{dialect}"
            nobody = {"dialect": dialect, "base_url": "http://127.0.0.1:9", **shared}
            settings["upstreams"][name] = nobody
            route = {"name": name, "path": f"/unreachable/{dialect}", "candidates": [name], **retry}
            settings["routes"].append(route)
        async with running(configure(settings, tmp_path)) as steer:
            yield Doubles(direct, behind, steer)


# --- one scenario for both kinds of client

Scenario = Callable[[Any], Coroutine[Any, Any, Any]]


async def done(value: Any) -> Any:
    """The result of a call, whether the client is synchronous or not."""
    return await value if inspect.isawaitable(value) else value


async def listed(values: Any) -> list[Any]:
    """All items of a stream or page of either kind of client."""
    values = await done(values)
    if hasattr(values, "__aiter__"):
        return [value async for value in values]
    return list(values)


@contextlib.asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """A context manager of either kind."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


def driven(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in which nothing is ever awaited: a scenario with a synchronous client."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a synchronous client was awaited")


async def told(scenario: Scenario, client: Any) -> Any:
    """What a scenario comes to, as plain values; an exception by its class and what it says."""
    try:
        return plain(await scenario(client))
    except Exception as error:  # noqa: BLE001 - whatever it is, both sides must agree on it
        said = {name: plain(getattr(error, name, None)) for name in ("status_code", "body", "code")}
        return {"raised": type(error).__name__, "says": str(error), **said}


def plain(value: Any) -> Any:
    """SDK models and bytes as values that compare and print well."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json", warnings=False))
    if isinstance(value, Mapping):
        # google-genai's models have the answer's headers in them, Steer's own included.
        added = ("x-steer-", "X-Steer-")
        return {str(key): plain(each) for key, each in value.items() if not key.startswith(added)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def compared(names: Iterable[str], direct: Mapping[str, Any], proxied: Mapping[str, Any]) -> None:
    """Every scenario came to the same, and to something."""
    for name in names:
        assert proxied[name] == direct[name], name


# --- npm


async def node(script: str, **arguments: Any) -> Any:
    """The JSON that a script of `tests/acceptance/npm` prints; skips where it cannot run."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    if not (NPM / "node_modules" / "openai").exists():
        pytest.skip("the npm SDKs are not installed: run `npm ci` in tests/npm")
    # Packages are looked for from the script's own folder upwards, and they are elsewhere.
    process = await asyncio.create_subprocess_exec(
        program,
        str(SCRIPTS / script),
        json.dumps({"modules": str(NPM / "node_modules"), **arguments}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)
