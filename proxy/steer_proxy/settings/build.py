"""Makes the data plane's `Config` of validated settings and the catalogue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from steer_policies.config import UpstreamPolicy
from steer_policies.route import RoutePolicy
from steer_policies.rules import Rule
from steer_proxy.catalogue import CREDENTIAL_OF, PROVIDERS
from steer_proxy.engine.config import (
    Admin,
    Alias,
    Config,
    Credential,
    Database,
    EncryptionKey,
    Listen,
    Route,
    Upstream,
)
from steer_proxy.engine.prices import GenaiPrices
from steer_proxy.engine.secret import Secret, SecretUnavailable
from steer_proxy.ledger.address import parse_address
from steer_proxy.ledger.redaction import find
from steer_proxy.ledger.sealing import key_bytes
from steer_proxy.settings.checks import dialect_of
from steer_proxy.settings.errors import Key
from steer_proxy.settings.expand import catalogue_routes
from steer_proxy.settings.fields import SecretRef
from steer_proxy.settings.models import (
    DatabaseBlock,
    RouteBlock,
    RuleBlock,
    Settings,
    UpstreamBlock,
)


class Builder:
    """Builds one configuration; `findings` are references that do not resolve."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self.findings: list[tuple[Key, str]] = []
        self._settings = settings
        self._environ = environ

    def build(self, values: Mapping[str, Any]) -> Config:
        """The configuration; `values` are what its revision is the digest of."""
        settings = self._settings
        listen, admin = settings.listen, settings.admin
        blocks = {name: UpstreamBlock() for name in PROVIDERS} if settings.catalogue else {}
        blocks |= settings.upstreams
        upstreams = {name: self._upstream(name, block) for name, block in blocks.items()}
        prices = GenaiPrices({each.name: each.base_url for each in upstreams.values()})
        routes = self._routes()
        paths = frozenset(route.path for route in routes)
        built = tuple(_route(block, upstreams, prices, paths) for block in routes)
        if any(route.policy.needs_prices for route in built):
            # Now, rather than under the first call that has to wait for it.
            prices.load()
        self._redaction()
        return Config(
            listen=Listen(
                host=listen.host,
                port=listen.port,
                token=self._secret(listen.token, ("listen", "token")),
                allowed_hosts=listen.allowed_hosts,
            ),
            admin=Admin(
                host=admin.host,
                port=admin.port,
                token=self._secret(admin.token, ("admin", "token")),
                allowed_hosts=admin.allowed_hosts,
            ),
            limits=settings.limits,
            database=self.database(settings.database),
            ledger=settings.ledger,
            drain_timeout=settings.drain_timeout,
            upstreams=upstreams,
            routes=built,
            revision=_revision(values),
        )

    def _routes(self) -> list[RouteBlock]:
        """The configured routes, then those of the catalogue whose name and path are free."""
        routes = list(self._settings.routes)
        if self._settings.catalogue:
            names = {route.name for route in routes}
            paths = {route.path for route in routes}
            routes += [
                RouteBlock.model_validate(route)
                for route in catalogue_routes().values()
                if route["name"] not in names and route["path"] not in paths
            ]
        return routes

    def _upstream(self, name: str, block: UpstreamBlock) -> Upstream:
        provider = PROVIDERS.get(name)
        dialect = dialect_of(name, block)
        base_url = block.base_url or (provider.base_url if provider else None)
        assert dialect is not None and base_url is not None  # noqa: PT018, S101 - checked before
        return Upstream(
            name=name,
            dialect=dialect,
            base_url=base_url,
            credential=self._credential(name, block, CREDENTIAL_OF[dialect]),
            anonymous=block.credential.anonymous,
            trust_env=block.trust_env,
            headers=block.headers,
            policy=UpstreamPolicy(
                name=name,
                dialect=dialect,
                own_credential=block.credential.secret is not None or block.credential.anonymous,
                forwards_idempotency_key=block.idempotency_key == "forward",
                timeouts=block.timeouts,
                breaker=block.breaker,
                concurrency=block.concurrency,
                models=block.models,
            ),
        )

    def _credential(
        self, name: str, block: UpstreamBlock, usual: tuple[str, str]
    ) -> Credential | None:
        reference = block.credential
        secret = self._secret(reference.secret, ("upstreams", name, "credential"))
        if secret is None:
            return None
        header = reference.header or usual[0]
        # Another header than the dialect's: Bearer belongs to authorization alone.
        prefix = "Bearer " if header == "authorization" else ""
        return Credential(
            header=header,
            prefix=prefix if reference.prefix is None else reference.prefix,
            secret=secret,
        )

    def database(self, block: DatabaseBlock) -> Database:
        """Where the ledger is, every reference looked at."""
        url: str | Secret
        if isinstance(block.url, SecretRef):
            url = self._read(block.url, ("database", "url"), parse_address)
        else:
            url = block.url
        keys = () if block.encryption is None else block.encryption.keys
        return Database(
            url=url,
            encryption=tuple(
                EncryptionKey(
                    id=key.id,
                    secret=self._read(
                        key.secret, ("database", "encryption", "keys", index, "secret"), key_bytes
                    ),
                )
                for index, key in enumerate(keys)
            ),
            plaintext=block.encryption is None or block.encryption.plaintext == "read",
            required=block.required,
        )

    def _redaction(self) -> None:
        """Have what `ledger.redact` names at hand, or say why not."""
        if (name := self._settings.ledger.redact) is None:
            return
        try:
            find(name)
        except ValueError as error:
            self.findings.append((("ledger", "redact"), str(error)))

    def _secret(self, reference: SecretRef | None, key: Key) -> Secret | None:
        return None if reference is None else self._read(reference, key)

    def _read(
        self, reference: SecretRef, key: Key, parse: Callable[[str], object] | None = None
    ) -> Secret:
        """The secret of a reference, whose value must be there, and one that `parse` takes."""
        secret = Secret(env=reference.env, file=reference.file, environ=self._environ)
        try:
            value = secret.read()
            if parse is not None:
                parse(value)
        except SecretUnavailable as error:
            self.findings.append((key, str(error)))
        except ValueError as error:
            self.findings.append((key, f"{secret.reference}: {error}"))
        return secret


def _route(
    block: RouteBlock,
    upstreams: Mapping[str, Upstream],
    prices: GenaiPrices,
    taken: frozenset[str],
) -> Route:
    home = block.candidates[0].upstream
    policy = RoutePolicy(
        name=block.name,
        dialect=block.dialect or upstreams[home].dialect,
        candidates=block.candidates,
        upstreams={name: upstream.policy for name, upstream in upstreams.items()},
        rules=tuple(_rule(rule) for rule in block.rules),
        order=block.order,
        commit=block.commit,
        on_break=block.on_break,
        timeouts=block.timeouts,
        retry=block.retry,
        budget=block.budget,
        usage=block.usage,
        idempotency=block.idempotency,
        fallback_on_refusal=block.on_refusal == "fallback",
        prices=prices,
    )
    provider = PROVIDERS.get(home)
    aliases = provider.aliases if provider is not None and provider.path == block.path else ()
    return Route(
        name=block.name,
        path=block.path,
        policy=policy,
        home=home,
        aliases=tuple(Alias(prefix, means) for prefix, means in aliases if prefix not in taken),
    )


def _rule(block: RuleBlock) -> Rule:
    return Rule(
        name=block.name,
        priority=block.priority,
        when=block.when,
        use=block.use,
        fallbacks=block.fallbacks,
        options=block.options,
        commit=block.commit,
        on_break=block.on_break,
        timeouts=block.timeouts,
    )


def _revision(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
