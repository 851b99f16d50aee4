"""Reads one YAML file into plain values, and remembers the line of each.

Stricter than YAML where YAML surprises: a key that appears twice is an error, dates stay text,
`1e-3` is a number, and neither recursion nor a bomb of aliases is followed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from steer_proxy.settings.errors import ConfigurationError, Key, Problem, key_text

#: Largest file read, in bytes, and most values in it, aliases counted each time they are used.
MAX_BYTES: Final = 1024 * 1024
MAX_VALUES: Final = 100_000
MAX_DEPTH: Final = 64

_MERGE: Final = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML's safe types without dates, and with the exponents of JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)


@dataclass(frozen=True, slots=True)
class Document:
    """The values of a file, and the line on which each key path begins."""

    name: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[Key, int] = field(default_factory=dict)

    def source(self, key: Key) -> str | None:
        """`file:line` of a key path, or of the nearest one around it that the file has."""
        if self.name is None:
            return None
        for length in range(len(key), 0, -1):
            if (line := self.lines.get(key[:length])) is not None:
                return f"{self.name}:{line}"
        return self.name


def read_document(path: Path) -> Document:
    """Read a configuration file.

    Raises:
        ConfigurationError: when it cannot be read, is not YAML, or is not a mapping.
    """
    name = str(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError([Problem("", f"cannot be read: {reason}", name)]) from None
    if len(content) > MAX_BYTES:
        raise ConfigurationError([Problem("", f"is larger than {MAX_BYTES} bytes", name)])
    return parse_document(content, name)


def parse_document(content: bytes | str, name: str) -> Document:
    """The values of a configuration text; an empty one configures nothing.

    Raises:
        ConfigurationError: as `read_document`.
    """
    try:
        loader = _Loader(content)
        try:
            node = loader.get_single_node()
            reader = _Reader(loader, name)
            values = {} if node is None else reader.value(node, (), MAX_DEPTH)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        source = name if mark is None else f"{name}:{mark.line + 1}"
        raise ConfigurationError([Problem("", f"is not YAML: {error.problem}", source)]) from None
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError([Problem("", f"is not YAML: {reason}", name)]) from None
    if reader.problems:
        raise ConfigurationError(reader.problems)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigurationError(
            [Problem("", "expected a mapping of keys such as upstreams and routes", f"{name}:1")]
        )
    return Document(name, values, reader.lines)


def parse_value(text: str) -> Any:
    """A value from an environment variable: a number, true, false or null as YAML reads them, a
    list or mapping in YAML's (or JSON's) brackets, else the text itself.

    Raises:
        ConfigurationError: for brackets that do not close.
    """
    if text[:1] in {"[", "{"}:
        return parse_document(f"value: {text}", "value").values["value"]
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        if tag.rpartition(":")[2] not in {"int", "float", "bool", "null"}:
            return text
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except ValueError:
        return text
    finally:
        loader.dispose()


class _Reader:
    """Turns nodes into values; one per document."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self.lines: dict[Key, int] = {}
        self.problems: list[Problem] = []
        self._loader = loader
        self._name = name
        self._open: set[int] = set()
        self._count = 0

    def value(self, node: yaml.Node, key: Key, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        if not depth or id(node) in self._open:
            raise ValueError(f"{key_text(key)} is nested too deep, or contains itself")
        self.lines[key] = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            return self._loader.construct_object(node)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [
                    self.value(item, (*key, index), depth - 1)
                    for index, item in enumerate(node.value)
                ]
            return self._mapping(node, key, depth)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, key: Key, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        own: set[str] = set()
        for name_node, value_node in node.value:
            if name_node.tag == _MERGE:
                self._merge(result, value_node, key, depth)
                continue
            # Keys are names: `on: x` and `1: x` mean the words that were written.
            if not isinstance(name_node, yaml.ScalarNode):
                self._problem(name_node, key, "expected a name as key")
                continue
            name = name_node.value
            if name in own:
                self._problem(name_node, (*key, name), "appears twice")
                continue
            own.add(name)
            result[name] = self.value(value_node, (*key, name), depth - 1)
            self.lines[(*key, name)] = name_node.start_mark.line + 1
        return result

    def _merge(self, result: dict[str, Any], node: yaml.Node, key: Key, depth: int) -> None:
        """`<<: *defaults`: what is merged yields to what stands beside it."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for each in nodes:
            values = self.value(each, key, depth - 1)
            if not isinstance(values, dict):
                self._problem(each, key, "<< takes a mapping")
                continue
            for name, value in values.items():
                result.setdefault(name, value)

    def _problem(self, node: yaml.Node, key: Key, message: str) -> None:
        self.problems.append(
            Problem(key_text(key), message, f"{self._name}:{node.start_mark.line + 1}")
        )
