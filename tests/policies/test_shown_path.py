"""Paths as they may be shown."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_policies.shown_path import HIDDEN, shown_path


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/bot123456789:AAF-9dPq_xT3nKz81LmQw5vYbEcRs7uJh0k/sendMessage", "/.../sendMessage"),
        ("/bot123456789%3AAAF-9dPq_xT3nKz81LmQw5vYbEcRs7uJh0k/x", "/.../x"),
        ("/v1/key/sk-abcdefgh", "/v1/key/..."),
        ("/v1/sk-proj-abc_DEF-123456", "/v1/..."),
        ("/v1/prefix:sk-ant-api03-abcdefgh/x", "/v1/.../x"),
        ("/v1/AIzaSyA0123456789abcdefghijklmnopqrstuv", "/v1/..."),
        ("/v1/ya29.a0AfH6SMBx-1234567890", "/v1/..."),
        ("/v1/AKIAIOSFODNN7EXAMPLE", "/v1/..."),
        ("/v1/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln/x", "/v1/.../x"),
        ("/v1/ghp_0123456789abcdef", "/v1/..."),
        ("/proxy/https:/alice:hunter2@example.org/x", "/proxy/https:/.../x"),
        ("/key/0123456789abcdef", "/key/..."),
        ("/api-key/abcd1234", "/api-key/..."),
        ("/API_Key/abcdefghijklmnopqrstuvwxyz", "/API_Key/..."),
        ("/x/key=1/y", "/x/.../y"),
        ("/x/a=1;api%5Fkey=abcd/y", "/x/.../y"),
    ],
)
def test_credentials(path: str, shown: str) -> None:
    """Whoever the API is."""
    assert shown_path(path, strict=False) == shown
    assert shown_path(path, strict=True) == shown


@pytest.mark.parametrize(
    "path",
    [
        "",
        "*",
        "/",
        "//",
        "/v1/chat/completions",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "/v1/projects/my-project-123456/locations/us-east5/models/claude-sonnet-4-5@20250929:rawPredict",
        "/v1/responses/resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b452d3795b",
        "/v1/threads/0190163d-8694-739b-aea5-966c26f8ad91",
        "/oauth/token/introspect",
        "/auth/callback",
        "/v1/keys/12",
        "/search/page_token=12/sort=name",
        "/v1/tools/a%20word",
    ],
)
def test_what_is_no_credential(path: str) -> None:
    """It is shown as it came, whoever the API is."""
    assert shown_path(path, strict=True) == path


@pytest.mark.parametrize(
    "path",
    ["/services/T00/B00/aB3dE5gH7jK9mN1pQ3sT5vX7", "/v1/files/file-XjGxS3KTG0uNmNOK362iJua3"],
)
def test_what_may_be_one(path: str) -> None:
    """A model's provider names its objects so; of any other API nobody knows."""
    assert shown_path(path, strict=False) == path
    assert shown_path(path, strict=True) == path.rpartition("/")[0] + "/" + HIDDEN


@given(st.text("/aZ09:%3A=;@_-.sk"), st.booleans())
def test_anything_at_all(path: str, strict: bool) -> None:
    """Each segment is shown as it is, or hidden."""
    shown = shown_path(path, strict=strict)
    pairs = list(zip(path.split("/"), shown.split("/"), strict=True))
    assert all(after in (before, HIDDEN) for before, after in pairs)


@pytest.mark.parametrize(
    "unit", ["a", "sk-", "1:", ":@", "eyJ", "-eyJ", "a/", "=", ";=", "aB-", "%2", "eyJaaaaaaaa."]
)
def test_hostile_paths_take_no_longer(unit: str) -> None:
    """As long as a head may be."""
    started = time.process_time()
    shown_path("/" + unit * (32768 // len(unit)), strict=True)
    assert time.process_time() - started < 0.5
