"""The kinds the embedded API server knows: names, scope, subresources. Declares, decides nothing.

Kinds of stored CustomResourceDefinitions are added and removed while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nfs_provisioner.demo.faults import Json


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind as the API serves it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    status: bool = False  # has a /status subresource
    generation: bool = False  # metadata.generation counts changes of the specification
    returns_deleted: bool = False  # a DELETE that removes at once answers with the object, not with a Status
    custom: bool = False
    short: tuple[str, ...] = ()
    unconditional: bool = True  # PUT without resourceVersion is allowed
    put_creates: bool = False  # PUT of an absent object creates it
    fields: tuple[str, ...] = ()  # what a fieldSelector may name besides metadata.name and metadata.namespace

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.plural

    @property
    def prefix(self) -> bytes:
        """The beginning of a serialised object; the store keeps objects without it."""
        return f'{{"kind":"{self.kind}","apiVersion":"{self.api_version}",'.encode()


_EVENT_FIELDS = (
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
)
_POD_FIELDS = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
)

NAMESPACES = Resource(
    "",
    "v1",
    "namespaces",
    "Namespace",
    False,
    status=True,
    returns_deleted=True,
    short=("ns",),
    fields=("status.phase",),
)
CLAIMS = Resource(
    "", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", True, status=True, returns_deleted=True, short=("pvc",)
)
VOLUMES = Resource(
    "", "v1", "persistentvolumes", "PersistentVolume", False, status=True, returns_deleted=True, short=("pv",)
)
EVENTS = Resource("", "v1", "events", "Event", True, short=("ev",), put_creates=True, fields=_EVENT_FIELDS)
SERVICES = Resource("", "v1", "services", "Service", True, status=True, returns_deleted=True, short=("svc",))
NODES = Resource("", "v1", "nodes", "Node", False, status=True, short=("no",))
PODS = Resource(
    "", "v1", "pods", "Pod", True, status=True, generation=True, returns_deleted=True, short=("po",), fields=_POD_FIELDS
)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap", True, short=("cm",))
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount", True, returns_deleted=True, short=("sa",))
CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", False, returns_deleted=True, short=("sc",))
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", True, unconditional=False, put_creates=True)
SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", True, generation=True)
DEFINITIONS = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    False,
    status=True,
    generation=True,
    unconditional=False,
    short=("crd",),
)
EXPORTS = Resource(
    "nfs-provisioner.io",
    "v1alpha1",
    "nfsexports",
    "NFSExport",
    False,
    status=True,
    generation=True,
    custom=True,
    unconditional=False,
    short=("nfsx",),
)

BUILT_IN = (
    NAMESPACES,
    CLAIMS,
    VOLUMES,
    EVENTS,
    SERVICES,
    NODES,
    PODS,
    CONFIG_MAPS,
    SERVICE_ACCOUNTS,
    CLASSES,
    LEASES,
    SLICES,
    DEFINITIONS,
    EXPORTS,
)


def from_definition(definition: Json) -> list[Resource]:
    """The resources a CustomResourceDefinition serves, one per served version."""
    spec = definition["spec"]
    names = spec["names"]
    return [
        Resource(
            spec["group"],
            version["name"],
            names["plural"],
            names["kind"],
            spec.get("scope") == "Namespaced",
            status="status" in version.get("subresources", {}),
            generation=True,
            custom=True,
            unconditional=False,
            short=tuple(names.get("shortNames", ())),
            fields=tuple(field["jsonPath"].lstrip(".") for field in version.get("selectableFields", ())),
        )
        for version in spec["versions"]
        if version.get("served", True)
    ]


class Catalogue:
    """Which resources are served now, by (group, version, plural)."""

    def __init__(self) -> None:
        self._served: dict[tuple[str, str, str], Resource] = {}
        self._schemas: dict[tuple[str, str, str], Json] = {}
        for resource in BUILT_IN:
            self.add(resource)

    def add(self, resource: Resource) -> None:
        self._served[resource.group, resource.version, resource.plural] = resource

    def define(self, definition: Json) -> None:
        """Serves what a CustomResourceDefinition says, from now on with its schemas."""
        for resource in from_definition(definition):
            self.add(resource)
        spec = definition["spec"]
        for version in spec["versions"]:
            schema = (version.get("schema") or {}).get("openAPIV3Schema")
            if schema is not None:
                self._schemas[spec["group"], version["name"], spec["names"]["plural"]] = schema

    def undefine(self, definition: Json) -> None:
        """Serves it no longer; kinds that are built in stay, without a schema."""
        for resource in from_definition(definition):
            identity = (resource.group, resource.version, resource.plural)
            self._schemas.pop(identity, None)
            self._served.pop(identity, None)
        for resource in BUILT_IN:
            self._served.setdefault((resource.group, resource.version, resource.plural), resource)

    def schema(self, resource: Resource) -> Json | None:
        return self._schemas.get((resource.group, resource.version, resource.plural))

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._served.get((group, version, plural))

    def all(self) -> list[Resource]:
        return list(self._served.values())

    def discovery(self, path: str) -> Json | None:
        """The body for /api, /apis, /api/v1, /apis/GROUP and /apis/GROUP/VERSION; None when there is no such group."""
        parts = path.strip("/").split("/")
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        groups = sorted({(r.group, r.version) for r in self.all() if r.group})
        if path == "/apis":
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(g, groups) for g in _names(groups)]}
        if len(parts) == 2 and parts[0] == "apis" and parts[1] in _names(groups):
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(parts[1], groups)}
        if len(parts) != (2 if parts[0] == "api" else 3):
            return None
        group, version = ("", parts[1]) if parts[0] == "api" else (parts[1], parts[2])
        served = [r for r in self.all() if (r.group, r.version) == (group, version)]
        if not served:
            return None
        listed = [entry for r in served for entry in _api_resources(r)]
        version_name = served[0].api_version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version_name, "resources": listed}


def _names(groups: list[tuple[str, str]]) -> list[str]:
    return sorted({group for group, _ in groups})


def _group(name: str, groups: list[tuple[str, str]]) -> Json:
    versions = [{"groupVersion": f"{g}/{v}", "version": v} for g, v in groups if g == name]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _api_resources(resource: Resource) -> list[Json]:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    main: dict[str, Any] = {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": verbs,
        "shortNames": list(resource.short),
    }
    if not resource.status:
        return [main]
    status = {k: v for k, v in main.items() if k != "shortNames"}
    return [
        main,
        status | {"name": f"{resource.plural}/status", "singularName": "", "verbs": ["get", "patch", "update"]},
    ]
