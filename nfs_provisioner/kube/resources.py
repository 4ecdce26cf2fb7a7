"""The kinds of objects in use, as the API server's paths name them.

Responsible for nothing but names and paths. Must not do I/O. Invariant: every part of a path is quoted.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind as the API server's paths name it. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    @property
    def root(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        parts = [self.root]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part is not None]
        return "/".join(parts)


PVC = Resource("", "v1", "persistentvolumeclaims")
PV = Resource("", "v1", "persistentvolumes", namespaced=False)
STORAGE_CLASS = Resource("storage.k8s.io", "v1", "storageclasses", namespaced=False)
NFS_EXPORT = Resource("nfs-provisioner.io", "v1alpha1", "nfsexports", namespaced=False)
EVENT = Resource("", "v1", "events")
LEASE = Resource("coordination.k8s.io", "v1", "leases")
SERVICE = Resource("", "v1", "services")
ENDPOINT_SLICE = Resource("discovery.k8s.io", "v1", "endpointslices")
NAMESPACE = Resource("", "v1", "namespaces", namespaced=False)
POD = Resource("", "v1", "pods")
