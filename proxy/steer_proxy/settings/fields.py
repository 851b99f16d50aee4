"""Fields that configuration writes shorter, or stricter, than the values they become.

Each is a total parser with a JSON Schema beside it. Messages never quote what was found: it may be
a secret in the wrong place.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainValidator, WithJsonSchema

from steer_policies.attributes import CREDENTIAL_HEADERS
from steer_policies.conditions import When, parse_when
from steer_policies.config import CandidateSpec
from steer_policies.paths import MAX_ROUTE_SEGMENTS

#: Names of upstreams and routes: they stand in headers, paths of attributes, metrics.
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")

#: Headers a configuration cannot add: framing, routing and hop-by-hop ones belong to the proxy
#: (RFC 9110 section 7.6.1), credentials to `credential`.
_RESERVED: Final = CREDENTIAL_HEADERS | {
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
}

REMEDY: Final = (
    "a secret is written as a reference, {env: NAME} or {file: PATH}, never as its value"
)


class Misplaced(ValueError):
    """A fault inside a field; `place` is where, relative to it, such as `.header`."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """Where a secret is kept: exactly one of an environment variable and a file."""

    env: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRef:
    """How an upstream is given a credential.

    Without `secret` the caller's own is passed through, or removed when `anonymous`. `header` and
    `prefix` None mean the dialect's.
    """

    secret: SecretRef | None = None
    anonymous: bool = False
    header: str | None = None
    prefix: str | None = None


def parse_secret(value: object) -> SecretRef:
    """A reference to a secret: `{env: NAME}` or `{file: PATH}`."""
    if not isinstance(value, Mapping):
        raise Misplaced("", REMEDY)
    _only(value, ("env", "file"))
    return _secret(value)


def parse_credential(value: object) -> CredentialRef:
    """`passthrough`, `none`, or a reference to a secret with an optional header and prefix."""
    if value == "passthrough":
        return CredentialRef()
    if value == "none":
        return CredentialRef(anonymous=True)
    if not isinstance(value, Mapping):
        raise Misplaced("", f"expected passthrough, none or a reference; {REMEDY}")
    _only(value, ("env", "file", "header", "prefix"))
    header, prefix = value.get("header"), value.get("prefix")
    if header is not None and not (isinstance(header, str) and _TOKEN.fullmatch(header)):
        raise Misplaced(".header", "expected the name of a header, such as api-key")
    if prefix is not None and not (isinstance(prefix, str) and prefix.isprintable()):
        raise Misplaced(".prefix", 'expected one line of text, such as "Bearer "')
    return CredentialRef(
        secret=_secret(value), header=None if header is None else header.lower(), prefix=prefix
    )


def _secret(value: Mapping[Any, Any]) -> SecretRef:
    given = [kind for kind in ("env", "file") if value.get(kind) is not None]
    if len(given) != 1:
        raise Misplaced("", f"expected exactly one of env and file; {REMEDY}")
    reference = value[given[0]]
    if not isinstance(reference, str) or not reference.strip():
        what = "the name of an environment variable" if given == ["env"] else "the path of a file"
        raise Misplaced(f".{given[0]}", f"expected {what}")
    if given == ["env"] and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", reference):
        raise Misplaced(".env", "expected the name of an environment variable, not its value")
    return SecretRef(**{given[0]: reference})


def _only(value: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            message = f"unknown key {str(key)[:64]!r}; known: {', '.join(known)}; {REMEDY}"
            raise Misplaced(f".{str(key)[:64]}", message)


def parse_base_url(value: str) -> str:
    """An upstream's address: http or https, a host, maybe port and path; no trailing slash."""
    text = value.strip()
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("expected an address of printable ASCII, such as https://host/v1")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("expected an address such as https://host:8443/v1") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError(
            "expected an address with http or https and a host, such as https://host/v1"
        )
    if "@" in parts.netloc:
        raise ValueError("an address carries no credentials; use credential")
    if "?" in text or "#" in text:
        raise ValueError("an address has no query and no fragment")
    path = parts.path.rstrip("/")
    if any(segment in {"", ".", ".."} for segment in path.split("/")[1:]):
        raise ValueError("an address has no empty or dot segments in its path")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def parse_route_path(value: str) -> str:
    """A route's path: `/openai/v1`, without a trailing slash; the root is `/`."""
    if not value.startswith("/"):
        raise ValueError("a path begins with a slash")
    path = value.rstrip("/")
    segments = path.split("/")[1:]
    if len(segments) > MAX_ROUTE_SEGMENTS:
        raise ValueError(f"a path has at most {MAX_ROUTE_SEGMENTS} segments")
    for segment in segments:
        if segment in {"", ".", ".."}:
            raise ValueError("a path has no empty or dot segments")
        if not _SEGMENT.fullmatch(segment):
            raise ValueError("a path is plain: no query, no percent-encoding, no white space")
    return path or "/"


def parse_headers(value: Mapping[str, str]) -> Mapping[str, str]:
    """Extra headers of an upstream, names in lower case."""
    result: dict[str, str] = {}
    for name, text in value.items():
        lower = name.lower()
        if not _TOKEN.fullmatch(name):
            raise Misplaced(f".{name[:64]}", "expected the name of a header")
        if lower in CREDENTIAL_HEADERS:
            raise Misplaced(f".{name}", f"use credential with header: {lower}; {REMEDY}")
        if lower in _RESERVED or lower.startswith("x-steer-"):
            raise Misplaced(f".{name}", "is the proxy's own to set")
        if lower in result:
            raise Misplaced(f".{name}", "appears twice, in different case")
        if not text.isascii() or not text.isprintable() or text != text.strip():
            raise Misplaced(f".{name}", "expected one line of printable ASCII")
        result[lower] = text
    return result


def parse_options(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """A merge patch (RFC 7396): anything JSON can hold, `model` being text."""
    if not isinstance(value.get("model", ""), str):
        raise Misplaced(".model", "expected the name of a model")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("expected values that JSON can hold") from None
    return value


def expand_candidate(value: object) -> object:
    """`openai` is short for `{upstream: openai}`."""
    return {"upstream": value} if isinstance(value, str) else value


def _check_candidate(value: CandidateSpec) -> CandidateSpec:
    try:
        parse_options(value.options)
    except ValueError as error:
        place = getattr(error, "place", "")
        raise Misplaced(f".options{place}", str(error)) from None
    return value


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


SECRET_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"env": {"type": "string"}, "file": {"type": "string"}},
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
}
_CREDENTIAL_SCHEMA: Final = {
    "anyOf": [
        {"enum": ["passthrough", "none"]},
        {
            "type": "object",
            "properties": {
                "env": {"type": "string"},
                "file": {"type": "string"},
                "header": {"type": "string"},
                "prefix": {"type": "string"},
            },
            "oneOf": [{"required": ["env"]}, {"required": ["file"]}],
            "additionalProperties": False,
        },
    ]
}
_CANDIDATE_SCHEMA: Final = {
    "anyOf": [
        {"type": "string", "pattern": f"^{NAME}$"},
        {
            "type": "object",
            "properties": {
                "upstream": {"type": "string", "pattern": f"^{NAME}$"},
                "options": {"type": "object"},
            },
            "required": ["upstream"],
            "additionalProperties": False,
        },
    ]
}

SecretField = Annotated[
    SecretRef, PlainValidator(parse_secret), WithJsonSchema(dict(SECRET_SCHEMA))
]
CredentialField = Annotated[
    CredentialRef, PlainValidator(parse_credential), WithJsonSchema(_CREDENTIAL_SCHEMA)
]
CandidateField = Annotated[
    CandidateSpec,
    BeforeValidator(expand_candidate),
    AfterValidator(_check_candidate),
    WithJsonSchema(_CANDIDATE_SCHEMA),
]
WhenField = Annotated[When, PlainValidator(parse_when), WithJsonSchema({"$comment": "conditions"})]
BaseUrl = Annotated[str, AfterValidator(parse_base_url)]
RoutePath = Annotated[str, AfterValidator(parse_route_path)]
Headers = Annotated[dict[str, str], AfterValidator(parse_headers)]
Options = Annotated[dict[str, Any], AfterValidator(parse_options)]
