"""Whether what a route decides on a body can be decided, and done, on this one.

A body that Steer cannot read but a lenient upstream can (a byte order mark, UTF-16, `NaN`, a wrong
content type, a coded body) would go past rules and budgets, and keep a model that should have been
replaced, under Steer's own credential. So it is refused where any of that is at stake; elsewhere it
is forwarded as it is.
"""

from __future__ import annotations

from steer_policies.config import DialectName
from steer_policies.dialects.base import Where
from steer_policies.dialects.multipart import form_takes
from steer_policies.plan import Plan
from steer_proxy.http.call import Call
from steer_proxy.http.payload import is_form, is_json
from steer_proxy.http.problems import Refusal, refuse


def require_readable(call: Call, made: Plan) -> None:
    """See that the body of a steered call is one that its route's decisions can be applied to.

    Raises:
        Refusal: 400, saying what cannot be read, and the remedy.
    """
    if isinstance(call.json, dict) and call.facts.model_in is not Where.FORM:
        return
    if not call.facts.steered or call.dialect.name is DialectName.HTTP or call.body.size == 0:
        return
    options = any(each.options for each in made.candidates)
    if isinstance(call.json, dict):
        if options and not _form_takes(call, made):
            raise _bad_body("the form's boundary cannot go with another model", "choose another")
        return
    policy = call.route.policy
    if options or policy.rules or policy.ceiling is not None:
        raise _bad_body(*_fault(call))


def _form_takes(call: Call, made: Plan) -> bool:
    """Whether the model of every candidate could be written into the form."""
    models = (each.options.get("model") for each in made.candidates)
    return all(form_takes(call.content_type, model) for model in models if isinstance(model, str))


def _fault(call: Call) -> tuple[str, str]:
    """What cannot be read about a body, and what to do about it."""
    coding = call.headers.get("Content-Encoding", "identity")
    if coding.strip().lower() not in {"", "identity"}:
        return f"it has the Content-Encoding {coding[:64]!r}", "send it uncoded"
    if call.json is not None:
        return "it is not a JSON object", "send one"
    if is_form(call.content_type):
        return "the form does not begin with its boundary", "send nothing in front of it"
    if not is_json(call.content_type):
        kind = call.content_type[:64]
        return f"its Content-Type is {kind!r}", "send JSON as application/json"
    return (
        "it is not valid JSON",
        "send UTF-8 without a byte order mark, and no NaN or Infinity",
    )


def _bad_body(fault: str, remedy: str) -> Refusal:
    return refuse(
        400,
        "steer_bad_body",
        f"This route decides on the body or changes it, and Steer cannot: {fault}; {remedy}.",
    )
