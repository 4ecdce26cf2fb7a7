"""Names and patterns to safe relative paths, and which directories are in each other's way.

Responsible for where a volume's directory, archive and record may lie. Must not touch a file system: everything here
is text. Invariant: a path that comes out of `resolve` joined to an export's root lies strictly below it, meets none of
the names that are ours or the server's, and fits in every limit with room left for the archive's prefix; `contains`,
`server_path` and `relative_of` compare whole components, never text.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from nfs_provisioner.errors import Infeasible, RefusedForSafety, RetryLater

if TYPE_CHECKING:  # every child process loads this module, and none of them needs to read configuration
    from nfs_provisioner.config import PathPattern, Variable

__all__ = [
    "ClaimNames",
    "OwnedDirectories",
    "archive_name",
    "conflict_key",
    "contains",
    "record_file_name",
    "relative_of",
    "resolve",
    "server_path",
]

# NAME_MAX of every Linux file system; `archived-` and `-20260102T030405Z` take 26 of it, a digit or two the rest.
LONGEST_NAME = 255
LONGEST_COMPONENT = 228
LONGEST_PATH = 1024
# A record's name gets suffixes while it is written and moved.
_LONGEST_RECORD_STEM = 200
_HASH_DIGITS = 20
ARCHIVE_PREFIX = "archived-"
_MOST_ARCHIVE_TRIES = 10_000

# Ours, and what file servers show in exported directories. The last is what NFS clients rename open files to.
_RESERVED = frozenset({".nfs-provisioner", "lost+found", ".snapshot", ".snapshots", ".zfs"})
_SILLY_RENAME = re.compile(r"\.nfs[0-9a-f]{24}")
# Control, format, surrogate, private and unassigned characters, line and paragraph separators: names made of them
# cannot be told apart by people, or end a line of a log, or mean something else to the next version of Unicode.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class ClaimNames:
    """What a pattern may take from a claim."""

    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def resolve(pattern: PathPattern, claim: ClaimNames, pv_name: str) -> str:
    """The directory of a claim's volume, relative to the export's root.

    Raises Infeasible, naming the label, annotation or component, when the result would not be a directory of its own
    strictly below the root (H01, H02, H19, H63). Components longer than 228 bytes end in a hash of the whole instead.
    """
    path = "".join(part if isinstance(part, str) else _value(part, claim, pv_name, pattern) for part in pattern.parts)
    if path.startswith("/"):
        raise _refusal(pattern, claim, path, "is absolute; the directory must lie below the export")
    components = [_shortened(_checked(name, path, pattern, claim), LONGEST_COMPONENT) for name in path.split("/")]
    directory = "/".join(components)
    if len(directory.encode()) > LONGEST_PATH:
        raise _refusal(pattern, claim, path, f"is longer than {LONGEST_PATH} bytes")
    return directory


def _value(variable: Variable, claim: ClaimNames, pv_name: str, pattern: PathPattern) -> str:
    match variable.kind:
        case "namespace":
            value = claim.namespace
        case "name":
            value = claim.name
        case "pv":
            value = pv_name
        case "label":
            value = claim.labels.get(variable.key, "")
        case "annotation":
            value = claim.annotations.get(variable.key, "")
    if not value:
        what = f"{variable.kind} {variable.key!r}" if variable.key else variable.kind
        raise Infeasible(
            f"the class's pathPattern {pattern.text!r} needs the {what} of claim {claim}, which is missing or empty; "
            "set it on the claim, or use another class"
        )
    return value


def _checked(component: str, path: str, pattern: PathPattern, claim: ClaimNames) -> str:
    for character in component:
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            name = unicodedata.name(character, f"U+{ord(character):04X}")
            raise _refusal(pattern, claim, path, f"has a character in it that no directory should have ({name})")
    if component in ("", ".", ".."):
        raise _refusal(pattern, claim, path, f"has an empty, '.' or '..' component ({component!r})")
    # A file system that folds case or normalises Unicode would take these for the real ones.
    folded = _folded(component)
    if folded in _RESERVED or _SILLY_RENAME.fullmatch(folded):
        raise _refusal(pattern, claim, path, f"has the component {component!r}, which is reserved")
    if folded in (".", "..") or "/" in folded or "\0" in folded:
        raise _refusal(pattern, claim, path, f"has the component {component!r}, which some servers read as {folded!r}")
    return component


def _refusal(pattern: PathPattern, claim: ClaimNames, path: str, problem: str) -> Infeasible:
    shown = path if len(path) <= 200 else f"{path[:100]}...{path[-100:]}"
    return Infeasible(
        f"the class's pathPattern {pattern.text!r} gives claim {claim} the directory {shown!r}, which {problem}"
    )


def _shortened(name: str, longest: int, mark: str = "-") -> str:
    """`name` in at most `longest` bytes: its end gives way to `mark` and a hash, so that long names stay different."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) <= longest:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:_HASH_DIGITS]
    # Cutting may split a character; its remains are dropped.
    head = encoded[: longest - len(digest) - 1].decode("utf-8", "ignore")
    return f"{head}{mark}{digest}"


def record_file_name(pv_name: str) -> str:
    """The name of a PV's record: `<pv>.json`, shortened with a hash where a name of 253 characters would not fit."""
    if not pv_name or pv_name.startswith(".") or "/" in pv_name or "\0" in pv_name:
        raise Infeasible(f"{pv_name!r} is not the name of a PersistentVolume; no record can have it")
    # No PV's name has a "_", so no short one is ever equal to a shortened one.
    return f"{_shortened(pv_name, _LONGEST_RECORD_STEM, mark='_')}.json"


def archive_name(directory: str, taken: Callable[[str], bool] | Container[str], now: datetime) -> str:
    """A free name at the export's root for the archive of `directory`, at most 255 bytes long (H09, H63).

    `archived-<last component>`, with the UTC time after it when that is taken, and a counter when that is too. `taken`
    tells which names exist already; `now` must know its time zone.
    """
    is_taken: Callable[[str], bool] = taken if callable(taken) else taken.__contains__
    last = directory.rsplit("/", 1)[-1]
    for suffix in _archive_suffixes(now):
        room = LONGEST_NAME - len(ARCHIVE_PREFIX) - len(suffix)
        name = f"{ARCHIVE_PREFIX}{_shortened(last, room)}{suffix}"
        if not is_taken(name):
            return name
    raise RetryLater(f"no free name for the archive of {directory!r} after {_MOST_ARCHIVE_TRIES} tries")


def _archive_suffixes(now: datetime) -> Iterator[str]:
    stamp = f"-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    yield from ("", stamp)
    for counter in itertools.islice(itertools.count(2), _MOST_ARCHIVE_TRIES):
        yield f"{stamp}-{counter}"


def conflict_key(path: str) -> str:
    """The same text for all spellings that some file system takes for one directory (case, Unicode normalisation)."""
    return "/".join(_folded(component) for component in path.split("/"))


def _folded(component: str) -> str:
    # Unicode's compatibility caseless matching (definition D146): what ZFS, XFS and ext4 fold at most.
    once = unicodedata.normalize("NFKD", unicodedata.normalize("NFD", component).casefold())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", once.casefold()))
    return component if folded == component else folded  # thousands are kept beside the record that has the same text


def contains(outer: str, inner: str) -> bool:
    """Whether `inner` lies strictly inside `outer`, by components: `team` contains `team/a`, not `team-b` or `team`."""
    above, below = _components(outer), _components(inner)
    return len(above) < len(below) and below[: len(above)] == above


def _components(path: str) -> list[str]:
    return [component for component in path.split("/") if component]


def server_path(export_path: str, directory: str) -> str:
    """What a PV's nfs.path says for a directory of an export."""
    if not _is_clean(directory):
        raise RefusedForSafety(f"{directory!r} is not a path below an export; no volume can lie there")
    return f"{export_path.rstrip('/')}/{directory}"


def relative_of(export_path: str, pv_path: str) -> str:
    """The directory, relative to the export's root, that a PV's nfs.path names.

    Raises RefusedForSafety unless it lies strictly below `export_path`, component by component (H06).
    """
    top = export_path.rstrip("/")
    directory = pv_path.removeprefix(f"{top}/")
    if not pv_path.startswith(f"{top}/") or not _is_clean(directory):
        raise RefusedForSafety(
            f"the volume's path {pv_path!r} does not lie below the export's {export_path!r}; it is not a volume of it"
        )
    return directory


def _is_clean(directory: str) -> bool:
    return "\0" not in directory and all(part not in ("", ".", "..") for part in directory.split("/"))


@dataclass(slots=True)
class _Node:
    owners: list[str] = field(default_factory=list)
    below: dict[str, _Node] = field(default_factory=dict)

    def walk(self) -> Iterator[str]:
        """Owners here and below. Nodes without any are pruned, so the first comes after at most the depth of a path."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield from node.owners
            waiting.extend(node.below.values())


class OwnedDirectories:
    """Who owns which directory of an export, by conflict_key.

    Two owners may be registered for the same or nested directories, because another provisioner's volumes may be like
    that when they are adopted; `conflict` says so, and whoever makes a new directory asks first. Every call costs a
    time proportional to the depth of the path. Not locked: one thread, or the caller's lock around ask and add.
    """

    def __init__(self) -> None:
        self._root = _Node()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, path: str, owner: str) -> None:
        """Register an owner; doing it again changes nothing."""
        node = self._root
        for component in _keys(path):
            node = node.below.setdefault(component, _Node())
        if owner not in node.owners:
            node.owners.append(owner)
            self._count += 1

    def discard(self, path: str, owner: str) -> None:
        """Forget an owner, if it is registered there."""
        trail = [self._root]
        keys = _keys(path)
        for component in keys:
            node = trail[-1].below.get(component)
            if node is None:
                return
            trail.append(node)
        if owner not in trail[-1].owners:
            return
        trail[-1].owners.remove(owner)
        self._count -= 1
        for parent, component in zip(reversed(trail[:-1]), reversed(keys), strict=True):
            node = parent.below[component]
            if node.owners or node.below:
                return
            del parent.below[component]

    def conflict(self, path: str, *, besides: str | None = None) -> str | None:
        """An owner of the same directory, of one around it, or of one inside it; `besides` is not counted."""
        node = self._root
        for component in _keys(path):
            found = node.below.get(component)
            if found is None:
                return None
            node = found
            other = next((owner for owner in node.owners if owner != besides), None)
            if other is not None:
                return other
        return next((owner for owner in node.walk() if owner != besides), None)


def _keys(path: str) -> list[str]:
    return [_folded(component) for component in _components(path)]
