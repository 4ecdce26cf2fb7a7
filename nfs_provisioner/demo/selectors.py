"""Label and field selectors: text to a predicate. Pure; reads objects, changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable

from nfs_provisioner.demo.faults import Json, bad_request
from nfs_provisioner.demo.resources import Resource

Predicate = Callable[[Json], bool]

_SET = re.compile(r"^([^\s!=,()]+)\s+(in|notin)\s*\(([^)]*)\)$")
_EQUAL = re.compile(r"^([^\s!=,()]+)\s*(==|=|!=)\s*([^\s!=,()]*)$")
_EXISTS = re.compile(r"^(!?)\s*([^\s!=,()]+)$")


def _split(text: str) -> list[str]:
    """Requirements are separated by the commas outside parentheses."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text)]


def _label_requirement(text: str) -> Predicate:
    def labels(obj: Json) -> dict[str, str]:
        return obj["metadata"].get("labels") or {}

    if match := _SET.fullmatch(text):
        key, operator, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        if operator == "in":
            return lambda obj: labels(obj).get(key) in values
        return lambda obj: labels(obj).get(key) not in values
    if match := _EQUAL.fullmatch(text):
        key, operator, value = match.groups()
        if operator == "!=":
            return lambda obj: labels(obj).get(key) != value
        return lambda obj: labels(obj).get(key) == value
    if match := _EXISTS.fullmatch(text):
        absent, key = match.groups()
        return lambda obj: (key in labels(obj)) != bool(absent)
    raise bad_request(f'unable to parse requirement: found "{text}", expected: label selector')


def _field_requirement(resource: Resource, text: str) -> Predicate:
    match = _EQUAL.fullmatch(text)
    if match is None:
        raise bad_request(f"invalid selector: '{text}'; can't understand '{text}'")
    field, operator, value = match.groups()
    known = ("metadata.name", *(("metadata.namespace",) if resource.namespaced else ()), *resource.fields)
    # Persistent volumes are the one kind with the bare alias.
    if field not in known and not (field == "name" and resource.plural == "persistentvolumes"):
        names = ", ".join(f'"{name}"' for name in known)
        raise bad_request(f'"{field}" is not a known field selector: only {names}')
    path = ["metadata", "name"] if field == "name" else field.split(".")
    return lambda obj: (_lookup(obj, path) == value) != (operator == "!=")


def _lookup(obj: Json, path: list[str]) -> str:
    if path == ["reportingComponent"]:
        return str(obj.get("reportingComponent") or obj.get("source", {}).get("component", ""))
    if path == ["source"]:
        return str(obj.get("source", {}).get("component") or obj.get("reportingComponent", ""))
    value: object = obj
    for part in path:
        value = value.get(part, "") if isinstance(value, dict) else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def predicate(resource: Resource, labels: str, fields: str) -> Predicate | None:
    """What both selectors ask together; None when they ask nothing."""
    tests = [_label_requirement(part) for part in _split(labels)] if labels.strip() else []
    if fields.strip():
        tests += [_field_requirement(resource, part) for part in _split(fields) if part]
    if not tests:
        return None
    return lambda obj: all(test(obj) for test in tests)


def label_selector_matches(selector: Json | None, labels: dict[str, str]) -> bool:
    """A metav1.LabelSelector against labels; an absent selector matches everything."""
    if not selector:
        return True
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions") or []:
        key, operator = expression["key"], expression["operator"]
        values = expression.get("values") or []
        matched = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]
        if not matched:
            return False
    return True
