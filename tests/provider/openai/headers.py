"""The headers OpenAI sends, as seen on api.openai.com."""

from __future__ import annotations

from tests.provider.attempt import Attempt
from tests.provider.steps import Headers
from tests.provider.world import World


def openai_headers(attempt: Attempt, world: World) -> Headers:
    """Every header of a healthy answer but those about its body.

    Two Set-Cookie lines, because Cloudflare sends two, and joining them with a comma breaks them.
    """
    digest = world.digest(attempt, 32)
    return (
        ("Date", world.http_date()),
        ("access-control-expose-headers", "X-Request-ID"),
        ("openai-organization", f"{world.name}-organization"),
        ("openai-processing-ms", "420"),
        ("openai-project", "proj_0123456789abcdef"),
        ("openai-version", "2020-10-01"),
        ("x-envoy-upstream-service-time", "431"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-limit-tokens", "2000000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-remaining-tokens", "1999970"),
        ("x-ratelimit-reset-requests", "6ms"),
        ("x-ratelimit-reset-tokens", "0s"),
        ("x-request-id", f"req_{digest}"),
        ("cf-cache-status", "DYNAMIC"),
        ("Set-Cookie", f"__cf_bm={digest[:16]}; path=/; HttpOnly; Secure; SameSite=None"),
        ("Set-Cookie", f"_cfuvid={digest[16:]}; path=/; HttpOnly; Secure; SameSite=None"),
        ("Strict-Transport-Security", "max-age=31536000; includeSubDomains; preload"),
        ("X-Content-Type-Options", "nosniff"),
        ("Server", "cloudflare"),
        ("CF-RAY", f"{digest[:16]}-FRA"),
    )
