"""The three patch formats of the Kubernetes API on plain JSON. Pure: returns a new object, never changes its arguments.

Strategic merge knows the merge keys of the kinds served here by field name; the real server takes them from the Go
types (k8s.io/api, struct tags patchMergeKey).
"""

from __future__ import annotations

import copy
import json
from typing import Any

from nfs_provisioner.demo.faults import Json, StatusError, bad_request

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON = "application/json-patch+json"

_MERGE_KEYS = {
    "conditions": "type",
    "ownerReferences": "uid",
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "ports": "port",
    "secrets": "name",
}
_MERGED_SETS = {"finalizers"}
_DELETE_FROM = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def strategic(target: Json, patch: Json) -> Json:
    """Strategic merge: lists with a merge key merge by it, finalizers merge as a set, other lists are replaced."""
    if patch.get("$patch") == "delete":
        return {}
    if patch.get("$patch") == "replace":
        return {key: copy.deepcopy(value) for key, value in patch.items() if key != "$patch"}
    merged = dict(target)
    for key, value in patch.items():
        if key.startswith(_DELETE_FROM):
            field = key.removeprefix(_DELETE_FROM)
            merged[field] = [item for item in merged.get(field) or [] if item not in value]
        elif value is None:
            merged.pop(key, None)
        elif not key.startswith(("$", _ORDER)):
            merged[key] = _strategic_field(key, merged.get(key), value)
    return merged


def _strategic_field(name: str, old: Any, new: Any) -> Any:
    if isinstance(new, dict):
        return strategic(old if isinstance(old, dict) else {}, new)
    if isinstance(new, list) and isinstance(old, list):
        if name in _MERGED_SETS:
            return _in_order(new, [item for item in old if item not in new], old)
        key = _MERGE_KEYS.get(name)
        if key is not None and all(isinstance(item, dict) for item in new):
            return _merge_by_key(key, old, new)
    if isinstance(new, list):
        return [strategic({}, item) if isinstance(item, dict) else item for item in new if not _deletes(item)]
    return new


def _deletes(item: Any) -> bool:
    return isinstance(item, dict) and item.get("$patch") == "delete"


def _merge_by_key(key: str, old: list[Json], new: list[Json]) -> list[Json]:
    if any(item.get("$patch") == "replace" for item in new):
        old = []
        new = [item for item in new if item.get("$patch") != "replace"]
    for item in new:
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
    named = {item[key]: item for item in new}
    by_key = {item.get(key): item for item in old}
    order = list(by_key)
    patched = [name for name, item in named.items() if not _deletes(item)]
    names = _in_order(patched, [name for name in order if name not in named], order)
    return [strategic(by_key.get(name, {}), named[name]) if name in named else by_key[name] for name in names]


def _failed(message: str) -> StatusError:
    return StatusError(422, "Invalid", f"the server rejected our request due to an error in our request: {message}", {})


def _in_order(patched: list[Any], kept: list[Any], order: list[Any]) -> list[Any]:
    """Merges patched and untouched items as apimachinery does: by their old places, with new items in front."""
    places = {json.dumps(item): place for place, item in enumerate(order)}
    merged: list[Any] = []
    patched, kept = list(patched), list(kept)
    while patched and kept:
        first = places.get(json.dumps(patched[0]), -1) < places.get(json.dumps(kept[0]), -1)
        merged.append((patched if first else kept).pop(0))
    return merged + patched + kept


def json_patch(target: Json, operations: Any) -> Json:
    """RFC 6902. A failed test or a path that is not there answers 422."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document: Json = copy.deepcopy(target)
    for operation in operations:
        path = _pointer(operation.get("path"))
        match operation.get("op"):
            case "test":
                if _resolve(document, path) != operation.get("value"):
                    raise _failed(f"testing path {operation['path']} value failed")
            case "add":
                _add(document, path, copy.deepcopy(operation.get("value")))
            case "remove":
                _take(document, path)
            case "replace":  # of an absent key too: evanphx/json-patch is as lenient
                _replace(document, path, copy.deepcopy(operation.get("value")))
            case "move":
                _add(document, path, _take(document, _pointer(operation.get("from"))))
            case "copy":
                _add(document, path, copy.deepcopy(_resolve(document, _pointer(operation.get("from")))))
            case other:
                raise _failed(f"unexpected operation {other}")
    return document


def _pointer(path: Any) -> list[str]:
    if not isinstance(path, str) or not path.startswith("/"):
        raise bad_request(f"invalid JSON pointer: {path!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]


def _index(sequence: list[Any], part: str) -> int:
    if not part.isdigit() or int(part) >= len(sequence):
        raise _failed(f"index {part} is out of bounds")
    return int(part)


def _resolve(document: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(document, list):
            document = document[_index(document, part)]
        elif isinstance(document, dict) and part in document:
            document = document[part]
        else:
            raise _failed(f"path /{'/'.join(path)} does not exist")
    return document


def _add(document: Any, path: list[str], value: Any) -> None:
    parent, last = _resolve(document, path[:-1]), path[-1]
    if isinstance(parent, dict):
        parent[last] = value
    elif isinstance(parent, list):
        place = len(parent) if last == "-" else _index([*parent, None], last)
        parent.insert(place, value)
    else:
        raise _failed(f"path /{'/'.join(path)} does not exist")


def _replace(document: Any, path: list[str], value: Any) -> None:
    parent, last = _resolve(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        parent[_index(parent, last)] = value
    else:
        _add(document, path, value)


def _take(document: Any, path: list[str]) -> Any:
    value = _resolve(document, path)
    parent, last = _resolve(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        parent.pop(int(last))
    else:
        del parent[last]
    return value
