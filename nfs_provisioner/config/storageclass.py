"""StorageClass objects.

Responsible for turning a StorageClass and its parameters into a StorageClassSpec. Must not know which exports exist.
Invariant: every parameter was understood; one that is unknown or mistyped refuses the class, and never falls through
to a default (which for `onDelete` would decide whether data lives).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nfs_provisioner.config.fields import (
    Fields,
    Place,
    Problems,
    check_kind,
    choice,
    flag,
    object_name,
    provisioner_name,
    text,
)
from nfs_provisioner.config.pathpattern import DEFAULT_PATH_PATTERN, parse_pattern
from nfs_provisioner.config.text import shown
from nfs_provisioner.config.units import parse_duration
from nfs_provisioner.errors import InvalidInput

CLASS_KIND = "StorageClass"
CLASS_API_VERSION = "storage.k8s.io/v1"

OnDelete = Literal["archive", "delete", "retain"]
Quota = Literal["none", "soft"]

# (uid_t)-1 means "leave as it is" to chown(2).
_LARGEST_ID = 2**32 - 2
# What Go's strconv.ParseBool takes, because nfs-subdir-external-provisioner reads archiveOnDelete with it.
_GO_BOOL = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)
_octal = re.compile(r"0?[0-7]{3,4}")


@dataclass(frozen=True, slots=True)
class ClassParameters:
    """What a class says about its volumes. `exports` empty: any; `archive_retention` in seconds, None: for ever."""

    exports: tuple[str, ...] = ()
    path_pattern: str = DEFAULT_PATH_PATTERN
    on_delete: OnDelete = "archive"
    archive_retention: float | None = None
    directory_mode: int = 0o777
    uid: int = 0
    gid: int = 0
    quota: Quota = "none"


@dataclass(frozen=True, slots=True)
class StorageClassSpec:
    name: str
    provisioner: str
    parameters: ClassParameters = field(default_factory=ClassParameters)
    reclaim_policy: Literal["Delete", "Retain"] = "Delete"
    binding_mode: Literal["Immediate", "WaitForFirstConsumer"] = "Immediate"
    mount_options: tuple[str, ...] = ()
    allow_expansion: bool = False


def parse_class(obj: Mapping[str, object], *, source: str = "") -> StorageClassSpec:
    """The class that a StorageClass object describes. Raises InvalidInput with everything wrong in it."""
    metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return read_class(obj, Place(source or f"{CLASS_KIND} {name}"))


def parse_parameters(parameters: Mapping[str, object], *, source: str = "parameters") -> ClassParameters:
    """The parameters of a class alone. Raises InvalidInput with everything wrong in them."""
    problems = Problems()
    result = _parameters(Fields(parameters, Place(source), problems))
    problems.settle()
    return result


def read_class(obj: object, place: Place) -> StorageClassSpec:
    """As parse_class; `place` says where the object stands, with lines when it came from a file."""
    problems = Problems()
    fields = Fields(obj, place, problems)
    from_file = bool(place.lines)
    check_kind(fields, CLASS_KIND, CLASS_API_VERSION, demanded=from_file)
    spec = StorageClassSpec(
        name=fields.section("metadata").required("name", object_name(), "the class's name"),
        provisioner=fields.required("provisioner", provisioner_name, "the provisioner's name"),
        parameters=_parameters(fields.section("parameters")),
        reclaim_policy=fields.optional("reclaimPolicy", choice("Delete", "Retain"), "Delete"),
        binding_mode=fields.optional("volumeBindingMode", choice("Immediate", "WaitForFirstConsumer"), "Immediate"),
        mount_options=tuple(fields.each("mountOptions", text)),
        allow_expansion=fields.optional("allowVolumeExpansion", flag, False),
    )
    fields.ignore("allowedTopologies")
    if from_file:
        # Only in files: an API server newer than this program may send fields that are unknown here and harmless.
        fields.finish()
    problems.settle()
    return spec


def _parameters(fields: Fields) -> ClassParameters:
    archive = fields.optional("archiveOnDelete", _go_bool, True)
    result = ClassParameters(
        exports=fields.optional("export", _export_names, ()),
        path_pattern=fields.optional("pathPattern", _path_pattern, DEFAULT_PATH_PATTERN),
        on_delete=fields.optional(
            "onDelete", choice("archive", "delete", "retain"), "archive" if archive else "delete"
        ),
        archive_retention=fields.optional("archiveRetention", _retention, None),
        directory_mode=fields.optional("directoryMode", _mode, 0o777),
        uid=fields.optional("uid", _owner_id, 0),
        gid=fields.optional("gid", _owner_id, 0),
        quota=fields.optional("quota", choice("none", "soft"), "none"),
    )
    fields.finish()
    return result


def _go_bool(value: object) -> bool:
    if not isinstance(value, str) or value not in _GO_BOOL:
        raise InvalidInput(f'{shown(value)} is neither "true" nor "false"; write one of them, in quotes')
    return _GO_BOOL[value]


def _export_names(value: object) -> tuple[str, ...]:
    convert = object_name(63)
    names = tuple(convert(name.strip(" ")) for name in text(value).split(","))
    if len(set(names)) != len(names):
        raise InvalidInput(f"{shown(value)} names an export twice; remove one")
    return names


def _path_pattern(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{shown(value)} is not a text; put it in quotes")
    return parse_pattern(value).text


def _retention(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise InvalidInput(f"{shown(value)} would purge archives at once; write onDelete: delete if that is meant")
    return seconds


def _mode(value: object) -> int:
    if not isinstance(value, str) or not _octal.fullmatch(value):
        raise InvalidInput(f'{shown(value)} is not an octal mode; write one in quotes, such as "0777" or "2770"')
    return int(value, 8)


def _owner_id(value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,10}", value) or int(value) > _LARGEST_ID:
        raise InvalidInput(f"{shown(value)} is not a numeric owner; write a number from 0 to {_LARGEST_ID} in quotes")
    return int(value)
