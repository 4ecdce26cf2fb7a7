"""The fields of the built-in kinds, and what decoding into them does to a body.

Like the Go types of k8s.io/api: an unknown field is dropped, a null counts as absent, a value of the wrong type is
refused, an empty value that the type omits is dropped. Pure; knows fields and types, no meanings. Custom objects are
not decoded here.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from nfs_provisioner.demo import quantity
from nfs_provisioner.demo.faults import Json, bad_request
from nfs_provisioner.demo.resources import Resource

# A shape is a type name, a dict (struct), or a list of one shape. A "?" marks a pointer, whose empty value is kept; a
# "!" a field that is written as null when it is absent.
Shape = str | dict[str, Any] | list[Any]

_MICRO_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$")
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")

_META: Shape = {
    "name": "string",
    "generateName": "string",
    "namespace": "string",
    "selfLink": "string",
    "uid": "string",
    "resourceVersion": "string",
    "generation": "int",
    "creationTimestamp": "time",
    "deletionTimestamp": "time",
    "deletionGracePeriodSeconds": "int?",
    "labels": "strings",
    "annotations": "strings",
    "ownerReferences": [
        {
            "apiVersion": "string",
            "kind": "string",
            "name": "string",
            "uid": "string",
            "controller": "bool?",
            "blockOwnerDeletion": "bool?",
        }
    ],
    "finalizers": ["string"],
}
_REFERENCE: Shape = {
    "kind": "string",
    "namespace": "string",
    "name": "string",
    "uid": "string",
    "apiVersion": "string",
    "resourceVersion": "string",
    "fieldPath": "string",
}
_REQUIREMENT: Shape = {"key": "string", "operator": "string", "values": ["string"]}
_SELECTOR: Shape = {"matchLabels": "strings", "matchExpressions": [_REQUIREMENT]}
_TYPED: Shape = {"apiGroup": "string!", "kind": "string", "name": "string", "namespace": "string?"}
_CONDITION: Shape = {
    "type": "string",
    "status": "string",
    "lastProbeTime": "time!",
    "lastTransitionTime": "time!",
    "reason": "string",
    "message": "string",
    "observedGeneration": "int",
}
_CLAIM: Shape = {
    "metadata": _META,
    "spec": {
        "accessModes": ["string"],
        "selector": _SELECTOR,
        "resources": {"limits": "quantities", "requests": "quantities"},
        "volumeName": "string",
        "storageClassName": "string?",
        "volumeMode": "string?",
        "dataSource": _TYPED,
        "dataSourceRef": _TYPED,
        "volumeAttributesClassName": "string?",
    },
    "status": {
        "phase": "string",
        "accessModes": ["string"],
        "capacity": "quantities",
        "conditions": [_CONDITION],
        "allocatedResources": "quantities",
        "allocatedResourceStatuses": "strings",
        "currentVolumeAttributesClassName": "string?",
        "modifyVolumeStatus": "any",
    },
}
VOLUME_SOURCES = (
    "nfs",
    "hostPath",
    "local",
    "csi",
    "iscsi",
    "fc",
    "cephfs",
    "rbd",
    "glusterfs",
    "flexVolume",
    "azureFile",
    "portworxVolume",
)
_VOLUME: Shape = {
    "metadata": _META,
    "spec": {
        "capacity": "quantities",
        **dict.fromkeys(VOLUME_SOURCES, "any"),
        "nfs": {"server": "string", "path": "string", "readOnly": "bool"},
        "accessModes": ["string"],
        "claimRef": _REFERENCE,
        "persistentVolumeReclaimPolicy": "string",
        "storageClassName": "string",
        "mountOptions": ["string"],
        "volumeMode": "string?",
        "nodeAffinity": "any",
        "volumeAttributesClassName": "string?",
    },
    "status": {"phase": "string", "message": "string", "reason": "string", "lastPhaseTransitionTime": "time"},
}
_CLASS: Shape = {
    "metadata": _META,
    "provisioner": "string",
    "parameters": "strings",
    "reclaimPolicy": "string?",
    "mountOptions": ["string"],
    "allowVolumeExpansion": "bool?",
    "volumeBindingMode": "string?",
    "allowedTopologies": "any",
}
_EVENT: Shape = {
    "metadata": _META,
    "involvedObject": _REFERENCE,
    "reason": "string",
    "message": "string",
    "source": {"component": "string", "host": "string"},
    "firstTimestamp": "time!",
    "lastTimestamp": "time!",
    "count": "int",
    "type": "string",
    "eventTime": "microtime!",
    "series": {"count": "int", "lastObservedTime": "microtime"},
    "action": "string",
    "related": _REFERENCE,
    "reportingComponent": "string",
    "reportingInstance": "string",
}
_LEASE: Shape = {
    "metadata": _META,
    "spec": {
        "holderIdentity": "string?",
        "leaseDurationSeconds": "int?",
        "acquireTime": "microtime",
        "renewTime": "microtime",
        "leaseTransitions": "int?",
        "strategy": "string?",
        "preferredHolder": "string?",
    },
}
_SLICE: Shape = {
    "metadata": _META,
    "addressType": "string",
    "endpoints": [
        {
            "addresses": ["string"],
            "conditions": {"ready": "bool?", "serving": "bool?", "terminating": "bool?"},
            "hostname": "string?",
            "targetRef": _REFERENCE,
            "deprecatedTopology": "strings",
            "nodeName": "string?",
            "zone": "string?",
            "hints": "any",
        }
    ],
    "ports": [{"name": "string?", "protocol": "string?", "port": "int?", "appProtocol": "string?"}],
}
_SPEC_STATUS: Shape = {"metadata": _META, "spec": "any", "status": "any"}
_SHAPES: dict[str, Shape] = {
    "persistentvolumeclaims": _CLAIM,
    "persistentvolumes": _VOLUME,
    "storageclasses": _CLASS,
    "events": _EVENT,
    "leases": _LEASE,
    "endpointslices": _SLICE,
    "namespaces": {"metadata": _META, "spec": {"finalizers": ["string"]}, "status": "any"},
    "services": _SPEC_STATUS,
    "nodes": _SPEC_STATUS,
    "pods": _SPEC_STATUS,
    "customresourcedefinitions": _SPEC_STATUS,
    "configmaps": {"metadata": _META, "data": "strings", "binaryData": "strings", "immutable": "bool?"},
    "serviceaccounts": {
        "metadata": _META,
        "secrets": [_REFERENCE],
        "imagePullSecrets": "any",
        "automountServiceAccountToken": "bool?",
    },
}


def decode(resource: Resource, obj: Json) -> Json:
    """The object as the kind's Go type would hold it. Raises 400 for a value of the wrong type."""
    shape: Shape = {"metadata": _META} | dict.fromkeys(obj, "raw") | {"metadata": _META}
    if not resource.custom:
        shape = _SHAPES[resource.plural]
    try:
        decoded: Json = _struct(shape, obj, "") if isinstance(shape, dict) else {}
    except ValueError as problem:
        kind = resource.kind
        message = f'{kind} in version "{resource.version}" cannot be handled as a {kind}: {problem}'
        raise bad_request(message) from problem
    decoded.setdefault("metadata", {})
    return decoded


def _value(shape: Shape, value: Any, path: str) -> Any:
    if isinstance(shape, dict):
        return _struct(shape, value, path)
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise _mismatch(value, path, "a list")
        return [_value(shape[0], item, path) for item in value]
    return _SCALARS[shape.rstrip("?!")](value, path)


def _struct(shape: dict[str, Any], value: Any, path: str) -> Json:
    if not isinstance(value, dict):
        raise _mismatch(value, path, "an object")
    decoded: Json = {}
    for name, content in value.items():
        field = shape.get(name)
        if field is None or content is None:
            continue
        result = _value(field, content, f"{path}.{name}" if path else name)
        pointer = isinstance(field, dict) or (isinstance(field, str) and (field[-1] in "?!" or field in ("any", "raw")))
        if pointer or result not in ("", [], {}, 0, False):
            decoded[name] = result
    for name, field in shape.items():
        if isinstance(field, str) and field[-1] == "!" and name not in decoded:
            decoded[name] = None
    return decoded


def _mismatch(value: Any, path: str, wanted: str) -> ValueError:
    names = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}
    got = names.get(type(value), "null")
    return ValueError(f"json: cannot unmarshal {got} into field {path} ({wanted} is needed)")


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _mismatch(value, path, "a string")
    return value


def _bool(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise _mismatch(value, path, "a bool")
    return value


def _int(value: Any, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _mismatch(value, path, "an integer")
    return value


def _strings(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _mismatch(value, path, "a map of strings")
    # A null in a map of strings is an empty string in Go.
    return {key: "" if item is None else _string(item, f"{path}.{key}") for key, item in value.items()}


def _quantities(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _mismatch(value, path, "a map of quantities")
    decoded = {}
    for key, item in value.items():
        try:
            decoded[key] = quantity.canonical(item)
        except ValueError as problem:
            raise ValueError(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            ) from problem
    return decoded


def _time(value: Any, path: str) -> str:
    if not _TIME.fullmatch(_string(value, path)):
        raise ValueError(f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00"')
    whole = re.sub(r"\.\d+", "", str(value))
    return _utc(whole)


def _utc(text: str) -> str:
    """Times are answered in UTC, whatever they were sent in."""
    if text.endswith("Z"):
        return text
    moment = datetime.fromisoformat(text).astimezone(UTC)
    return moment.isoformat(timespec="microseconds" if "." in text else "seconds").replace("+00:00", "Z")


def _microtime(value: Any, path: str) -> str:
    if not _MICRO_TIME.fullmatch(_string(value, path)):
        raise ValueError(f'parsing time "{value}" as "2006-01-02T15:04:05.000000Z07:00"')
    return _utc(value)


def _any(value: Any, path: str) -> Any:  # noqa: ARG001 (one signature for all types)
    if isinstance(value, dict):
        return {key: _any(item, "") for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_any(item, "") for item in value]
    return value


def _raw(value: Any, path: str) -> Any:  # noqa: ARG001 (one signature for all types)
    return value


_SCALARS = {
    "string": _string,
    "bool": _bool,
    "int": _int,
    "strings": _strings,
    "quantities": _quantities,
    "time": _time,
    "microtime": _microtime,
    "any": _any,
    "raw": _raw,
}
