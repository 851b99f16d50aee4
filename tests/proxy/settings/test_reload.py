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
        ("drain_timeout: 9", ()),
        ("upstreams: {openai: {credential: {env: K}}}", ()),
        ("routes: [{name: openai, commit: headers}]", ()),
    ],
)
def test_keys_that_need_a_restart(configure: Load, text: str, expected: Any) -> None:
    """Those that are read once; everything else takes effect with the next call."""
    env = {"K": "k"}
    assert reload_differences(configure("", env), configure(text, env)) == expected
