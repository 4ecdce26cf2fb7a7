"""Object metadata: names, labels, finalizers, what an update may change. Pure; knows no kind."""

from __future__ import annotations

import re
import secrets
import uuid
from datetime import UTC, datetime

from nfs_provisioner.demo.faults import Json, cause, immutable, not_allowed, required, wrong
from nfs_provisioner.demo.resources import Resource

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(rf"^{_LABEL}$")
_DNS_SUBDOMAIN = re.compile(rf"^{_LABEL}(\.{_LABEL})*$")
_QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_GENERATED = "bcdfghjklmnpqrstvwxz2456789"
_MAX_GENERATED_PREFIX = 58
_MAX_ANNOTATIONS = 256 * 1024
_FROM_OLD = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")

SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and"
    " end with an alphanumeric character (e.g. 'example.com', regex used for validation is"
    " '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with"
    " an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is"
    " '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and"
    " end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is"
    " '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_QUALIFIED_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric"
    " character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is"
    " '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)


def now() -> str:
    """The time as metav1.Time writes it: UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_subdomain(name: str) -> bool:
    return len(name) <= 253 and _DNS_SUBDOMAIN.fullmatch(name) is not None


def stamp_new(resource: Resource, namespace: str, metadata: Json) -> None:
    """Fills what the server alone decides about a new object."""
    if not metadata.get("name") and metadata.get("generateName"):
        suffix = "".join(secrets.choice(_GENERATED) for _ in range(5))
        metadata["name"] = metadata["generateName"][:_MAX_GENERATED_PREFIX] + suffix
    if resource.namespaced:
        metadata["namespace"] = namespace
    for field in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"):
        metadata.pop(field, None)
    metadata["uid"] = str(uuid.uuid4())
    metadata.pop("resourceVersion", None)
    if resource.generation:
        metadata["generation"] = 1
    metadata["creationTimestamp"] = now()
    drop_empty(metadata)


def drop_empty(metadata: Json) -> None:
    """The Go types omit what is empty."""
    for field in ("labels", "annotations", "finalizers", "ownerReferences", "generateName", "managedFields"):
        if field in metadata and (not metadata[field] or field == "managedFields"):
            del metadata[field]


def keep_old(metadata: Json, old: Json) -> None:
    """An update cannot change what the server decided: quietly the old values stay."""
    for field in _FROM_OLD:
        if field in old:
            metadata[field] = old[field]
        else:
            metadata.pop(field, None)
    metadata["name"] = old["name"]
    if "namespace" in old:
        metadata["namespace"] = old["namespace"]
    drop_empty(metadata)


def problems(resource: Resource, metadata: Json) -> list[Json]:
    """What ValidateObjectMeta finds."""
    found = _name_problems(resource, metadata.get("name") or "")
    for key, value in (metadata.get("labels") or {}).items():
        found += key_problems("metadata.labels", key)
        if len(value) > 63 or (value and not _QUALIFIED.fullmatch(value)):
            why = _VALUE_RULE if len(value) <= 63 else "must be no more than 63 bytes"
            found.append(wrong("metadata.labels", value, why))
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        found += key_problems("metadata.annotations", key.lower())
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _MAX_ANNOTATIONS:
        too_long = f"Too long: may not be more than {_MAX_ANNOTATIONS} bytes"
        found.append(cause("metadata.annotations", "FieldValueTooLong", too_long))
    for finalizer in metadata.get("finalizers") or []:
        found += key_problems("metadata.finalizers", finalizer)
    return found


def _name_problems(resource: Resource, name: str) -> list[Json]:
    if not name:
        return [required("metadata.name", "name or generateName is required")]
    if resource.plural == "namespaces" and "." in name:
        return [wrong("metadata.name", name, "must not contain dots")]
    if resource.plural == "namespaces" or resource.plural == "services":
        ok, rule = len(name) <= 63 and bool(_DNS_LABEL.fullmatch(name)), _LABEL_RULE
    else:
        ok, rule = is_subdomain(name), SUBDOMAIN_RULE
    return [] if ok else [wrong("metadata.name", name, rule)]


def key_problems(field: str, key: str) -> list[Json]:
    prefix, slash, name = key.rpartition("/")
    if slash and not is_subdomain(prefix):
        return [wrong(field, key, f"prefix part {SUBDOMAIN_RULE}")]
    if len(name) > 63:
        return [wrong(field, key, "name part must be no more than 63 bytes")]
    return [] if _QUALIFIED.fullmatch(name) else [wrong(field, key, _QUALIFIED_RULE)]


def identity_problems(metadata: Json, old: Json) -> list[Json]:
    """What a client may not say differently."""
    found = []
    for field in ("uid", "deletionTimestamp"):
        if metadata.get(field) not in (None, "", old.get(field)):
            found.append(immutable(f"metadata.{field}", metadata[field]))
    return found


def finalizer_problems(metadata: Json, old: Json) -> list[Json]:
    """A terminating object takes no new finalizers."""
    if "deletionTimestamp" not in old:
        return []
    added = [name for name in metadata.get("finalizers") or [] if name not in (old.get("finalizers") or [])]
    if not added:
        return []
    shown = "[]string{" + ", ".join(f'"{name}"' for name in added) + "}"
    why = f"no new finalizers can be added if the object is being deleted, found new finalizers {shown}"
    return [not_allowed("metadata.finalizers", why)]
