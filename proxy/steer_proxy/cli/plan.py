"""`steer plan`: where would this call go, and why? Nothing is sent."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from steer_proxy.cli.common import ConfigOption, fail, source_of, told

if TYPE_CHECKING:
    from steer_policies.dialects.base import RequestFacts
    from steer_policies.plan import Candidate, Plan, Refused
    from steer_proxy.engine.config import Config, Route

#: What a body of each dialect is most likely meant for.
_USUAL_PATH: Final = {
    "openai": "/chat/completions",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/gemini:generateContent",
    "http": "/",
}


def command(
    route: Annotated[str, typer.Option("--route", "-r", help="The route, by name or path.")],
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|-]", help="The request's JSON body; - reads it.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="NAME:VALUE", help="A request header; repeatable."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="The request's method.")] = "POST",
    path: Annotated[
        str | None,
        typer.Option(
            "--path",
            help="The path after the route's; by default the dialect's usual generation.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[  # noqa: FBT002 - an option, given by name
        bool, typer.Option("--json", help="Print JSON.")
    ] = False,
) -> None:
    """Explain where a call would go, and why, without sending anything.

    Breakers are taken as closed and nothing as throttled.
    """
    with told():
        loaded = source_of(config).load()
    chosen = _route(loaded, route)
    headers = _headers(header or ())
    raw, body = _body(file)
    where, _, query = (path or _USUAL_PATH[chosen.policy.dialect]).partition("?")
    facts, made = _plan(chosen, method.upper(), where, query, headers, raw, body)
    told_as = as_data(loaded, chosen, facts, made)
    if as_json:
        typer.echo(json.dumps(told_as, indent=2))
    else:
        for line in as_text(told_as):
            typer.echo(line)


def _plan(
    route: Route,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    raw: bytes,
    body: Any,
) -> tuple[RequestFacts, Plan | Refused]:
    from steer_policies.dialects import dialect
    from steer_policies.facts import CallFacts, Calm
    from steer_policies.planner import plan
    from steer_policies.steering import SteeringError, read_steering

    try:
        steering = read_steering(headers)
    except SteeringError as error:
        raise fail(str(error)) from None
    request = dialect(route.policy.dialect).describe(
        method, path, query, headers.get("content-type", "application/json"), body
    )
    facts = CallFacts(
        request=request,
        method=method,
        path=path,
        headers=headers,
        metadata=steering.metadata,
        budget=steering.budget,
        quality=steering.quality,
        body=body,
        body_size=len(raw),
    )
    return request, plan(route.policy, facts, Calm(), steering.upstream)


def _route(config: Config, wanted: str) -> Route:
    from steer_proxy.settings.errors import did_you_mean

    for route in config.routes:
        if wanted in {route.name, route.path}:
            return route
    hint = did_you_mean(wanted, [route.name for route in config.routes])
    raise fail(f"no route is called {wanted}{hint}")


def _headers(given: list[str] | tuple[str, ...]) -> Mapping[str, str]:
    from multidict import CIMultiDict

    headers: CIMultiDict[str] = CIMultiDict()
    for each in given:
        name, colon, value = each.partition(":")
        if not colon or not name.strip():
            raise fail(f"a header is written as NAME:VALUE, got {name[:40]!r} without a colon")
        headers[name.strip()] = value.strip()
    return headers


def _body(file: str | None) -> tuple[bytes, Any]:
    if file is None:
        return b"", None
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise fail(f"{file} cannot be read: {error.strerror}") from None
    try:
        return raw, json.loads(raw)
    except ValueError as error:
        raise fail(f"{'standard input' if file == '-' else file} is not JSON: {error}") from None


def as_data(
    config: Config, route: Route, facts: RequestFacts, made: Plan | Refused
) -> dict[str, Any]:
    """A plan, or a refusal, as plain values."""
    from steer_policies.plan import Refused

    result: dict[str, Any] = {
        "route": route.name,
        "dialect": str(route.policy.dialect),
        "operation": facts.operation,
        "steered": facts.steered,
        "model": facts.model,
    }
    if isinstance(made, Refused):
        refused = {"status": made.status, "code": made.code, "message": made.message}
        return result | {"refused": refused, "reasons": list(made.reasons)}
    retry = route.policy.retry
    return result | {
        "rule": made.rule,
        "candidates": [_candidate(config, each) for each in made.candidates],
        "commit": str(made.commit),
        "on_break": str(made.on_break),
        "timeouts": {"total": made.timeouts.total, "max_stream": made.timeouts.max_stream},
        "attempts": {"each": retry.max_attempts, "total": retry.max_total_attempts},
        "reasons": list(made.reasons),
    }


def _candidate(config: Config, candidate: Candidate) -> dict[str, Any]:
    upstream = config.upstreams[candidate.upstream]
    credential = "the caller's" if upstream.passthrough else "none"
    if upstream.credential is not None:
        credential = upstream.credential.secret.reference
    return {
        "upstream": candidate.upstream,
        "base_url": upstream.base_url,
        "credential": credential,
        "model": candidate.model,
        "options": dict(candidate.options),
        "context_tokens": candidate.context_tokens,
        "estimated_usd": candidate.estimated_usd,
    }


def as_text(data: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    model = f", model {data['model']}" if data["model"] else ""
    lines = [f"route {data['route']} ({data['dialect']}), {data['operation']}{model}", ""]
    if refused := data.get("refused"):
        lines.append(f"refused with {refused['status']} {refused['code']}: {refused['message']}")
    for number, each in enumerate(data.get("candidates", ()), 1):
        lines.append(f"{number}. {each['upstream']}  {each['base_url']}")
        lines.append(f"   model {each['model'] or '-'}, credential: {each['credential']}")
        if each["options"]:
            lines.append(f"   options {json.dumps(each['options'])}")
        if each["estimated_usd"] is not None:
            lines.append(f"   about ${each['estimated_usd']:.4g}")
    lines += ["", "because"] + [f"  {reason}" for reason in data["reasons"]]
    if "commit" in data:
        timeouts, attempts = data["timeouts"], data["attempts"]
        lines += [
            "",
            (
                f"until commit ({data['commit']}): at most {attempts['each']} attempts at each, "
                f"{attempts['total']} in all, within {timeouts['total']:g} s"
            ),
            f"after it: at most {timeouts['max_stream']:g} s, a break ends in: {data['on_break']}",
        ]
    return lines
