"""Validates a file's values, and says in our words what pydantic found wrong with them."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from steer_proxy.settings.errors import Key, Problem, did_you_mean, key_text
from steer_proxy.settings.models import Settings

#: Keys whose values are never quoted: secrets end up there by mistake.
_PRIVATE: Final = frozenset(
    {"credential", "token", "headers", "base_url", "url", "secret", "env", "file"}
)

_EXPECTED: Final = {
    "missing": "is required",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping",
    "mapping_type": "expected a mapping",
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
    "dataclass_type": "expected a mapping",
    "too_short": "expected at least one",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "expected a name of letters, digits, - and _, at most 64 characters",
}


def validate(values: Mapping[str, Any]) -> tuple[Settings | None, list[tuple[Key, Problem]]]:
    """The settings, or what is wrong with the values, each with its key path."""
    settings, found = None, []
    try:
        settings = Settings.model_validate(dict(values))
    except ValidationError as error:
        details = error.errors(include_url=False)
        keys = [each["loc"] for each in details]
        found = [
            _problem(each)
            for each in details
            # A list of which every item is wrong is not also too short.
            if each["type"] != "too_short"
            or not any(key[: len(each["loc"])] == each["loc"] != key for key in keys)
        ]
    told = {key for key, _ in found}
    found += [
        (key, Problem(key_text(key), "expected a number, got true or false"))
        for key in _truths(values, Settings, ())
        if key not in told
    ]
    return (None, found) if found else (settings, [])


def _problem(details: ErrorDetails) -> tuple[Key, Problem]:
    key: Key = details["loc"]
    kind = details["type"]
    if key and key[-1] == "[key]":
        return key[:-1], Problem(key_text(key[:-1]), _EXPECTED["string_pattern_mismatch"])
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        known = tuple(_fields(_type_at(key[:-1])))
        hint = did_you_mean(str(key[-1]), known)
        return key, Problem(key_text(key), f"unknown key{hint}")
    if kind == "value_error":
        return _value_error(key, details)
    if kind in {"enum", "literal_error"}:
        known = details["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        message = f"expected one of {known}"
        if isinstance(details["input"], str):
            message += _nearest(details["input"], known.split(", "))
    elif kind in {"greater_than_equal", "less_than_equal"}:
        message = "expected a whole number from 0 to 65535"
    else:
        message = _EXPECTED.get(kind, details["msg"][:1].lower() + details["msg"][1:])
    return key, Problem(key_text(key), message + _got(key, kind, details["input"]))


def _nearest(found: str, known: list[str]) -> str:
    close = get_close_matches(found.lower(), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _value_error(key: Key, details: ErrorDetails) -> tuple[Key, Problem]:
    """A fault our own parsers found, which may know a place below the key."""
    error = details["ctx"]["error"]
    message, text = str(error), key_text(key)
    place = getattr(error, "place", "")
    if place:
        return key, Problem(text + place, message)
    # Dataclasses begin their message with the field at fault.
    first, _, rest = message.partition(" ")
    if rest and first in _fields(_type_at(key)):
        got = _member(details["input"], first)
        key = (*key, first)
        return key, Problem(key_text(key), rest + _got(key, "", got))
    return key, Problem(text, message + _got(key, "", details["input"]))


def _member(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else None


def _got(key: Key, kind: str, value: object) -> str:
    """`, got 99`, unless nothing was there or a secret might be."""
    if kind == "missing" or value is None or any(step in _PRIVATE for step in key):
        return ""
    if isinstance(value, bool):
        return f", got {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f", got {value}" if len(str(value)) <= 24 else ""
    if isinstance(value, str):
        return f", got {value!r}" if len(value) <= 40 else ", got a longer text"
    if isinstance(value, Mapping):
        return ", got a mapping"
    return ", got a list" if isinstance(value, (list, tuple)) else ""


def _truths(value: object, here: Any, key: Key) -> Iterator[Key]:
    """Where true or false stands for a number, which pydantic would take for 1 or 0."""
    if isinstance(value, bool):
        if here in {int, float}:
            yield key
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _truths(each, _below(here, name), (*key, name))
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _truths(each, _below(here, index), (*key, index))


def _type_at(key: Key) -> Any:
    """The type that the model tree has at a key path; None where it leads nowhere."""
    here: Any = Settings
    for step in key:
        here = _below(here, step)
    return here


def _below(here: Any, step: str | int) -> Any:
    origin = get_origin(here)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _bare(get_args(here)[1])
    if isinstance(step, int):
        return _bare(get_args(here)[0]) if get_args(here) else None
    return _bare(_fields(here).get(step))


def _fields(here: Any) -> dict[str, Any]:
    """The members of a block by name, with their types."""
    if isinstance(here, type) and issubclass(here, BaseModel):
        return {name: field.annotation for name, field in here.model_fields.items()}
    if dataclasses.is_dataclass(here):
        hints = get_type_hints(here, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(here) if field.init}
    return {}


def _bare(here: Any) -> Any:
    """A type without Annotated and without None."""
    while True:
        origin = get_origin(here)
        if origin is Annotated:
            here = get_args(here)[0]
        elif origin in {Union, types.UnionType}:
            here = next(each for each in get_args(here) if each is not type(None))
        else:
            return here
