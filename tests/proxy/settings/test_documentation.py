"""The documentation of the configuration keeps up with it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from steer_policies.attributes import ROOTS
from steer_policies.budget import BudgetPolicy
from steer_policies.config import (
    BreakerPolicy,
    CallTimeouts,
    ConcurrencyLimit,
    ModelFacts,
    RetryPolicy,
    Timeouts,
)
from steer_policies.idempotency import IdempotencyPolicy
from steer_policies.operators import Operator
from steer_proxy.catalogue import PROVIDERS
from steer_proxy.engine.config import LedgerTerms, Limits
from steer_proxy.settings.models import (
    AdminBlock,
    DatabaseBlock,
    EncryptionBlock,
    EncryptionKeyBlock,
    ListenBlock,
    RouteBlock,
    RuleBlock,
    Settings,
    UpstreamBlock,
)
from steer_proxy.settings.presets import NAMES
from tests.proxy.settings.conftest import Load

TEXT = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)

BLOCKS: list[Any] = [
    Settings,
    ListenBlock,
    AdminBlock,
    DatabaseBlock,
    EncryptionBlock,
    EncryptionKeyBlock,
    UpstreamBlock,
    RouteBlock,
    RuleBlock,
]
VALUES: list[Any] = [
    Limits,
    LedgerTerms,
    Timeouts,
    BreakerPolicy,
    ConcurrencyLimit,
    ModelFacts,
    CallTimeouts,
    RetryPolicy,
    BudgetPolicy,
    IdempotencyPolicy,
]
SECRETS = {"azure": "k", "ledger-2027": "0" * 64, "ledger-2026": "1" * 64}
KEYS = sorted(
    {name for block in BLOCKS for name in block.model_fields}
    | {field.name for value in VALUES for field in dataclasses.fields(value)}
)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_documented(key: str) -> None:
    """By its name, as code or as the heading of its block."""
    assert re.search(rf"`{key}`|^### {key}\b|\*\*{key}\b", TEXT, re.MULTILINE)


@pytest.mark.parametrize("name", [*NAMES, *Operator])
def test_every_preset_and_operator_is_documented(name: str) -> None:
    """By its name."""
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("root", ROOTS)
def test_every_attribute_is_documented(root: str) -> None:
    """By its root."""
    assert re.search(rf"`{root}(\.[A-Za-z_.]+)?`", TEXT)


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_is_documented(name: str) -> None:
    """With its route and variables."""
    (row,) = re.findall(rf"^\| {name} \|.*$", TEXT, re.MULTILINE)
    provider = PROVIDERS[name]
    assert f"`{provider.path}`" in row
    assert re.findall(r"`([A-Z_]+)`", row) == [each.name for each in provider.variables]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_valid(configure: Load, tmp_path: Path, example: str) -> None:
    """As it is printed, but for the places of secrets' files."""
    for name, text in SECRETS.items():
        (tmp_path / name).write_text(text)
    configure(
        example.replace("/run/secrets/", f"{tmp_path}/"),
        {"AZURE_OPENAI_API_KEY": "k", "DATABASE_URL": "postgresql://u:p@h/d"},
    )


def test_there_are_examples() -> None:
    """The pattern above finds them."""
    assert len(EXAMPLES) == 4
