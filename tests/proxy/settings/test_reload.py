"""What a reload cannot change."""

from __future__ import annotations

from typing import Any

import pytest

from steer_proxy.settings import reload_differences
from tests.proxy.settings.conftest import Load


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("listen: {port: 9}", ("listen.port",)),
        ("listen: {port: 9, allowed_hosts: [a]}", ("listen.port", "listen.allowed_hosts")),
        ("admin: {token: {env: K}}", ("admin.token",)),
        (
            "limits: {max_connections: 9}\nadmin: {port: 9}",
            ("admin.port", "limits.max_connections"),
        ),
        (
            "database: {url: 'memory:', required: true}\nledger: {queue: 9, labels: [team]}",
            ("database.url", "database.required", "ledger.queue", "ledger.labels"),
        ),
        (
            "database: {encryption: {keys: [{id: a, secret: {env: E}}]}}",
            ("database.encryption",),
        ),
        ("drain_timeout: 9", ()),
        ("routes: [{name: openai, idempotency: {retention: 2h}}]", ()),
        ("upstreams: {openai: {credential: {env: K}}}", ()),
        ("routes: [{name: openai, commit: headers}]", ()),
    ],
)
def test_keys_that_need_a_restart(configure: Load, text: str, expected: Any) -> None:
    """Those that are read once; everything else takes effect with the next call."""
    env = {"K": "k", "E": "0" * 64}
    assert reload_differences(configure("", env), configure(text, env)) == expected
