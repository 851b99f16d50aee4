"""From a file, the environment and flags to a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from steer_policies.config import DialectName, ModelFacts, OnBreak
from steer_policies.route import Order
from steer_proxy.catalogue import PROVIDERS
from steer_proxy.engine.config import Alias
from steer_proxy.settings import ConfigSource, ConfigurationError, load
from tests.proxy.settings.conftest import Load

WHOLE = """
listen: {host: 127.0.0.1, port: 4100, token: null, allowed_hosts: [steer.local]}
admin: {host: 127.0.0.1, port: 4101}
limits: {max_body: 32MiB, body_memory: 128MiB, max_connections: 4096, head_timeout: 500ms}
drain_timeout: 10s
upstreams:
  openai:
    credential: passthrough
  azure-eu:
    dialect: openai
    base_url: https://Example.openai.azure.com/openai/v1/
    credential: {env: AZURE_OPENAI_API_KEY, header: Api-Key}
    timeouts: {connect: 5, first_byte: 60, answer: 10m, first_token: 120, idle: 120}
    breaker: {failure_threshold: 5, failure_rate: 0.5, min_calls: 20, window: 60,
              open_duration: 30, success_threshold: 1, probes: 1, when_all_open: reject}
    concurrency: {limit: 256, queue: 256}
    models: {gpt-4o: {quality: 0.9, context_tokens: 128000}}
    idempotency_key: forward
    headers: {X-Team: blue}
routes:
  - name: chat
    path: /v1
    candidates:
      - openai
      - {upstream: azure-eu, options: {model: gpt-4o}}
    timeouts: {total: 600, max_stream: 3600}
    retry: {max_attempts: 3, max_total_attempts: 6, initial_delay: 0.5, max_delay: 30,
            max_total_delay: 60, hop_after: 5, ambiguous: retry}
    commit: first_token
    on_break: resume
    on_refusal: fallback
    usage: ask
    rules:
      - name: cheap-when-poor
        priority: 20
        when:
          all:
            - {attribute: budget.cost_usd, operator: lt, value: 5e-2}
            - {attribute: body.model, operator: starts_with, value: gpt-4}
        use: {upstream: openai, options: {model: gpt-4o-mini}}
        fallbacks: [{upstream: azure-eu, options: {model: gpt-4o-mini}}]
        timeouts: {total: 9}
"""

KEY = {"AZURE_OPENAI_API_KEY": "azure-secret"}


def test_without_a_file_every_provider_has_a_route() -> None:
    """The caller's own credentials are passed through, and nothing is listened to from outside."""
    config = load(None, {})
    assert {route.name for route in config.routes} == {*PROVIDERS, "default"}
    paths = {route.path: route.home for route in config.routes}
    assert paths["/v1"] == "openai"
    assert paths["/openai/v1"] == "openai"
    assert paths["/anthropic"] == "anthropic"
    assert paths["/gemini"] == "gemini"
    assert paths["/groq/openai/v1"] == "groq"
    assert all(upstream.passthrough for upstream in config.upstreams.values())
    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 4100)
    assert (config.admin.host, config.admin.port) == ("127.0.0.1", 4101)
    assert config.drain_timeout == 20.0
    anthropic = next(route for route in config.routes if route.name == "anthropic")
    assert anthropic.policy.dialect is DialectName.ANTHROPIC
    assert anthropic.aliases == (Alias("/anthropic/messages", "/anthropic/v1/messages"),)


def test_an_empty_file_is_as_good_as_none(configure: Load) -> None:
    """Nothing configured, nothing different."""
    assert configure("").revision == load(None, {}).revision
    assert configure("# nothing yet\n---\n").routes == load(None, {}).routes


def test_a_whole_file(configure: Load) -> None:
    """Every key arrives where it belongs."""
    config = configure(WHOLE, KEY)
    assert config.listen.allowed_hosts == ("steer.local",)
    assert (config.limits.max_body, config.limits.head_timeout) == (32 * 2**20, 0.5)
    assert config.drain_timeout == 10.0
    azure = config.upstreams["azure-eu"]
    assert azure.base_url == "https://example.openai.azure.com/openai/v1"
    assert azure.credential is not None
    assert (azure.credential.header, azure.credential.value()) == ("api-key", "azure-secret")
    assert azure.policy.timeouts.answer == 600.0
    assert azure.policy.models == {"gpt-4o": ModelFacts(quality=0.9, context_tokens=128000)}
    assert azure.policy.own_credential
    assert azure.policy.forwards_idempotency_key
    assert azure.headers == {"x-team": "blue"}
    chat = config.routes[0]
    assert (chat.name, chat.path, chat.home) == ("chat", "/v1", "openai")
    policy = chat.policy
    assert [spec.upstream for spec in policy.candidates] == ["openai", "azure-eu"]
    assert (policy.on_break, policy.fallback_on_refusal) == (OnBreak.RESUME, True)
    assert str(policy.usage) == "ask"
    rule = policy.rules[0]
    assert (rule.name, rule.priority) == ("cheap-when-poor", 20)
    assert rule.timeouts is not None
    assert (rule.timeouts.total, rule.timeouts.max_stream) == (9.0, 3600.0)
    assert [spec.options for spec in rule.targets] == [{"model": "gpt-4o-mini"}] * 2


def test_configured_routes_come_first_and_take_their_place(configure: Load) -> None:
    """By path or by name; the catalogue keeps the rest."""
    config = configure(WHOLE, KEY)
    assert [route.name for route in config.routes if route.path == "/v1"] == ["chat"]
    assert "openai" in {route.name for route in config.routes}


def test_a_route_of_the_catalogue_is_refined_by_its_name(configure: Load) -> None:
    """Its path and candidates need not be repeated."""
    config = configure("routes: [{name: anthropic, retry: {max_attempts: 1}}]")
    route = config.routes[0]
    assert (route.path, route.home) == ("/anthropic", "anthropic")
    assert route.policy.retry.max_attempts == 1
    assert route.aliases
    assert [each.name for each in config.routes].count("anthropic") == 1


def test_an_alias_yields_to_a_route_of_the_same_path(configure: Load) -> None:
    """What is configured is meant."""
    config = configure("routes: [{name: own, path: /anthropic/messages, candidates: [anthropic]}]")
    assert all(not route.aliases for route in config.routes if route.home == "anthropic")


def test_an_upstream_of_the_catalogue_is_refined_by_its_name(configure: Load) -> None:
    """Only what is named changes."""
    config = configure(
        "upstreams: {anthropic: {credential: {env: KEY}, timeouts: {connect: 1}}}", {"KEY": "k"}
    )
    anthropic = config.upstreams["anthropic"]
    assert anthropic.base_url == "https://api.anthropic.com"
    assert anthropic.credential is not None
    assert (anthropic.credential.header, anthropic.credential.value()) == ("x-api-key", "k")
    assert anthropic.policy.timeouts.connect == 1.0
    assert anthropic.policy.timeouts.idle == 120.0


def test_without_the_catalogue_there_is_only_what_is_configured(configure: Load) -> None:
    """For those who want to name every provider that can be reached."""
    config = configure(
        "catalogue: false\n"
        "upstreams: {mine: {dialect: http, base_url: http://127.0.0.1:9000, credential: none}}\n"
        "routes: [{name: tools, path: /, candidates: [mine]}]"
    )
    assert list(config.upstreams) == ["mine"]
    assert [(route.name, route.path) for route in config.routes] == [("tools", "/")]
    assert not config.upstreams["mine"].passthrough
    assert config.upstreams["mine"].credential is None


@pytest.mark.parametrize(
    ("dialect", "credential", "header", "value"),
    [
        ("openai", "{env: K}", "authorization", "Bearer k"),
        ("http", "{env: K}", "authorization", "Bearer k"),
        ("anthropic", "{env: K}", "x-api-key", "k"),
        ("gemini", "{env: K}", "x-goog-api-key", "k"),
        ("openai", "{env: K, header: api-key}", "api-key", "k"),
        ("anthropic", "{env: K, header: Authorization}", "authorization", "Bearer k"),
        ("http", "{env: K, prefix: 'Token '}", "authorization", "Token k"),
        ("http", "{env: K, prefix: ''}", "authorization", "k"),
    ],
)
def test_a_credential_takes_the_dialects_form(
    configure: Load, dialect: str, credential: str, header: str, value: str
) -> None:
    """Unless the configuration says another."""
    config = configure(
        f"upstreams: {{u: {{dialect: {dialect}, base_url: 'http://h', credential: {credential}}}}}",
        {"K": "k"},
    )
    made = config.upstreams["u"].credential
    assert made is not None
    assert (made.header, made.value()) == (header, value)


def test_a_secret_from_a_file(configure: Load, tmp_path: Path) -> None:
    """Read when it is used, so that a rotation needs no reload."""
    secret = tmp_path / "key"
    secret.write_text("one\n")
    config = configure(f"upstreams: {{openai: {{credential: {{file: {secret}}}}}}}")
    credential = config.upstreams["openai"].credential
    assert credential is not None
    assert credential.value() == "Bearer one"


def test_tokens_of_the_ports(configure: Load) -> None:
    """References like any other secret."""
    config = configure(
        "listen: {host: 0.0.0.0, token: {env: T}}\nadmin: {token: {env: T}}\n"
        "upstreams: {openai: {credential: {env: T}}}",
        {"T": "token"},
    )
    assert config.listen.token is not None
    assert config.admin.token is not None
    assert config.listen.token.read() == config.admin.token.read() == "token"


def test_flags_over_environment_over_file(configure: Load) -> None:
    """Each key from the highest place that sets it."""
    text = "listen: {port: 1, host: 127.0.0.2}\nadmin: {port: 5}\ndrain_timeout: 3"
    config = configure(
        text, {"STEER_LISTEN__PORT": "2", "STEER_DRAIN_TIMEOUT": "4s"}, listen={"port": 3}
    )
    assert (config.listen.port, config.listen.host) == (3, "127.0.0.2")
    assert (config.admin.port, config.drain_timeout) == (5, 4.0)


def test_a_revision_is_that_of_what_was_configured(configure: Load) -> None:
    """Equal configurations share it, whatever secrets they lead to."""
    one = configure(WHOLE, KEY)
    assert one.revision == configure(WHOLE, {"AZURE_OPENAI_API_KEY": "rotated"}).revision
    assert one.revision != configure(WHOLE.replace("total: 600", "total: 601"), KEY).revision
    assert one.routes == configure(WHOLE, KEY).routes
    assert "azure-secret" not in repr(one)


def test_anchors_have_a_place(configure: Load) -> None:
    """Keys at the top that begin with x- are nobody's."""
    config = configure(
        "x-patient: &patient {connect: 1, first_byte: 2}\n"
        "upstreams:\n"
        "  openai: {timeouts: {<<: *patient, first_byte: 3}}\n"
        "  mistral: {timeouts: *patient}"
    )
    timeouts = config.upstreams["openai"].policy.timeouts
    assert (timeouts.connect, timeouts.first_byte) == (1.0, 3.0)
    assert config.upstreams["mistral"].policy.timeouts.first_byte == 2.0


def test_prices_are_loaded_only_where_they_are_asked_for(
    configure: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At load rather than under the first call."""
    loaded: list[bool] = []
    monkeypatch.setattr(
        "steer_proxy.settings.build.GenaiPrices.load", lambda _: loaded.append(True)
    )
    configure("routes: [{name: openai, rules: [{name: r, commit: headers}]}]")
    assert not loaded
    config = configure("routes: [{name: openai, order: cheapest}]")
    assert loaded == [True]
    assert config.routes[0].policy.order is Order.CHEAPEST


def test_a_source_can_be_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the environment as it is then."""
    path = tmp_path / "steer.yaml"
    path.write_text("listen: {port: 1}")
    source = ConfigSource(path, overrides={"admin": {"port": 2}})
    assert (source.load().listen.port, source.load().admin.port) == (1, 2)
    path.write_text("listen: {port: 3}")
    assert source.load().listen.port == 3
    monkeypatch.setenv("STEER_LISTEN__PORT", "4")
    assert source.load().listen.port == 4
    assert ConfigSource(path, env={}).load().listen.port == 3


def test_a_source_tells_everything_that_is_wrong(tmp_path: Path) -> None:
    """One error, every problem in it."""
    path = tmp_path / "steer.yaml"
    path.write_text("listen: {port: x}\nadmin: {prot: 1}\n")
    with pytest.raises(ConfigurationError) as caught:
        ConfigSource(path, env={}).load()
    assert str(caught.value).splitlines() == [
        f"{path}:1: listen.port: expected a whole number, got 'x'",
        f"{path}:2: admin.prot: unknown key; did you mean port?",
    ]
