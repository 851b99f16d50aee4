"""`steer env`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from steer_proxy.catalogue import PROVIDERS
from tests.proxy.cli.conftest import Steer


def test_for_a_shell(steer: Steer) -> None:
    """Lines that `eval` takes; what has no variable is told in comments."""
    lines = steer("env").output.splitlines()
    assert "export OPENAI_BASE_URL=http://127.0.0.1:4100/openai/v1" in lines
    assert "export ANTHROPIC_BASE_URL=http://127.0.0.1:4100/anthropic" in lines
    assert "export GOOGLE_GEMINI_BASE_URL=http://127.0.0.1:4100/gemini" in lines
    assert "export GROQ_BASE_URL=http://127.0.0.1:4100/groq" in lines
    assert "export TOGETHER_BASE_URL=http://127.0.0.1:4100/together" in lines
    assert "export CO_API_URL=http://127.0.0.1:4100/cohere" in lines
    assert "#   deepseek: http://127.0.0.1:4100/deepseek/v1" in lines
    assert all(line.startswith(("export ", "#")) for line in lines)


def test_every_variable_of_the_catalogue_is_there(steer: Steer) -> None:
    """As JSON, each once."""
    data = json.loads(steer("env", "-f", "json").output)
    assert set(data) == {each.name for one in PROVIDERS.values() for each in one.variables}


def test_other_formats(steer: Steer) -> None:
    """For dotenv files and for containers."""
    assert steer("env", "-f", "dotenv", "-p", "anthropic").output == (
        "ANTHROPIC_BASE_URL=http://127.0.0.1:4100/anthropic\n"
        "ANTHROPIC_API_URL=http://127.0.0.1:4100/anthropic\n"
    )
    assert yaml.safe_load(
        steer("env", "-f", "k8s", "-p", "groq", "--url", "http://steer/").output
    ) == [{"name": "GROQ_BASE_URL", "value": "http://steer/groq"}]


def test_only_some_providers(steer: Steer) -> None:
    """By name; one without a variable is told in a comment."""
    output = steer("env", "-p", "groq", "-p", "xai").output
    assert output.splitlines() == [
        "# groq",
        "export GROQ_BASE_URL=http://127.0.0.1:4100/groq",
        "# Without a variable; give the SDK its base URL in code:",
        "#   xai: http://127.0.0.1:4100/xai/v1",
    ]
    result = steer("env", "-p", "grok")
    assert result.exit_code == 2
    assert result.stderr.startswith("steer: unknown provider grok; did you mean groq?")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", "http://127.0.0.1:9"),
        ("'::'", "http://[::1]:9"),
        ("'::1'", "http://[::1]:9"),
        ("steer.local", "http://steer.local:9"),
    ],
)
def test_where_the_sidecar_listens(steer: Steer, tmp_path: Path, host: str, expected: str) -> None:
    """As a caller on this machine writes it."""
    path = tmp_path / "steer.yaml"
    path.write_text(f"listen: {{host: {host}, port: 9}}")
    data = json.loads(steer("env", "-c", str(path), "-f", "json").output)
    assert data["ANTHROPIC_BASE_URL"] == f"{expected}/anthropic"


def test_configured_routes_are_preferred(steer: Steer, tmp_path: Path) -> None:
    """A route to the provider, or in its dialect to an upstream of one's own; never to another."""
    path = tmp_path / "steer.yaml"
    path.write_text(
        "upstreams:\n"
        "  mine: {dialect: anthropic, base_url: 'http://127.0.0.1:1'}\n"
        "routes:\n"
        "- {name: chat, path: /v1, candidates: [openai]}\n"
        "- {name: claude, path: /, candidates: [mine]}\n"
        "- {name: odd, path: /odd, candidates: [groq]}\n"
        "- {name: mistral-first, path: /m, candidates: [mistral]}\n"
    )
    data = json.loads(steer("env", "-c", str(path), "-f", "json").output)
    assert data["OPENAI_BASE_URL"] == "http://127.0.0.1:4100/v1"
    assert data["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4100"
    assert data["GROQ_BASE_URL"] == "http://127.0.0.1:4100/groq"
    assert data["MISTRAL_BASE_URL"] == "http://127.0.0.1:4100/m"


def test_without_any_route_for_a_provider(steer: Steer, tmp_path: Path) -> None:
    """No variable, and no empty one either."""
    path = tmp_path / "steer.yaml"
    path.write_text("catalogue: false")
    assert json.loads(steer("env", "-c", str(path), "-f", "json").output) == {}
    assert steer("env", "-c", str(path)).output == "\n"
