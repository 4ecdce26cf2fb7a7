"""Create, update, patch and delete with the semantics of the Kubernetes API, on the store.

Chooses no object by itself: requests and controllers say what to write. The invariants: what is stored passed its
kind's rules; a status write changes no specification and the reverse; a terminating object goes exactly when its last
finalizer goes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from nfs_provisioner.demo import faults, meta, patch, schema, validation
from nfs_provisioner.demo.faults import Json, StatusError
from nfs_provisioner.demo.kinds import Kinds
from nfs_provisioner.demo.resources import (
    DEFINITIONS,
    NAMESPACES,
    SLICES,
    Catalogue,
    Resource,
    from_definition,
)
from nfs_provisioner.demo.shapes import decode
from nfs_provisioner.demo.store import Entry, Key, Store, dump

_UNDELETABLE = ("default", "kube-system", "kube-public")
_OTHER_NAMESPACE = "the namespace of the provided object does not match the namespace sent on the request"


class Registry:
    """Every write goes through here."""

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        self.store = store
        self.catalogue = catalogue
        self._kinds = Kinds(store)

    def read(self, resource: Resource, key: Key) -> Entry:
        entry = self.store.get(resource, key)
        if entry is None:
            raise faults.not_found(resource.group, resource.plural, key[1])
        return entry

    # -- create

    def create(self, resource: Resource, namespace: str, body: Any, dry_run: bool = False) -> Entry:
        obj = self._accept(resource, body)
        metadata = obj["metadata"]
        if metadata.get("resourceVersion"):
            raise StatusError(500, "", "resourceVersion should not be set on objects to be created")
        if metadata.get("namespace", namespace) not in ("", namespace):
            raise faults.bad_request(_OTHER_NAMESPACE)
        meta.stamp_new(resource, namespace, metadata)
        if resource.namespaced:
            self._need_namespace(resource, namespace, metadata.get("name") or "")
        self._kinds.prepare(resource, obj)
        self._validate(resource, obj, self._shape(resource, obj))
        key = (namespace, metadata["name"])
        if self.store.get(resource, key) is not None:
            raise faults.already_exists(resource.group, resource.plural, key[1])
        if dry_run:
            return Entry(0, dump(obj))
        entry = self.store.put(resource, key, obj)
        if resource is DEFINITIONS:
            entry = self._serve_definition(key, obj)
        return entry

    def _accept(self, resource: Resource, body: Any) -> Json:
        """The object in the body, decoded, without kind and apiVersion."""
        if not isinstance(body, dict):
            raise faults.bad_request("the request body is not an object")
        if resource.custom and not (body.get("kind") and body.get("apiVersion")):
            missing = "apiVersion" if body.get("kind") else "Kind"
            what = (
                f"the object provided is unrecognized (must be of type {resource.kind}): Object '{missing}' is missing"
            )
            raise faults.bad_request(what)
        given = body.get("kind") or resource.kind, body.get("apiVersion") or resource.api_version
        if given != (resource.kind, resource.api_version):
            raise faults.bad_request(
                f'{given[0]} in version "{given[1]}" cannot be handled as a {resource.kind}: the API version in the'
                f" data ({given[1]}) does not match the expected API version ({resource.api_version})"
            )
        obj = decode(resource, {field: value for field, value in body.items() if field not in ("kind", "apiVersion")})
        self._kinds.default(resource, obj)
        return obj

    def _need_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        entry = self.store.get(NAMESPACES, ("", namespace))
        if entry is None:
            raise faults.not_found("", "namespaces", namespace)
        if b'"deletionTimestamp"' in entry.body and "deletionTimestamp" in entry.load()["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            fault = faults.forbidden(resource.group, resource.plural, name, why)
            text = f"namespace {namespace} is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": text, "field": "metadata.namespace"}
            fault.details = (fault.details or {}) | {"causes": [cause]}
            raise fault

    def _shape(self, resource: Resource, obj: Json) -> list[Json]:
        """Applies the schema of a custom kind."""
        definition = self.catalogue.schema(resource) if resource.custom else None
        return schema.admit(definition, obj) if definition is not None else []

    def _validate(self, resource: Resource, obj: Json, found: list[Json]) -> None:
        found = found + meta.problems(resource, obj["metadata"]) + validation.problems(resource, obj)
        if found:
            raise faults.invalid(resource.group, resource.kind, obj["metadata"].get("name") or "", found)

    def _serve_definition(self, key: Key, definition: Json) -> Entry:
        self.catalogue.define(definition)
        for served in from_definition(definition):
            self.store.open(served)
        spec = definition["spec"]
        reached = {"lastTransitionTime": meta.now(), "status": "True"}
        accepted = {"reason": "NoConflicts", "message": "no conflicts found"}
        established = {"reason": "InitialNamesAccepted", "message": "the initial names have been accepted"}
        definition["status"] = {
            "acceptedNames": spec["names"],
            "conditions": [
                {"type": "NamesAccepted"} | reached | accepted,
                {"type": "Established"} | reached | established,
            ],
            "storedVersions": [version["name"] for version in spec["versions"] if version.get("storage")],
        }
        return self.store.put(DEFINITIONS, key, definition)

    # -- update

    def update(self, resource: Resource, key: Key, body: Any, status: bool = False, dry_run: bool = False) -> Entry:
        """PUT."""
        obj = self._accept(resource, body)
        metadata = obj["metadata"]
        old = self.store.get(resource, key)
        if old is None:
            if resource.put_creates and not status:
                self._check_uid(resource, key, metadata, "")
                metadata.pop("resourceVersion", None)
                return self.create(resource, key[0], obj, dry_run)
            raise faults.not_found(resource.group, resource.plural, key[1])
        if not metadata.get("resourceVersion") and not resource.unconditional:
            found = [faults.wrong("metadata.resourceVersion", 0, "must be specified for an update")]
            raise faults.invalid(resource.group, resource.plural, key[1], found)
        self._check_uid(resource, key, metadata, old.load()["metadata"]["uid"])
        return self._replace(resource, key, old, obj, status, dry_run)

    def _check_uid(self, resource: Resource, key: Key, metadata: Json, current: str) -> None:
        """A uid in a PUT is a precondition, which what is not there never meets."""
        wanted = metadata.get("uid")
        if wanted not in (None, "", current):
            why = f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {current}"
            raise faults.conflict(resource.group, resource.plural, key[1], why)

    def patch(
        self, resource: Resource, key: Key, media_type: str, change: Any, status: bool = False, dry_run: bool = False
    ) -> Entry:
        """PATCH in one of the three formats."""
        accepted = [patch.JSON, patch.MERGE] + ([] if resource.custom else [patch.STRATEGIC])
        if media_type not in accepted:
            raise faults.unsupported_media_type(accepted)
        old = self.read(resource, key)
        current = {"kind": resource.kind, "apiVersion": resource.api_version} | old.load()
        if media_type == patch.JSON:
            obj = patch.json_patch(current, change)
        elif not isinstance(change, dict):
            raise faults.bad_request("the patch is not an object")
        elif media_type == patch.MERGE:
            obj = patch.merge(current, change)
        else:
            obj = patch.strategic(current, change)
        try:
            obj = self._accept(resource, obj)
        except StatusError as problem:
            found = [faults.wrong("patch", dump(obj).decode(), problem.message)]
            raise faults.invalid(resource.group, resource.kind, key[1], found) from problem
        return self._replace(resource, key, old, obj, status, dry_run)

    def _replace(self, resource: Resource, key: Key, entry: Entry, obj: Json, status: bool, dry_run: bool) -> Entry:
        old = entry.load()
        self._check_identity(resource, key, obj["metadata"], old["metadata"])
        if status:
            new = _with_status_of(resource, obj, old)
        else:
            new = obj
            if resource.status:
                new.pop("status", None)
                if "status" in old:
                    new["status"] = old["status"]
        found = self._shape(resource, new) + meta.identity_problems(new["metadata"], old["metadata"])
        meta.keep_old(new["metadata"], old["metadata"])
        if resource.generation and not status and _counted(resource, new) != _counted(resource, old):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        found += meta.finalizer_problems(new["metadata"], old["metadata"])
        if not status:
            self._kinds.prepare_update(resource, new, old)
            found += validation.update_problems(resource, new, old)
        self._validate(resource, new, found)
        if not status:
            self._kinds.admit_update(resource, new, old)
        if dry_run:
            return Entry(entry.revision, dump(new))
        return self._commit(resource, key, new)

    def _check_identity(self, resource: Resource, key: Key, new: Json, old: Json) -> None:
        group, plural = resource.key
        if new.get("name", key[1]) != key[1]:
            raise faults.bad_request(
                f"the name of the object ({new['name']}) does not match the name on the URL ({key[1]})"
            )
        if new.get("namespace", key[0]) != key[0]:
            raise faults.bad_request(_OTHER_NAMESPACE)
        if new.get("resourceVersion") and new["resourceVersion"] != old["resourceVersion"]:
            raise faults.conflict(group, plural, key[1], faults.STALE)

    def _commit(self, resource: Resource, key: Key, obj: Json) -> Entry:
        """Stores the object, or removes it when it is terminating and nothing holds it."""
        metadata = obj["metadata"]
        if "deletionTimestamp" in metadata and not metadata.get("finalizers") and not _held_by_spec(resource, obj):
            return self._remove(resource, key, obj)
        entry = self.store.put(resource, key, obj)
        if resource is DEFINITIONS:
            self.catalogue.define(obj)
        return entry

    def write(self, resource: Resource, key: Key, change: Callable[[Json], None]) -> bool:
        """A controller's write: no rules, the present version. False when the object is gone."""
        entry = self.store.get(resource, key)
        if entry is None:
            return False
        obj = entry.load()
        change(obj)
        meta.drop_empty(obj["metadata"])
        self._commit(resource, key, obj)
        return True

    # -- delete

    def delete(self, resource: Resource, key: Key, options: Json, dry_run: bool = False) -> tuple[Entry, bool]:
        """The object as it is now, or as it last was; True when it is gone."""
        entry = self.read(resource, key)
        obj = entry.load()
        metadata = obj["metadata"]
        self._check_preconditions(resource, key, metadata, options.get("preconditions") or {})
        if resource is NAMESPACES and key[1] in _UNDELETABLE:
            raise faults.forbidden("", "namespaces", key[1], "this namespace may not be deleted")
        if metadata.get("finalizers") or _held_by_spec(resource, obj):
            if "deletionTimestamp" in metadata:
                return entry, False
            metadata["deletionTimestamp"] = meta.now()
            if resource is not NAMESPACES:
                metadata["deletionGracePeriodSeconds"] = 0
            if "generation" in metadata:
                metadata["generation"] += 1
            if resource is NAMESPACES:
                obj["status"] = {"phase": "Terminating"}
            return (entry if dry_run else self.store.put(resource, key, obj)), False
        return (entry if dry_run else self._remove(resource, key, obj)), True

    def _check_preconditions(self, resource: Resource, key: Key, metadata: Json, wanted: Json) -> None:
        uid, version = wanted.get("uid"), wanted.get("resourceVersion")
        if uid and uid != metadata["uid"]:
            why = (
                f"the UID in the precondition ({uid}) does not match the UID in record ({metadata['uid']})."
                " The object might have been deleted and then recreated"
            )
            raise faults.conflict(resource.group, resource.kind, key[1], why)
        if version and version != metadata["resourceVersion"]:
            why = (
                f"the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record"
                f" ({metadata['resourceVersion']}). The object might have been modified"
            )
            raise faults.conflict(resource.group, resource.kind, key[1], why)

    def _remove(self, resource: Resource, key: Key, obj: Json) -> Entry:
        gone = self.store.remove(resource, key, obj)
        if resource is DEFINITIONS:
            for served in from_definition(obj):
                for stored, _ in list(self.store.scan(served)):
                    self.store.remove(served, stored, self.read(served, stored).load())
            self.catalogue.undefine(obj)
        return gone


def _held_by_spec(resource: Resource, obj: Json) -> bool:
    return resource is NAMESPACES and bool(obj.get("spec", {}).get("finalizers"))


def _specification(obj: Json) -> Json:
    return {field: value for field, value in obj.items() if field not in ("metadata", "status")}


def _counted(resource: Resource, obj: Json) -> Json:
    """What metadata.generation counts changes of."""
    if resource is SLICES:
        return _specification(obj) | {"labels": obj["metadata"].get("labels")}
    return _specification(obj)


def _with_status_of(resource: Resource, obj: Json, old: Json) -> Json:
    """A status write: built-in kinds take metadata changes along, custom ones do not."""
    new = copy.copy(old) if resource.custom else _specification(old) | {"metadata": obj["metadata"]}
    if "status" in obj:
        new["status"] = obj["status"]
    else:
        new.pop("status", None)
    return new
