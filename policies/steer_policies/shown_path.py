"""A path as it may be written down and shown: without what looks like a credential.

Some APIs take one there (Telegram's `/bot123456:KEY/sendMessage`, the addresses of webhooks). What
goes upstream, and what a key's scope and fingerprint are made of, is the path as it came.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from steer_policies.headers import is_credential_parameter

HIDDEN: Final = "..."
"""What stands for a segment that is not shown."""

# How providers' keys begin (as the scanners of public repositories know them), a bot's number and
# its key, a JSON Web Token, and a name with a password before a host. Where what repeats has no
# end in sight, it is begun once in each run of such characters: a path may be made to take long.
_KNOWN: Final = re.compile(
    r"""
    (?<![A-Za-z0-9])(?:
        (?:sk|pk|rk|sk_live|sk_test|pk_live|pk_test|rk_live|rk_test|gsk|hf|r8|xai|pplx|tvly|nvapi
          |fw|glpat|github_pat|gh[opsru]|xox[a-z]|npm|whsec|dop_v1|lin_api|ntn)[-_][A-Za-z0-9_-]{8,}
      | AIza[A-Za-z0-9_-]{30,}
      | ya29\.[A-Za-z0-9_-]{16,}
      | (?:AKIA|ASIA)[A-Z0-9]{16}
      | SG\.[A-Za-z0-9_-]{16,}
      | (?:bot)?[0-9]{5,20}:[A-Za-z0-9_-]{20,}
      | (?<![_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}
    )
    | ^[^:@]*:[^@]+@
    """,
    re.VERBOSE,
)

# Drawn by lot from all letters and digits, as far as one can tell: an id, perhaps, or a secret.
_OPAQUE: Final = re.compile(r"[A-Za-z0-9_~+=-]{20,}")
_EACH: Final = (re.compile("[a-z]"), re.compile("[A-Z]"), re.compile("[0-9]"))

# After a segment that is named like a credential (`/key/...`): no word, and no verb.
_VALUE: Final = re.compile(r"(?=\D*\d).{8,}|.{24,}", re.DOTALL)


def shown_path(path: str, *, strict: bool) -> str:
    """The path with `HIDDEN` for each segment that looks like a credential.

    That is: one that begins as providers' keys do, one that follows or holds a name by which a
    query carries a credential (`/key/...`, `token=...`), and, with `strict`, any long one of small
    and capital letters and digits. LLM providers name their objects so and take no credentials in
    paths, so it is for all other APIs. What else there may be, nobody can tell from an id.
    """
    before = ""
    shown = []
    for segment in path.split("/"):
        plain = unquote(segment) if "%" in segment else segment
        shown.append(HIDDEN if _is_secret(before, plain, strict=strict) else segment)
        before = plain
    return "/".join(shown)


def _is_secret(before: str, segment: str, *, strict: bool) -> bool:
    if "=" in segment and any(
        is_credential_parameter(pair) for pair in re.split("[;,&]", segment) if "=" in pair
    ):
        return True
    if len(segment) < 8:
        return False
    if _KNOWN.search(segment) is not None:
        return True
    if before and _VALUE.fullmatch(segment) is not None and is_credential_parameter(before):
        return True
    return strict and any(
        all(each.search(run) for each in _EACH) for run in _OPAQUE.findall(segment)
    )
