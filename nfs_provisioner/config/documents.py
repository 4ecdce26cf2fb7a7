"""YAML text to values that remember their lines.

Responsible for turning the documents of a YAML file into plain dicts, lists and scalars, with the line of every key
and item. Must not know what the keys mean. Invariant: what comes out is a finite tree (no cycles) of JSON types with
unique string keys; anything else in the text is refused with its line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nfs_provisioner.config.text import shown
from nfs_provisioner.errors import InvalidInput

Steps = tuple[str | int, ...]

_LARGEST_FILE = 4 * 1024 * 1024
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: `root` is its node tree, `source` the file it came from."""

    source: str
    root: yaml.Node

    @property
    def line(self) -> int:
        """The line, from 1, on which the document's content starts."""
        return self.root.start_mark.line + 1

    def scalar(self, key: str) -> str | None:
        """The text of a scalar at the top level, without reading the rest (to recognise the kind of a document)."""
        if isinstance(self.root, yaml.MappingNode):
            for key_node, value_node in self.root.value:
                if key_node.value == key and isinstance(value_node, yaml.ScalarNode):
                    return str(value_node.value)
        return None

    def texts(self, key: str) -> Iterator[str]:
        """The texts in a mapping at the top level, as a ConfigMap's data. A block's lines count as in the file."""
        for found, below in self.root.value if isinstance(self.root, yaml.MappingNode) else ():
            if found.value == key and isinstance(below, yaml.MappingNode):
                for _, value in below.value:
                    if isinstance(value, yaml.ScalarNode):
                        above = value.start_mark.line + 1 if value.style == "|" else value.start_mark.line
                        yield "\n" * above + str(value.value)

    def build(self) -> tuple[Any, Mapping[Steps, int]]:
        """The document's value and the line of each key and item. Raises InvalidInput."""
        builder = _Builder(self.source)
        try:
            return builder.value(self.root, ()), builder.lines
        except RecursionError:
            raise InvalidInput(f"{self.source}:{self.line}: nested too deeply to be a configuration") from None


def read_text(path: str | Path) -> str:
    """The text of a configuration file. Raises InvalidInput when it cannot be read, is huge, or is not UTF-8."""
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > _LARGEST_FILE:
        raise InvalidInput(f"{path}: is larger than 4 MiB, which no configuration is; is it the right file?")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{path}:{line}: is not UTF-8 text") from error


def read_documents(text: str, source: str) -> Iterator[Document]:
    """The documents of a YAML text that hold something. Raises InvalidInput with the line of a syntax error."""
    try:
        loader = yaml.SafeLoader(text)
        while loader.check_node():
            root = loader.get_node()
            if root is not None and not _is_null(root):
                yield Document(source, root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        raise InvalidInput(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        code = error.character if isinstance(error.character, int) else ord(error.character[:1])
        raise InvalidInput(f"{source}:{line}: not valid YAML: character U+{code:04X} is not allowed") from error
    except RecursionError:
        raise InvalidInput(f"{source}: nested too deeply to be a configuration") from None


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null"


@dataclass(slots=True)
class _Builder:
    source: str
    lines: dict[Steps, int] = field(default_factory=dict)
    _open: list[yaml.Node] = field(default_factory=list)
    _count: int = 0

    def value(self, node: yaml.Node, steps: Steps) -> Any:
        self.lines.setdefault(steps, node.start_mark.line + 1)
        self._count += 1
        if any(node is outer for outer in self._open):
            raise self._refusal(node, "an alias refers to what it is part of")
        if self._count > 100_000:
            raise self._refusal(node, "aliases make the document grow without bound")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*steps, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, steps)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.Node, steps: Steps) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                raise self._refusal(key_node, "the merge key << is not supported; write the keys out")
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
                raise self._refusal(key_node, "a key is not a text; write a word, and put numbers and yes/no in quotes")
            key = key_node.value
            if key in result:
                first = self.lines[(*steps, key)]
                raise self._refusal(key_node, f"key {key} is given twice, first on line {first}; remove one")
            self.lines[(*steps, key)] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, (*steps, key))
        return result

    def _scalar(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        # A date is a text to us, as it is in JSON; only the resolver of YAML 1.1 thinks otherwise.
        if kind in ("str", "timestamp"):
            return text
        if kind == "null":
            return None
        loader = yaml.SafeLoader("")
        try:
            if kind == "bool":
                return bool(loader.construct_yaml_bool(node))
            if kind == "int":
                return int(loader.construct_yaml_int(node))
            if kind == "float":
                return float(loader.construct_yaml_float(node))
        except (ValueError, LookupError):
            raise self._refusal(node, f"{shown(text)} is not what the YAML tag {kind} stands for") from None
        raise self._refusal(node, f"the YAML tag {shown(node.tag)} is not supported")

    def _refusal(self, node: yaml.Node, message: str) -> InvalidInput:
        return InvalidInput(f"{self.source}:{node.start_mark.line + 1}: {message}")
