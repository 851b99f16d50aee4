"""What no single key can say: references between upstreams, routes and listeners."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from steer_policies.config import CandidateSpec, DialectName
from steer_policies.rules import Rule
from steer_proxy.catalogue import PROVIDERS
from steer_proxy.settings.environment import canonical
from steer_proxy.settings.errors import Key, did_you_mean
from steer_proxy.settings.fields import is_loopback
from steer_proxy.settings.models import RouteBlock, Settings, UpstreamBlock

Finding = tuple[Key, str]


def dialect_of(name: str, upstream: UpstreamBlock) -> DialectName | None:
    """An upstream's dialect: its own word, or the catalogue's."""
    if upstream.dialect is not None:
        return upstream.dialect
    provider = PROVIDERS.get(name)
    return None if provider is None else provider.dialect


def check(settings: Settings, broken: Collection[str] = ()) -> Iterator[Finding]:
    """Everything wrong between the parts of valid settings.

    `broken` are upstreams left out because they are invalid themselves: naming one is no fault.
    """
    yield from _upstreams(settings)
    yield from _names_and_paths(settings)
    known = _known(settings)
    for index, route in enumerate(settings.routes):
        yield from _route(("routes", index), route, known, frozenset(broken))
    yield from _listeners(settings)
    yield from _keys(settings)


def _known(settings: Settings) -> dict[str, UpstreamBlock]:
    known = {name: UpstreamBlock() for name in PROVIDERS} if settings.catalogue else {}
    return known | dict(settings.upstreams)


def _upstreams(settings: Settings) -> Iterator[Finding]:
    spelled: dict[str, str] = {}
    for name, upstream in settings.upstreams.items():
        key: Key = ("upstreams", name)
        if (other := spelled.setdefault(canonical(name), name)) != name:
            yield key, f"differs from {other} only in case or punctuation; rename one"
        if name in PROVIDERS:
            continue
        hint = ""
        if close := get_close_matches(name, PROVIDERS, n=1, cutoff=0.75):
            hint = f" (the catalogue knows {close[0]})"
        if upstream.base_url is None:
            yield (*key, "base_url"), f"is required for an upstream of your own{hint}"
        if upstream.dialect is None:
            yield (
                (*key, "dialect"),
                f"is required for an upstream of your own{hint}: " + ", ".join(DialectName),
            )


def _names_and_paths(settings: Settings) -> Iterator[Finding]:
    names: dict[str, int] = {}
    paths: dict[str, int] = {}
    for index, route in enumerate(settings.routes):
        if (first := names.setdefault(canonical(route.name), index)) != index:
            yield ("routes", index, "name"), f"{route.name} is taken by routes[{first}]"
        if (first := paths.setdefault(route.path, index)) != index:
            yield ("routes", index, "path"), f"{route.path} is taken by routes[{first}]"


def _route(
    key: Key, route: RouteBlock, known: Mapping[str, UpstreamBlock], broken: frozenset[str]
) -> Iterator[Finding]:
    home = route.candidates[0].upstream
    dialect = route.dialect or (dialect_of(home, known[home]) if home in known else None)
    for place, spec in _candidates(route):
        at = (*key, *place)
        if spec.upstream in broken:
            continue
        upstream = known.get(spec.upstream)
        if upstream is None:
            hint = did_you_mean(spec.upstream, tuple(known))
            yield at, f"unknown upstream {spec.upstream}{hint}"
            continue
        theirs = dialect_of(spec.upstream, upstream)
        if None not in (dialect, theirs) and theirs is not dialect:
            yield (
                at,
                (
                    f"{spec.upstream} speaks {theirs}, the route speaks {dialect}; "
                    "candidates of a route share one dialect"
                ),
            )
        if spec.upstream != home and _passes_through(upstream):
            yield (
                at,
                (
                    f"{spec.upstream} has no credential of its own, and a caller's goes to the "
                    f"home upstream {home} alone; set upstreams.{spec.upstream}.credential to "
                    "{env: NAME} or {file: PATH}, or to none if it needs none"
                ),
            )
    yield from _rules(key, route, known, broken)
    limits = [route.timeouts, *(rule.timeouts for rule in route.rules if rule.timeouts)]
    longest = max(each.total + each.max_stream for each in limits)
    if route.idempotency.retention < longest:
        yield (
            (*key, "idempotency", "retention"),
            (
                f"must be at least {longest:g} s, as long as a call may take "
                "(timeouts.total + timeouts.max_stream)"
            ),
        )


def _rules(
    key: Key, route: RouteBlock, known: Mapping[str, UpstreamBlock], broken: frozenset[str]
) -> Iterator[Finding]:
    names: dict[str, int] = {}
    for index, rule in enumerate(route.rules):
        at: Key = (*key, "rules", index)
        if (first := names.setdefault(rule.name, index)) != index:
            yield (*at, "name"), f"{rule.name} is taken by rules[{first}]"
        try:
            made = Rule(
                name=rule.name,
                when=rule.when,
                use=rule.use,
                fallbacks=rule.fallbacks,
                options=rule.options,
            )
        except ValueError as error:
            place = getattr(error, "place", None)
            yield (*at, *(() if place is None else (f"when{place}",))), str(error)
            continue
        for place, upstream in made.asks_about:
            if upstream not in known and upstream not in broken:
                hint = did_you_mean(upstream, tuple(known))
                yield (*at, f"when{place}.attribute"), f"unknown upstream {upstream}{hint}"


def _candidates(route: RouteBlock) -> Iterator[tuple[Key, CandidateSpec]]:
    for index, spec in enumerate(route.candidates):
        yield ("candidates", index), spec
    for index, rule in enumerate(route.rules):
        if rule.use is not None:
            yield ("rules", index, "use"), rule.use
        for number, spec in enumerate(rule.fallbacks):
            yield ("rules", index, "fallbacks", number), spec


def _passes_through(upstream: UpstreamBlock) -> bool:
    return upstream.credential.secret is None and not upstream.credential.anonymous


def _listeners(settings: Settings) -> Iterator[Finding]:
    listen, admin = settings.listen, settings.admin
    if (listen.host, listen.port) == (admin.host, admin.port) and listen.port:
        yield ("admin", "port"), f"{admin.port} is the data plane's (listen.port); choose another"
    if is_loopback(listen.host) or listen.token is not None:
        return
    injected = [name for name, each in settings.upstreams.items() if each.credential.secret]
    if injected:
        yield (
            ("listen", "token"),
            (
                f"is required: {listen.host} can be reached from other machines, and whoever does "
                f"would use your credential of {', '.join(injected)}; "
                "set it to {env: NAME} or {file: PATH}, or listen on 127.0.0.1"
            ),
        )


def _keys(settings: Settings) -> Iterator[Finding]:
    ids: dict[str, int] = {}
    encryption = settings.database.encryption
    for index, key in enumerate(() if encryption is None else encryption.keys):
        if (first := ids.setdefault(key.id, index)) != index:
            yield (
                ("database", "encryption", "keys", index, "id"),
                f"{key.id} is taken by keys[{first}]; rows name the key they need by its id",
            )
