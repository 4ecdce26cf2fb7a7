"""What is wrong with an object, and what an update may not change. Pure: one function per kind, no store.

Follows pkg/apis/*/validation of Kubernetes as far as a provisioner meets it; a rule that is not here is one that the
embedded server does not have. Every finding is a cause of a 422 answer.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from nfs_provisioner.demo import quantity
from nfs_provisioner.demo.faults import Json, immutable, not_allowed, required, unsupported, unsupported_object, wrong
from nfs_provisioner.demo.meta import SUBDOMAIN_RULE, is_subdomain, key_problems
from nfs_provisioner.demo.resources import Resource
from nfs_provisioner.demo.shapes import VOLUME_SOURCES

_ACCESS_MODES = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]


def problems(resource: Resource, obj: Json) -> list[Json]:
    """What is wrong with the object as it would be stored, new or updated."""
    check = _CHECKS.get(resource.plural)
    return check(obj) if check is not None else []


def update_problems(resource: Resource, new: Json, old: Json) -> list[Json]:
    """What may not change from old to new."""
    check = _UPDATE_CHECKS.get(resource.plural)
    return check(new, old) if check is not None else []


def requested(claim: Json) -> Any:
    return quantity.parse(claim["spec"].get("resources", {}).get("requests", {}).get("storage", "0"))


def _data_source_problems(spec: Json) -> list[Json]:
    found = []
    for field in ("dataSource", "dataSourceRef"):
        source = spec.get(field)
        if source is not None and not source.get("apiGroup") and source.get("kind") != "PersistentVolumeClaim":
            why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup"
            found.append(wrong(f"spec.{field}", source.get("kind"), why))
    return found


def _storage_problems(field: str, amounts: Json | None) -> list[Json]:
    value = (amounts or {}).get("storage")
    if value is None:
        return [required(field)]
    if quantity.parse(value) <= 0:
        return [wrong(field, value, "must be greater than zero")]
    return []


def _mode_problems(modes: list[str], hint: str) -> list[Json]:
    if not modes:
        return [required("spec.accessModes", hint)]
    found = [unsupported("spec.accessModes", mode, _ACCESS_MODES) for mode in modes if mode not in _ACCESS_MODES]
    if not found and "ReadWriteOncePod" in modes and len(modes) > 1:
        found.append(not_allowed("spec.accessModes", "may not use ReadWriteOncePod with other access modes"))
    return found


def _volume_mode_problems(spec: Json) -> list[Json]:
    modes = ["Block", "Filesystem"]
    return [] if spec["volumeMode"] in modes else [unsupported("spec.volumeMode", spec["volumeMode"], modes)]


def _class_name_problems(spec: Json) -> list[Json]:
    name = spec.get("storageClassName")
    return [wrong("spec.storageClassName", name, SUBDOMAIN_RULE)] if name and not is_subdomain(name) else []


def _claim_problems(claim: Json) -> list[Json]:
    spec = claim["spec"]
    found = _mode_problems(spec.get("accessModes") or [], "at least 1 access mode is required")
    found += _storage_problems("spec.resources[storage]", spec["resources"].get("requests"))
    return found + _class_name_problems(spec) + _volume_mode_problems(spec) + _data_source_problems(spec)


def _volume_problems(volume: Json) -> list[Json]:
    spec = volume["spec"]
    found = _mode_problems(spec.get("accessModes") or [], "")
    capacity = spec.get("capacity")
    if not capacity:
        found.append(required("spec.capacity"))
    if not capacity or set(capacity) != {"storage"}:
        found.append(unsupported_object("spec.capacity", capacity, ["storage"]))
    else:
        found += _storage_problems("spec.capacity[storage]", capacity)
    policies = ["Delete", "Recycle", "Retain"]
    if spec["persistentVolumeReclaimPolicy"] not in policies:
        policy = spec["persistentVolumeReclaimPolicy"]
        found.append(unsupported("spec.persistentVolumeReclaimPolicy", policy, policies))
    sources = [name for name in VOLUME_SOURCES if spec.get(name) is not None]
    if not sources:
        found.append(required("spec", "must specify a volume type"))
    elif len(sources) > 1:
        found.append(not_allowed(f"spec.{sources[0]}", "may not specify more than 1 volume type"))
    elif sources == ["nfs"]:
        found += _nfs_problems(spec["nfs"])
    return found + _class_name_problems(spec) + _volume_mode_problems(spec)


def _nfs_problems(nfs: Json) -> list[Json]:
    found = []
    if not nfs.get("server"):
        found.append(required("spec.nfs.server"))
    path = nfs.get("path") or ""
    if not path:
        found.append(required("spec.nfs.path"))
    elif not path.startswith("/"):
        found.append(wrong("spec.nfs.path", path, "must be an absolute path"))
    return found


def _class_problems(obj: Json) -> list[Json]:
    name = obj.get("provisioner") or ""
    found = key_problems("provisioner", name.lower()) if name else [required("provisioner")]
    if "" in (obj.get("parameters") or {}):
        found.append(wrong("parameters", "", "field can not be empty."))
    if obj["reclaimPolicy"] not in ("Delete", "Retain"):
        found.append(unsupported("reclaimPolicy", obj["reclaimPolicy"], ["Delete", "Retain"]))
    modes = ["Immediate", "WaitForFirstConsumer"]
    if obj["volumeBindingMode"] not in modes:
        found.append(unsupported("volumeBindingMode", obj["volumeBindingMode"], modes))
    return found


def _lease_problems(lease: Json) -> list[Json]:
    spec = lease.get("spec") or {}
    duration = spec.get("leaseDurationSeconds")
    found = []
    if duration is not None and duration <= 0:
        found.append(wrong("spec.leaseDurationSeconds", duration, "must be greater than 0"))
    if spec.get("leaseTransitions", 0) < 0:
        why = "must be greater than or equal to 0"
        found.append(wrong("spec.leaseTransitions", spec["leaseTransitions"], why))
    return found


def _slice_problems(obj: Json) -> list[Json]:
    kinds = ["FQDN", "IPv4", "IPv6"]
    kind = obj.get("addressType")
    if kind not in kinds:
        return [
            required("addressType")
            if not obj.get("addressType")
            else unsupported("addressType", obj["addressType"], kinds)
        ]
    found = []
    for index, endpoint in enumerate(obj.get("endpoints") or []):
        for position, address in enumerate(endpoint.get("addresses") or []):
            field = f"endpoints[{index}].addresses[{position}]"
            if kind != "FQDN":
                found += _family_problems(f"endpoints[{index}].addresses", address, kind)
                found += _address_problems(field, address)
        if not endpoint.get("addresses"):
            found.append(required(f"endpoints[{index}].addresses", "must contain at least 1 address"))
    return found


def _family_problems(field: str, text: str, family: str) -> list[Json]:
    if (":" in text) == (family == "IPv6"):
        return []
    return [wrong(field, text, f"must be an {family} address")]


def _address_problems(field: str, text: str) -> list[Json]:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return [wrong(field, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")]
    if address.is_unspecified:
        return [wrong(field, text, f"may not be unspecified ({address})")]
    if address.is_loopback:
        return [wrong(field, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)")]
    if address.is_link_local:
        return [wrong(field, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")]
    if address.is_multicast and address.packed[:3] in (b"\xe0\x00\x00", b"\xff\x02\x00"):
        return [wrong(field, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")]
    return []


def _event_problems(event: Json) -> list[Json]:
    involved = (event.get("involvedObject") or {}).get("namespace")
    namespace = event["metadata"].get("namespace")
    # An Event about a cluster-scoped object lives in the namespace "default".
    expected = involved or "default"
    found = []
    if namespace != expected:
        found.append(wrong("involvedObject.namespace", involved or "", "does not match event.namespace"))
    if event.get("eventTime"):
        found += [required(field) for field in _NEW_EVENT_FIELDS if not event.get(field)]
        if event["type"] not in ("Normal", "Warning"):
            found.append(wrong("type", "", f"has invalid value: {event['type']}"))
        if len(event.get("message", "")) > 1024:
            found.append(wrong("message", "", "can have at most 1024 characters"))
    return found


_NEW_EVENT_FIELDS = ("reportingComponent", "reportingInstance", "action", "reason")


def _claim_update_problems(new: Json, old: Json) -> list[Json]:
    before, after = dict(old["spec"]), dict(new["spec"])
    bound = old.get("status", {}).get("phase") == "Bound"
    if not before.get("volumeName"):
        before.pop("volumeName", None)
        after.pop("volumeName", None)
    if before.get("storageClassName") is None:  # a default class may come later (KEP-3333)
        after.pop("storageClassName", None)
        before.pop("storageClassName", None)
    if bound:
        before.pop("volumeAttributesClassName", None)
        after.pop("volumeAttributesClassName", None)
        before["resources"] = {**(before.get("resources") or {}), "requests": None}
        after["resources"] = {**(after.get("resources") or {}), "requests": None}
    found = []
    if before != after:
        why = (
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
        )
        found.append(not_allowed("spec", why))
    granted = quantity.parse((old.get("status", {}).get("capacity") or {}).get("storage", "0"))
    if requested(new) < requested(old) and not (bound and requested(new) > granted):
        found.append(not_allowed("spec.resources.requests.storage", "field can not be less than status.capacity"))
    return found


def _volume_update_problems(new: Json, old: Json) -> list[Json]:
    found = []
    if any(new["spec"].get(source) != old["spec"].get(source) for source in VOLUME_SOURCES):
        why = "spec.persistentvolumesource is immutable after creation"
        found.append(not_allowed("spec.persistentvolumesource", why))
    if new["spec"].get("volumeMode") != old["spec"].get("volumeMode"):
        found.append(immutable("volumeMode", new["spec"].get("volumeMode")))
    return found


def _class_update_problems(new: Json, old: Json) -> list[Json]:
    found = []
    if (new.get("parameters") or {}) != (old.get("parameters") or {}):
        found.append(immutable("parameters", new.get("parameters") or {}))
    if new.get("provisioner") != old.get("provisioner"):
        found.append(immutable("provisioner", new.get("provisioner")))
    if new.get("reclaimPolicy") != old.get("reclaimPolicy"):
        found.append(immutable("reclaimPolicy", new.get("reclaimPolicy")))
    if new.get("volumeBindingMode") != old.get("volumeBindingMode"):
        found.append(immutable("volumeBindingMode", new.get("volumeBindingMode")))
    return found


def _slice_update_problems(new: Json, old: Json) -> list[Json]:
    if new.get("addressType") != old.get("addressType"):
        return [immutable("addressType", new.get("addressType"))]
    return []


def _service_update_problems(new: Json, old: Json) -> list[Json]:
    if new["spec"].get("clusterIP") != old["spec"].get("clusterIP"):
        return [wrong("spec.clusterIPs[0]", [new["spec"].get("clusterIP")], "may not change once set")]
    return []


def _service_problems(service: Json) -> list[Json]:
    spec = service["spec"]
    return [] if spec.get("ports") or spec.get("clusterIP") == "None" else [required("spec.ports")]


_CHECKS = {
    "persistentvolumeclaims": _claim_problems,
    "persistentvolumes": _volume_problems,
    "storageclasses": _class_problems,
    "leases": _lease_problems,
    "endpointslices": _slice_problems,
    "events": _event_problems,
    "services": _service_problems,
}

_UPDATE_CHECKS = {
    "persistentvolumeclaims": _claim_update_problems,
    "persistentvolumes": _volume_update_problems,
    "storageclasses": _class_update_problems,
    "endpointslices": _slice_update_problems,
    "services": _service_update_problems,
}
