"""What `steer doctor` looks at in the configuration and the environment."""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # not in typeshed

from steer_proxy.cli.findings import Finding, failure, note, ok, warning

if TYPE_CHECKING:
    from steer_proxy.engine.config import Config
    from steer_proxy.settings import ConfigSource

#: How long a Steer that runs already is given to answer on its admin port, in seconds.
PATIENCE: Final = 1.0


def configuration(source: ConfigSource) -> tuple[list[Finding], Config | None]:
    """The configuration, when it is valid; else one finding per problem."""
    from steer_proxy.settings import ConfigurationError

    name = "no file" if source.path is None else str(source.path)
    try:
        config = source.load()
    except ConfigurationError as error:
        remedy = "mend it; `steer check` says the same"
        return [failure("configuration", str(each), remedy) for each in error.problems], None
    text = f"{name}: {len(config.routes)} routes, {len(config.upstreams)} upstreams, valid"
    return [ok("configuration", text)], config


def settings(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """What follows from a valid configuration, on this machine and in this environment."""
    yield from ports(config)
    yield from credentials(config)
    yield from proxies(config, environ)
    yield from variables(config, environ)


def ports(config: Config) -> Iterator[Finding]:
    """Both ports are free, or held by a Steer that runs."""
    admin = (config.admin.host, config.admin.port)
    for name, host, port in (
        ("data port", config.listen.host, config.listen.port),
        ("admin port", *admin),
    ):
        reason = _taken(host, port)
        shown = f"{host}:{port}"
        if port == 0:
            yield ok(name, f"{host}, a port of the system's choice")
        elif reason is None:
            yield ok(name, f"{shown} is free")
        elif reason == errno.EADDRINUSE and _is_steer(*admin):
            yield note(name, f"{shown} is in use: a Steer seems to be running here")
        elif reason == errno.EADDRINUSE:
            remedy = "stop what uses it, or choose another"
            yield failure(name, f"{shown} is in use", remedy)
        elif reason == errno.EADDRNOTAVAIL:
            yield failure(name, f"{host} is not an address of this machine", "choose another host")
        else:
            text = f"listening on {shown} fails: {errno.errorcode.get(reason, reason)}"
            yield failure(name, text, "choose another port or host")


def _taken(host: str, port: int) -> int | None:
    """Why a listener cannot have the address, as an `errno`; None when it can."""
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            # As asyncio's listeners do: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
                probe.listen(1)
            except OSError as error:
                return error.errno or errno.EADDRINUSE
    return None


def _is_steer(host: str, port: int) -> bool:
    """Whether what answers on the admin port answers as Steer does."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        return answer.status == 200 and answer.read(16) == b"ok\n"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def credentials(config: Config) -> Iterator[Finding]:
    """Every credential resolves now. Values are read and thrown away, never shown."""
    from steer_proxy.engine.secret import SecretUnavailable

    found = 0
    for upstream in config.upstreams.values():
        if upstream.credential is None:
            continue
        found += 1
        try:
            upstream.credential.value()
        except SecretUnavailable as error:
            text = f"{upstream.name}: {error}"
            yield failure("credentials", text, "set it, or mend the reference")
        else:
            reference = upstream.credential.secret.reference
            yield ok("credentials", f"{upstream.name}: {reference} is set")
    if not found:
        yield ok("credentials", "every upstream is given the caller's own")


def proxies(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """What the environment's HTTP proxies mean for callers and upstreams."""
    known = _proxies(environ)
    found = {scheme: known[scheme] for scheme in ("http", "https", "all") if scheme in known}
    if not found:
        yield ok("proxies", "none in this environment")
        return
    shown = ", ".join(f"{scheme} by {without_secret(url)}" for scheme, url in sorted(found.items()))
    bypassed = proxy_bypass_environment("127.0.0.1", known)
    if ("http" in found or "all" in found) and not bypassed:
        yield warning(
            "proxies",
            f"{shown}: SDKs started here send even their calls to Steer there",
            "add 127.0.0.1,localhost to NO_PROXY where your code runs",
        )
    trusting = [each.name for each in config.upstreams.values() if each.trust_env]
    if trusting:
        yield note("proxies", f"{shown}: used for {', '.join(trusting)} (trust_env)")
    else:
        yield note("proxies", f"{shown}: no upstream uses it (trust_env is off)")


def _proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """The proxies of an environment by scheme, and under `no` the hosts that need none.

    As urllib and the SDKs' HTTP library read them: names in lower case go before upper case.
    """
    found = {}
    for name in sorted(environ):  # upper case first
        scheme, _, kind = name.lower().rpartition("_")
        if kind == "proxy" and scheme and environ[name]:
            found[scheme] = environ[name]
    return found


def variables(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Where the SDKs' base URL variables of this environment point."""
    from steer_proxy.variables import base_url
    from steer_proxy.variables import settings as wanted

    base = base_url(config.listen.host, config.listen.port)
    set_here = False
    for setting in wanted(config, base):
        value = environ.get(setting.name)
        if value is None:
            continue
        set_here = True
        remedy = f"export {setting.name}={setting.value}"
        if not value.strip():
            text = f"{setting.name} is set to nothing, which some SDKs take for an address"
            yield warning("SDK variables", text, remedy)
        elif _same(value, setting.value):
            yield ok("SDK variables", f"{setting.name} points at Steer")
        else:
            text = f"{setting.name} is {without_secret(value)}: {setting.used_by} call past Steer"
            yield warning("SDK variables", text, remedy)
    if not set_here:
        yield note("SDK variables", "none is set here", 'eval "$(steer env)" where your code runs')


def _same(one: str, other: str) -> bool:
    """Whether two base URLs are the same to an SDK."""
    return _plain(one) == _plain(other)


def _plain(url: str) -> str:
    url = url.strip().rstrip("/")
    return url.replace("://localhost", "://127.0.0.1", 1)


def without_secret(url: str) -> str:
    """A URL without its user and password, which proxies' addresses tend to hold."""
    try:
        parts = urlsplit(url)
        if "@" not in parts.netloc:
            return url if "@" not in url else "(an address with credentials)"
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, f"...@{host}", parts.path, "", ""))
    except ValueError:
        return "(no address)"
