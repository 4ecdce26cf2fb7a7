"""Reading one mapping field by field, and the checks that several kinds share.

Responsible for the place (file, line, key) in every message and for refusing unknown keys. Must not know any kind of
object. Invariant: a key is either read by somebody or refused; a value that is refused never takes effect, and every
problem of an object is reported at once. An explicit null means the same as leaving the key out, as in the API.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from nfs_provisioner.config.documents import Steps
from nfs_provisioner.config.text import did_you_mean, listed, shown
from nfs_provisioner.errors import InvalidInput

API_VERSION = "nfs-provisioner.io/v1alpha1"

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# Kubernetes bounds the whole of a subdomain (253 characters), not its labels.
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LONGEST_PATH = 1024
_LONGEST_COMPONENT = 255

T = TypeVar("T")
Convert = Callable[[object], T]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: in which file or object, below which keys, on which line if that is known."""

    source: str
    lines: Mapping[Steps, int] = field(default_factory=dict)
    steps: Steps = ()

    def at(self, step: str | int) -> Place:
        return Place(self.source, self.lines, (*self.steps, step))

    @property
    def key(self) -> str:
        """The keys as a person writes them: `spec.replicas[1].path`."""
        words = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)
        return "".join(words).removeprefix(".")

    @property
    def line(self) -> int | None:
        """The line of the value, or of the nearest thing around it that has one."""
        for end in range(len(self.steps), -1, -1):
            if self.steps[:end] in self.lines:
                return self.lines[self.steps[:end]]
        return None

    def __str__(self) -> str:
        source = self.source if self.line is None else f"{self.source}:{self.line}"
        return ": ".join(part for part in (source, self.key) if part)


class Problems:
    """What is wrong with one object so far; `settle` raises all of it as one InvalidInput, a line for each."""

    def __init__(self) -> None:
        self._found: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, place: Place, message: str) -> None:
        self._found.append((place.line or 0, f"{place}: {message}"))

    def settle(self) -> None:
        if self._found:
            raise InvalidInput("\n".join(message for _, message in sorted(self._found, key=lambda found: found[0])))

    def abort(self, place: Place, message: str) -> NoReturn:
        """Report everything now: without the value at `place` the rest cannot be read."""
        self.add(place, message)
        self.settle()
        raise AssertionError("a problem was added just now")


class Fields:
    """One mapping being read. `finish` refuses the keys that nobody took."""

    def __init__(self, value: object, place: Place, problems: Problems) -> None:
        self.place = place
        self.problems = problems
        if not isinstance(value, Mapping):
            problems.abort(place, f"{shown(value)} is not a mapping; write keys with values below it")
        self._values: Mapping[str, Any] = value
        self._known: list[str] = []

    def ignore(self, *keys: str) -> None:
        """Keys that may be there and are not ours to read."""
        self._known.extend(keys)

    def raw(self, key: str) -> Any:
        self._known.append(key)
        return self._values.get(key)

    def optional(self, key: str, convert: Convert[T], default: T) -> T:
        """The converted value; the default when it is absent, or when it is wrong (which `settle` will raise)."""
        value = self.raw(key)
        if value is None:
            return default
        try:
            return convert(value)
        except InvalidInput as error:
            self.problems.add(self.place.at(key), error.message)
            return default

    def required(self, key: str, convert: Convert[T], hint: str) -> T:
        """The converted value. Raises InvalidInput at once when it is absent or wrong."""
        value = self.raw(key)
        if value is None:
            self.problems.abort(self.place, f"{key} is missing; write {hint}")
        try:
            return convert(value)
        except InvalidInput as error:
            self.problems.abort(self.place.at(key), error.message)

    def section(self, key: str) -> Fields:
        """A mapping below this one; an absent one reads as empty."""
        value = self.raw(key)
        return Fields({} if value is None else value, self.place.at(key), self.problems)

    def items(self, key: str) -> list[tuple[object, Place]]:
        """The items of a list with their places; an absent list reads as empty."""
        value = self.raw(key)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.problems.abort(self.place.at(key), _no_list(value))
        return [(item, self.place.at(key).at(index)) for index, item in enumerate(value)]

    def each(self, key: str, convert: Convert[T]) -> list[T]:
        """The converted items of a list without repetitions; wrong ones are left out (and raised by `settle`)."""
        result: list[T] = []
        if self.raw(key) is not None and not isinstance(self.raw(key), list | tuple):
            self.problems.add(self.place.at(key), _no_list(self.raw(key)))  # and go on: the rest can be read
            return []
        for item, place in self.items(key):
            try:
                converted = convert(item)
            except InvalidInput as error:
                self.problems.add(place, error.message)
                continue
            if converted in result:
                self.problems.add(place, f"{shown(item)} is listed twice; remove one")
            result.append(converted)
        return result

    def entries(self) -> Iterator[tuple[str, Any, Place]]:
        """Every key with its value, for mappings whose keys are free."""
        self._known.extend(self._values)
        for key, value in self._values.items():
            yield key, value, self.place.at(key)

    def finish(self) -> None:
        for key in self._values:
            if key not in self._known:
                self.problems.add(self.place.at(key), f"unknown key{did_you_mean(str(key), self._known)}")


def _no_list(value: object) -> str:
    return f"{shown(value)} is not a list; write items with a dash before each"


def text(value: object) -> str:
    """A text that is not empty and has no control characters."""
    if not isinstance(value, str):
        raise InvalidInput(f"{shown(value)} is not a text; put it in quotes if it was meant as one")
    if not value:
        raise InvalidInput("is empty; write a value, or leave the key out")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise InvalidInput(f"{shown(value)} has control characters in it; remove them")
    return value


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{shown(value)} is neither true nor false; write one of them, without quotes")
    return value


def number(low: int, high: int) -> Convert[int]:
    """A whole number from `low` to `high`."""

    def convert(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidInput(f"{shown(value)} is not a whole number from {low} to {high}")
        return value

    return convert


def choice(*choices: str) -> Convert[Any]:
    """One of `choices`, exactly."""

    def convert(value: object) -> str:
        if value not in choices or not isinstance(value, str):
            raise InvalidInput(f"{shown(value)} is not one of the choices; write {listed(choices)}")
        return value

    return convert


def dns_label(value: object) -> str:
    """RFC 1123 label: what Kubernetes takes for the name of a namespace."""
    if not isinstance(value, str) or not _DNS_LABEL.fullmatch(value):
        raise InvalidInput(
            f"{shown(value)} is not a name; write at most 63 lower-case letters, digits and dashes, with a letter or "
            "digit at both ends"
        )
    return value


def object_name(longest: int = 253) -> Convert[str]:
    """RFC 1123 subdomain: what Kubernetes takes for the name of most objects."""

    def convert(value: object) -> str:
        if isinstance(value, str) and len(value) > longest:
            raise InvalidInput(f"{shown(value)} has {len(value)} characters; write a name of at most {longest}")
        if not isinstance(value, str) or not _is_subdomain(value):
            raise InvalidInput(f"{shown(value)} is not an object's name; write lower-case letters, digits, '-' and '.'")
        return value

    return convert


def _is_subdomain(value: str) -> bool:
    return len(value) <= 253 and _SUBDOMAIN.fullmatch(value) is not None


def is_qualified_name(value: str) -> bool:
    """Whether Kubernetes takes it as the key of a label or annotation: `[prefix/]name`."""
    prefix, slash, name = value.rpartition("/")
    if slash and not _is_subdomain(prefix.lower()):
        return False
    return _QUALIFIED_PART.fullmatch(name) is not None


def provisioner_name(value: object) -> str:
    """What Kubernetes takes as StorageClass.provisioner (case does not matter to its check)."""
    if not isinstance(value, str) or not is_qualified_name(value):
        raise InvalidInput(f"{shown(value)} is not a provisioner's name; write one such as example.com/nfs")
    return value


def ip_address(value: object) -> str:
    """An IPv4 or IPv6 address without a zone or a prefix length."""
    try:
        # A number would be taken as an address too; "%" marks a zone, which means nothing on another machine.
        if not isinstance(value, str) or "%" in value:
            raise ValueError
        ipaddress.ip_address(value)
    except ValueError:
        raise InvalidInput(f"{shown(value)} is not an IP address; write one such as 10.0.0.11") from None
    return value


def host(value: object) -> str:
    """A host name or an IP address, without port, brackets or path."""
    if isinstance(value, str) and _is_subdomain(value.lower().removesuffix(".")):
        # 10.0.0.300 has the form of a host name, and is always a mistyped address.
        if re.fullmatch(r"[0-9.]+", value):
            return ip_address(value)
        return value
    try:
        return ip_address(value)
    except InvalidInput:
        raise InvalidInput(
            f"{shown(value)} is not a host; write a name or an IP address, without port or path"
        ) from None


def same_host(one: str, other: str) -> bool:
    """Whether two hosts are written for the same machine (names are compared as text, never looked up)."""

    def canonical(name: str) -> str:
        try:
            return str(ipaddress.ip_address(name))
        except ValueError:
            return name.lower().removesuffix(".")

    return canonical(one) == canonical(other)


def absolute_path(value: object) -> str:
    """An absolute path in its only spelling: no `//`, `.`, `..`, or `/` at the end. `/` itself is one."""
    if value == "/":
        return "/"
    return path_below_root(value)


def path_below_root(value: object) -> str:
    """As absolute_path, and not `/`."""
    path = text(value)
    components = path.split("/")
    if components[0] or len(components) < 2 or any(part in ("", ".", "..") for part in components[1:]):
        raise InvalidInput(
            f"{shown(path)} is not a clean absolute path; write one such as /srv/nfs, without //, . or .."
        )
    if len(path.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_COMPONENT for part in components):
        raise InvalidInput(f"{shown(path)} is too long; a path has at most {_LONGEST_PATH} bytes, a name in it 255")
    return path


def is_at_or_below(path: str, top: str) -> bool:
    """Whether one clean absolute path is another or lies below it, by components."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def check_kind(fields: Fields, kind: str, api_version: str = API_VERSION, *, demanded: bool) -> None:
    """Objects out of a list of the API carry no kind; files must."""
    for key, right in (("apiVersion", api_version), ("kind", kind)):
        value = fields.raw(key)
        if value is None and demanded:
            fields.problems.abort(fields.place, f"{key} is missing; write {key}: {right}")
        if value is not None and value != right:
            fields.problems.abort(fields.place.at(key), f"{shown(value)} is not what is read here; write {right}")


def string_map(value: object) -> dict[str, str]:
    """Labels or annotations."""
    if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
        raise InvalidInput(f"{shown(value)} is not a mapping of texts; put numbers and true/false in quotes")
    return dict(value)
