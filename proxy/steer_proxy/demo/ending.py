"""How calls end, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from steer_proxy.demo.answers import ANSWER
from steer_proxy.demo.callers import Seen


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended for its caller: in a line, in a few words, and whether it was well."""

    text: str
    brief: str
    good: bool


NOT_TRIED: Final = Ending("", "", good=False)


def ending(seen: Seen) -> Ending:
    """How a call ended."""
    if seen.error is not None:
        text, brief = f"{seen.error} after {_took(seen)}", seen.error
    elif seen.text == ANSWER:
        text, brief = f"the answer after {_took(seen)}", f"the answer, {_took(seen)}"
    else:
        text, brief = f'"{seen.text}", and no error', "half an answer"
    if seen.upstream and seen.error is None:
        text += f", from {seen.upstream}" + (f" (model {seen.model})" if seen.model else "")
    if seen.attempts > 1:
        text += f", {seen.attempts} attempts"
    if seen.error is not None and not seen.message.startswith("Error code"):
        # Of an HTTP error the SDKs' messages hold the whole body; the others are short.
        text += f": {seen.message}"
    return Ending(text, brief, good=seen.text == ANSWER)


def _took(seen: Seen) -> str:
    if seen.seconds < 0.1:
        return f"{seen.seconds * 1000:.0f} ms"
    return f"{seen.seconds:.1f} s"
