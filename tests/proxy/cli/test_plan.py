"""`steer plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.cli.conftest import Steer

TEXT = """
upstreams:
  azure-eu:
    dialect: openai
    base_url: https://example.openai.azure.com/openai/v1
    credential: {env: AZURE_KEY, header: api-key}
    models: {gpt-4o: {quality: 0.5, context_tokens: 128000}}
  local: {dialect: openai, base_url: 'http://127.0.0.1:9/v1', credential: none}
routes:
- name: chat
  path: /v1
  candidates: [openai, {upstream: azure-eu, options: {model: gpt-4o}}]
  rules:
  - name: cheap-when-poor
    when: {attribute: budget.cost_usd, operator: lt, value: 0.05}
    use: {upstream: local, options: {model: small}}
"""

BODY = json.dumps({"model": "gpt-4o", "max_tokens": 100, "messages": []})


@pytest.fixture
def plan(steer: Steer, tmp_path: Path) -> Steer:
    """`steer plan` with the configuration above."""
    path = tmp_path / "steer.yaml"
    path.write_text(TEXT)

    def plan(*arguments: str, text: str | None = BODY) -> Any:
        return steer("plan", "-c", str(path), *arguments, text=text, AZURE_KEY="secret-value")

    return plan


def test_for_people(plan: Steer) -> None:
    """Where it goes, with which credential, and why."""
    result = plan("--route", "chat", "-")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "route chat (openai), chat.completions, model gpt-4o",
        "",
        "1. openai  https://api.openai.com/v1",
        "   model gpt-4o, credential: the caller's",
        "2. azure-eu  https://example.openai.azure.com/openai/v1",
        "   model gpt-4o, credential: environment variable AZURE_KEY",
        '   options {"model": "gpt-4o"}',
        "",
        "because",
        "  no rule matched: the route's own order",
        "",
        "until commit (first_token): at most 3 attempts at each, 6 in all, within 600 s",
        "after it: at most 3600 s, a break ends in: error",
    ]


def test_for_programs(plan: Steer, tmp_path: Path) -> None:
    """The same as JSON; the body from a file, the route by its path."""
    file = tmp_path / "body.json"
    file.write_text(BODY)
    result = plan("-r", "/v1", "--json", str(file), "-H", 'X-Steer-Budget: {"cost_usd": 0.04}')
    data = json.loads(result.output)
    assert data["rule"] == "cheap-when-poor"
    assert data["reasons"] == ["rule cheap-when-poor matched"]
    assert data["candidates"] == [
        {
            "upstream": "local",
            "base_url": "http://127.0.0.1:9/v1",
            "credential": "none",
            "model": "small",
            "options": {"model": "small"},
            "context_tokens": None,
            "estimated_usd": None,
        }
    ]
    assert data["attempts"] == {"each": 3, "total": 6}


def test_estimates_are_shown(plan: Steer) -> None:
    """Where there is a price."""
    result = plan("-r", "chat", "-", "-H", 'X-Steer-Budget: {"cost_usd": 5}')
    assert "   about $0.00" in result.output


def test_a_refusal_is_an_answer_too(plan: Steer) -> None:
    """With its status and code."""
    arguments = ("-r", "chat", "-", "-H", 'X-Steer-Budget: {"cost_usd": 0.0001, "ms": 5}')
    quality = ("-r", "azure", "-", "-H", "X-Steer-Upstream: nowhere")
    result = plan("-r", "chat", "-", "-H", "X-Steer-Upstream: nowhere")
    assert result.exit_code == 0
    assert "refused with 400 steer_unknown_upstream: Route chat has no upstream" in result.output
    assert plan(*arguments).exit_code == 0
    assert plan(*quality).exit_code == 2
    data = json.loads(plan("-r", "chat", "--json", "-", "-H", "x-steer-upstream: x").output)
    assert data["refused"]["status"] == 400


def test_what_is_not_generation(plan: Steer) -> None:
    """Goes home alone."""
    result = plan("-r", "chat", "--method", "get", "--path", "/models?limit=1", text=None)
    assert "1. openai" in result.output
    assert "2. " not in result.output
    assert "not a generation call: home alone" in result.output


@pytest.mark.parametrize("route", ["anthropic", "gemini", "cohere-native"])
def test_every_dialect_has_a_usual_path(plan: Steer, route: str) -> None:
    """So that a body alone is enough."""
    data = json.loads(plan("-r", route, "--json", "-").output)
    assert data["steered"] is True
    assert data["candidates"][0]["upstream"] == route


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-r", "chatt", "-"), "steer: no route is called chatt; did you mean chat?"),
        (("-r", "chat", "-H", "x-a"), "steer: a header is written as NAME:VALUE"),
        (("-r", "chat", "-H", ": x"), "steer: a header is written as NAME:VALUE"),
        (("-r", "chat", "nowhere.json"), "steer: nowhere.json cannot be read: No such file"),
        (
            ("-r", "chat", "-", "-H", "X-Steer-Budget: {}x"),
            "steer: X-Steer-Budget is not valid JSON",
        ),
    ],
)
def test_wrong_use(plan: Steer, arguments: tuple[str, ...], expected: str) -> None:
    """Exit code 2, one line."""
    result = plan(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(expected)
    assert result.stdout == ""


def test_a_body_that_is_not_json(plan: Steer) -> None:
    """Where it came from is said."""
    result = plan("-r", "chat", "-", text="{")
    assert result.exit_code == 2
    assert result.stderr.startswith("steer: standard input is not JSON: ")


def test_an_invalid_configuration(steer: Steer, tmp_path: Path) -> None:
    """As everywhere."""
    path = tmp_path / "steer.yaml"
    path.write_text("a: 1")
    assert steer("plan", "-c", str(path), "-r", "chat").exit_code == 2
