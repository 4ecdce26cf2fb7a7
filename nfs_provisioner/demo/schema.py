"""Structural schemas of custom resources: pruning, defaults, validation. Pure.

What a CustomResourceDefinition's openAPIV3Schema does to an object, but for CEL rules, formats and conversions: those
need the real API server.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from nfs_provisioner.demo.faults import Json, cause, required, unsupported, wrong

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


def admit(schema: Json, obj: Json) -> list[Json]:
    """Prunes and defaults obj in place, and says what is wrong with it. Metadata is not the schema's business."""
    shape = {"type": "object", "required": schema.get("required", []), "properties": dict(schema.get("properties", {}))}
    shape["properties"]["metadata"] = {"x-kubernetes-preserve-unknown-fields": True}
    _prune(shape, obj)
    _default(shape, obj)
    return _problems(shape, obj, "")


def _prune(schema: Json, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _prune(schema.get("items", {}), item)
    if not isinstance(value, dict):
        return
    properties = schema.get("properties", {})
    extra = schema.get("additionalProperties")
    for name in list(value):
        child = properties.get(name, extra if isinstance(extra, dict) else None)
        if child is None:
            if not schema.get("x-kubernetes-preserve-unknown-fields") and extra is not True:
                del value[name]
        elif value[name] is None and not child.get("nullable"):
            del value[name]
        else:
            _prune(child, value[name])


def _default(schema: Json, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _default(schema.get("items", {}), item)
    if not isinstance(value, dict):
        return
    properties = schema.get("properties", {})
    for name, child in properties.items():
        if name not in value and "default" in child:
            value[name] = copy.deepcopy(child["default"])
    extra = schema.get("additionalProperties")
    for name, content in value.items():
        child = properties.get(name, extra)
        if isinstance(child, dict):
            _default(child, content)


def _problems(schema: Json, value: Any, path: str) -> list[Json]:
    if value is None and schema.get("nullable"):
        return []
    if schema.get("x-kubernetes-int-or-string"):
        ok = isinstance(value, int | str) and not isinstance(value, bool)
        return [] if ok else [_type_problem(path, value, "integer,string")]
    wanted = schema.get("type")
    if wanted is not None and not _has_type(value, wanted):
        return [_type_problem(path, value, wanted)]
    found = _scalar_problems(schema, value, path)
    if isinstance(value, dict):
        found += _object_problems(schema, value, path)
    elif isinstance(value, list):
        found += _list_problems(schema, value, path)
    return found


def _has_type(value: Any, wanted: str) -> bool:
    return isinstance(value, _TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))


def _type_problem(path: str, value: Any, wanted: str) -> Json:
    got = _NAMES.get(type(value), "null")
    message = f'Invalid value: "{got}": {path} in body must be of type {wanted}: "{got}"'
    return cause(path, "FieldValueTypeInvalid", message)


def _scalar_problems(schema: Json, value: Any, path: str) -> list[Json]:
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(unsupported(path, value, [str(choice) for choice in schema["enum"]]))
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            found.append(wrong(path, value, f"{path} in body should match '{schema['pattern']}'"))
        if len(value) > schema.get("maxLength", len(value)):
            message = f"Too long: may not be more than {schema['maxLength']} bytes"
            found.append(cause(path, "FieldValueTooLong", message))
        if len(value) < schema.get("minLength", 0):
            found.append(wrong(path, value, f"{path} in body should be at least {schema['minLength']} chars long"))
    elif isinstance(value, int | float):
        if value < schema.get("minimum", value):
            found.append(wrong(path, value, f"{path} in body should be greater than or equal to {schema['minimum']}"))
        if value > schema.get("maximum", value):
            found.append(wrong(path, value, f"{path} in body should be less than or equal to {schema['maximum']}"))
    return found


def _object_problems(schema: Json, value: Json, path: str) -> list[Json]:
    prefix = f"{path}." if path else ""
    found = [required(prefix + name) for name in schema.get("required", []) if name not in value]
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
    for name, content in value.items():
        child = properties.get(name, extra)
        if isinstance(child, dict):
            found += _problems(child, content, prefix + name)
    return found


def _list_problems(schema: Json, value: list[Any], path: str) -> list[Json]:
    found = []
    if len(value) > schema.get("maxItems", len(value)):
        message = f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
        found.append(cause(path, "FieldValueTooMany", message))
    if len(value) < schema.get("minItems", 0):
        shown = len(value)
        found.append(wrong(path, shown, f"{path} in body should have at least {schema['minItems']} items"))
    for index, item in enumerate(value):
        found += _problems(schema.get("items", {}), item, f"{path}[{index}]")
    return found + _duplicates(schema, value, path)


def _duplicates(schema: Json, value: list[Any], path: str) -> list[Json]:
    """Lists of type set and map hold every item, or every combination of keys, once."""
    kind = schema.get("x-kubernetes-list-type")
    if kind not in ("set", "map"):
        return []
    found, seen = [], set()
    for index, item in enumerate(value):
        identity = item
        if kind == "map" and isinstance(item, dict):
            identity = {key: item.get(key) for key in schema.get("x-kubernetes-list-map-keys", [])}
        shown = json.dumps(identity, separators=(",", ":"), sort_keys=True)
        if shown in seen:
            found.append(cause(f"{path}[{index}]", "FieldValueDuplicate", f"Duplicate value: {shown}"))
        seen.add(shown)
    return found
