"""The dialect of tools: an echo anywhere, an MCP server, and what is not there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.provider import Provider, faults
from tests.provider_tests.raw import CHAT, connected, request, streamed


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_echo(method: str) -> None:
    """Method, target, headers and body come back as they were."""
    async with Provider(name="tools") as provider, connected(provider) as client:
        sent = request(
            "/any/path?q=%20", method=method, headers=("X-A: 1", "x-a: 2"), body=b"\xff!"
        )
        client.send(sent)
        status, body = await client.plain()
        value = json.loads(body)
        assert (status, value["method"], value["target"]) == (200, method, "/any/path?q=%20")
        assert [pair for pair in value["headers"] if pair[0].lower() == "x-a"] == [
            ["X-A", "1"],
            ["x-a", "2"],
        ]
        assert (value["body"], value["provider"]) == ("\\xff!", "tools")


async def test_a_server_of_the_model_context_protocol() -> None:
    """Initialise, list, call with progress, notify, listen, end."""
    async with Provider() as provider, connected(provider) as client:
        call: dict[str, Any] = {"jsonrpc": "2.0", "id": 1}
        client.send(request("/tools/mcp", {**call, "method": "initialize"}))
        _, headers = await client.head()
        assert "mcp-session-id" in dict(headers)
        await client.reader.readexactly(int(dict(headers)["content-length"]))
        client.send(request("/tools/mcp", {**call, "method": "tools/list"}))
        assert json.loads((await client.plain())[1])["result"]["tools"][0]["name"] == "echo"
        client.send(request("/tools/mcp", {**call, "method": "tools/call"}))
        await client.head()
        chunks = await client.chunks()
        assert len(chunks) == 12
        assert b'"isError":false' in chunks[-1]
        client.send(request("/tools/mcp", {"jsonrpc": "2.0", "method": "notifications/cancelled"}))
        assert await client.plain() == (202, b"")
        client.send(request("/tools/mcp", method="DELETE"))
        assert (await client.head())[0] == 204
        client.send(request("/tools/mcp", method="GET"))
        _, headers = await client.head()
        assert dict(headers)["content-type"].startswith("text/event-stream")
        assert await client.chunk() == b": open\n\n"
        assert await client.silent()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/files", "/v1beta/models", "/tool"])
async def test_head_is_get_without_a_body(path: str) -> None:
    """The same length, and the next answer right behind."""
    async with Provider() as provider, connected(provider) as client:
        client.send(request(path, method="HEAD") + request(path, method="GET"))
        status, headers = await client.head()
        found, body = await client.plain()
        assert (status, found) == (200, 200)
        if path != "/tool":  # the echo names the method
            assert int(dict(headers)["content-length"]) == len(body)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", CHAT),
        ("DELETE", "/v1/messages"),
        ("GET", "/v1beta/models/m:generateContent"),
        ("GET", "/v1/files/file-none"),
        ("GET", "/v1/messages/batches/none"),
        ("POST", "/v1/models"),
        ("GET", "/v1/realtime"),
    ],
)
async def test_what_is_not_there_is_said_in_the_dialect(method: str, path: str) -> None:
    """404 with the dialect's error."""
    async with Provider() as provider, connected(provider) as client:
        client.send(request(path, method=method))
        status, body = await client.plain()
        assert status == 404
        assert "error" in json.loads(body)


@pytest.mark.parametrize(
    "prefix", ["", "/openai", "/api", "/openai/deployments/gpt-4o", "/inference"]
)
async def test_endpoints_are_found_behind_the_prefixes_of_other_vendors(prefix: str) -> None:
    """Groq, Azure, OpenRouter, Fireworks."""
    async with Provider() as provider, connected(provider) as client:
        provider.then(faults.overloaded())
        path = f"{prefix}/chat/completions" if "deployments" in prefix else f"{prefix}{CHAT}"
        client.send(request(path))
        assert (await client.plain())[0] == 503
        client.send(streamed(path))
        await client.head()
        assert (await client.chunks())[-1] == b"data: [DONE]\n\n"
