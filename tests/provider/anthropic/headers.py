"""The headers Anthropic sends, as seen on api.anthropic.com."""

from __future__ import annotations

from datetime import timedelta

from tests.provider.attempt import Attempt
from tests.provider.steps import Headers
from tests.provider.world import World


def anthropic_headers(attempt: Attempt, world: World) -> Headers:
    """Every header of a healthy answer but those about its body."""
    digest = world.digest(attempt, 24)
    reset = (world.now() + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    limits: list[tuple[str, str]] = []
    for kind, limit in (
        ("requests", 4000),
        ("tokens", 480000),
        ("input-tokens", 400000),
        ("output-tokens", 80000),
    ):
        name = f"anthropic-ratelimit-{kind}"
        limits.append((f"{name}-limit", str(limit)))
        limits.append((f"{name}-remaining", str(limit - 1)))
        limits.append((f"{name}-reset", reset))
    return (
        ("Date", world.http_date()),
        *limits,
        ("request-id", f"req_011{digest}"),
        ("anthropic-organization-id", f"{world.name}-organization"),
        ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
        ("via", "1.1 google"),
        ("Set-Cookie", f"_cfuvid={digest}; HttpOnly; SameSite=None; Secure; Path=/"),
        ("Set-Cookie", f"__cf_bm={digest[::-1]}; HttpOnly; Secure; Path=/"),
        ("X-Robots-Tag", "none"),
        ("cf-cache-status", "DYNAMIC"),
        ("Server", "cloudflare"),
        ("CF-RAY", f"{digest[:16]}-FRA"),
    )
