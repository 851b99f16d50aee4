"""`steer check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.proxy.cli.conftest import Steer

VALID = """
listen: {token: {env: KEY}}
upstreams:
  openai: {credential: {env: KEY}}
  tools: {dialect: http, base_url: 'http://tools.example:9', credential: {env: KEY, header: x-key}}
  local: {dialect: openai, base_url: 'http://127.0.0.1:9/v1', credential: none}
catalogue: false
routes:
- name: chat
  path: /v1
  candidates: [openai, local]
  rules:
  - {name: first, priority: 2, when: {attribute: model, operator: exists}, use: local}
  - {name: always, priority: 1, use: local}
  - {name: never, use: openai}
- {name: tools, path: /tools, candidates: [tools]}
"""


def test_a_valid_configuration(steer: Steer, tmp_path: Path) -> None:
    """What it amounts to, and what is worth a second look."""
    path = tmp_path / "steer.yaml"
    path.write_text(VALID)
    result = steer("check", str(path), KEY="secret-value")
    assert result.exit_code == 0, result.output
    assert "secret-value" not in result.output
    first, *lines = result.output.splitlines()
    assert first.startswith(f"{path} is valid (revision ")
    assert lines == [
        "",
        "data plane   http://127.0.0.1:4100 (token required)",
        "admin plane  http://127.0.0.1:4101",
        "ledger       SQLite file steer.db",
        "",
        "route  path    dialect  goes to         rules",
        "chat   /v1     openai   openai > local  3",
        "tools  /tools  http     tools           -",
        "",
        "upstream  address                    credential",
        "openai    https://api.openai.com/v1  environment variable KEY as authorization",
        "tools     http://tools.example:9     environment variable KEY as x-key",
        "local     http://127.0.0.1:9/v1      none is sent",
        "",
        "note: the credential of tools travels unencrypted to http://tools.example:9",
        "note: route chat never asks rule never: always always matches",
    ]


def test_no_configuration_is_valid_too(steer: Steer) -> None:
    """The catalogue, and nothing to note."""
    result = steer("check")
    assert result.exit_code == 0
    assert result.output.startswith("The configuration without a file is valid (revision ")
    assert "anthropic" in result.output
    assert "note:" not in result.output
    assert "upstream  " not in result.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("admin: {prot: 1}", ["steer: the configuration has 1 problem", "admin.prot: unknown key"]),
        ("a: 1\na: 2", ["steer: the configuration has 1 problem", "a: appears twice"]),
    ],
)
def test_an_invalid_configuration(
    steer: Steer, tmp_path: Path, text: str, expected: list[str]
) -> None:
    """Exit code 2; the file may be named by the environment."""
    path = tmp_path / "steer.yaml"
    path.write_text(text)
    for result in (steer("check", str(path)), steer("check", STEER_CONFIG=str(path))):
        assert result.exit_code == 2
        assert result.stdout == ""
        for line, part in zip(result.stderr.splitlines(), expected, strict=True):
            assert part in line


def test_a_file_that_is_not_there(steer: Steer, tmp_path: Path) -> None:
    """Also invalid."""
    result = steer("check", str(tmp_path / "nowhere.yaml"))
    assert result.exit_code == 2
    assert "nowhere.yaml: cannot be read: No such file or directory" in result.stderr


def test_the_schema(steer: Steer) -> None:
    """On standard output, for editors."""
    result = steer("check", "--schema")
    assert result.exit_code == 0
    assert json.loads(result.output)["title"] == "Steer configuration"
