"""The environment over the file."""

from __future__ import annotations

import pytest

from tests.proxy.settings.conftest import Load, Refusals

TWO = """
upstreams:
  azure-eu: {dialect: openai, base_url: 'https://eu.example/v1', credential: {file: /nowhere}}
  Azure_US: {dialect: openai, base_url: 'https://us.example/v1', credential: none}
routes:
- {name: first-one, path: /a, candidates: [openai]}
- {name: second, path: /b, candidates: [openai]}
"""


def test_upstreams_are_found_by_what_a_variable_can_spell(configure: Load) -> None:
    """Case and punctuation do not matter, in the file's names and in the catalogue's."""
    config = configure(
        TWO,
        {
            "STEER_UPSTREAMS__OPENAI__BASE_URL": "http://127.0.0.1:9/v1",
            "STEER_UPSTREAMS__AZURE_EU__CREDENTIAL__ENV": "KEY",
            "STEER_UPSTREAMS__AZURE_EU__TIMEOUTS__CONNECT": "250ms",
            "STEER_UPSTREAMS__AZURE_US__CONCURRENCY__LIMIT": "3",
            "STEER_UPSTREAMS__COHERE_NATIVE__TRUST_ENV": "true",
            "KEY": "k",
        },
    )
    assert config.upstreams["openai"].base_url == "http://127.0.0.1:9/v1"
    azure = config.upstreams["azure-eu"]
    assert azure.policy.timeouts.connect == 0.25
    assert azure.credential is not None
    assert azure.credential.value() == "Bearer k"
    assert config.upstreams["Azure_US"].policy.concurrency.limit == 3
    assert config.upstreams["cohere-native"].trust_env


def test_routes_are_found_by_name(configure: Load) -> None:
    """A list has no keys, but its routes have names."""
    config = configure(
        TWO.replace("{file: /nowhere}", "none"),
        {
            "STEER_ROUTES__FIRST_ONE__TIMEOUTS__TOTAL": "7",
            "STEER_ROUTES__SECOND__RETRY__MAX_ATTEMPTS": "1",
        },
    )
    assert config.routes[0].policy.timeouts.total == 7.0
    assert config.routes[1].policy.retry.max_attempts == 1


def test_whole_blocks_and_lists(configure: Load) -> None:
    """Written as YAML or JSON in brackets."""
    config = configure(
        "",
        {
            "STEER_LISTEN__ALLOWED_HOSTS": '["a.local", "b.local"]',
            "STEER_ROUTES": "[{name: mine, path: /m, candidates: [openai]}]",
            "STEER_ADMIN": "{port: 9}",
            "STEER_UPSTREAMS__NEW": "{dialect: http, base_url: 'http://127.0.0.1:1'}",
        },
    )
    assert config.listen.allowed_hosts == ("a.local", "b.local")
    assert config.routes[0].name == "mine"
    assert config.admin.port == 9
    assert config.upstreams["new"].base_url == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STEER_LISTEN__PORT", ""),
        ("STEER_CONFIG", "steer.yaml"),
        # What Kubernetes sets for a service named steer, and anybody else's.
        ("STEER_PORT", "tcp://10.0.0.1:4100"),
        ("STEER_SERVICE_HOST", "10.0.0.1"),
        ("STEER_PORT_4100_TCP_ADDR", "10.0.0.1"),
        ("STEERING__LISTEN__PORT", "1"),
        ("LISTEN__PORT", "1"),
    ],
)
def test_what_is_not_ours(configure: Load, variable: str, value: str) -> None:
    """Empty variables are not set; names without a path are left to others."""
    assert configure("", {variable: value}).revision == configure("").revision


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        (
            "STEER_LISTN__PORT",
            "1",
            "STEER_LISTN__PORT: is no key of the configuration; did you mean listen?",
        ),
        (
            "STEER_DRAIN_TIMEOT",
            "1",
            "STEER_DRAIN_TIMEOT: is no key of the configuration; did you mean drain_timeout?",
        ),
        ("STEER_FOO__BAR", "1", "STEER_FOO__BAR: is no key of the configuration; known: listen"),
        ("STEER_LISTEN____PORT", "1", "STEER_LISTEN____PORT: has an empty step between its"),
        ("STEER_LISTEN__PORT__", "1", "STEER_LISTEN__PORT__: has an empty step between its"),
        ("STEER_LISTEN__PROT", "1", "STEER_LISTEN__PROT: listen.prot: unknown key; did you mean"),
        ("STEER_LISTEN__PORT", "x", "STEER_LISTEN__PORT: listen.port: expected a whole number"),
        ("STEER_LISTEN__ALLOWED_HOSTS", "[a", "opens a bracket that does not close"),
        (
            "STEER_ROUTES__THIRD__PATH",
            "/x",
            "STEER_ROUTES__THIRD__PATH: names no route of the file; known: first-one, second",
        ),
        (
            "STEER_ROUTES__SECOND__COMMIT",
            "early",
            "STEER_ROUTES__SECOND__COMMIT: routes[1].commit: expected one of headers",
        ),
        (
            "STEER_UPSTREAMS__OPNAI__BASE_URL",
            "https://h/v1",
            (
                "STEER_UPSTREAMS__OPNAI__BASE_URL: upstreams.opnai.dialect: is required for an "
                "upstream of your own (the catalogue knows openai)"
            ),
        ),
        (
            "STEER_UPSTREAMS__AZURE_US__CREDENTIAL",
            "sk-live",
            "STEER_UPSTREAMS__AZURE_US__CREDENTIAL: upstreams.Azure_US.credential: expected",
        ),
        ("STEER_UPSTREAMS", "x", "STEER_UPSTREAMS: upstreams: expected a mapping, got 'x'"),
    ],
)
def test_what_is_wrong_names_the_variable(
    refusals: Refusals, variable: str, value: str, expected: str
) -> None:
    """The place a value came from, not the file."""
    (problem,) = refusals(TWO.replace("{file: /nowhere}", "none"), {variable: value})
    assert expected in problem
    assert "sk-live" not in problem


def test_without_routes_there_is_none_to_name(refusals: Refusals) -> None:
    """The catalogue's are refined in the file."""
    (problem,) = refusals("", {"STEER_ROUTES__OPENAI__COMMIT": "headers"})
    assert problem == "STEER_ROUTES__OPENAI__COMMIT: names no route of the file"


def test_flags_are_named_too(refusals: Refusals) -> None:
    """As the command line."""
    (problem,) = refusals("", listen={"port": 70000})
    assert problem.startswith("command line: listen.port: expected a whole number from 0 to 65535")
