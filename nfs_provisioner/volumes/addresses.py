"""The addresses that clients use: a Service's ClusterIP is learned, its one EndpointSlice kept on the active replica.

Writes EndpointSlices and nothing else, and only ones that carry our label. Called by one thread. Invariant: a slice is
removed only when it was made for this export (a label names it) and the export names another Service, or none; or to be
made again at once, because its addressType cannot change.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from nfs_provisioner.config import ServiceRef
from nfs_provisioner.kube.api import ENDPOINT_SLICE, SERVICE, AlreadyExists, Api, JsonObject, NotFound
from nfs_provisioner.kube.reflector import Reflector
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import EXPORT_LABEL, MANAGED_BY, endpoint_slice, slice_name

log = logging.getLogger(__name__)

SERVICE_LABEL = "kubernetes.io/service-name"
_COMPARED = ("endpoints", "ports", "addressType")
SYNC = 1.0  # seconds to wait for the slices of a namespace; all exports wait with it


class Addresses:
    """`on_ready(export)`: claims may have waited for its address. `on_change()`: somebody touched a slice of ours."""

    def __init__(
        self,
        api: Api,
        *,
        check: Callable[[], None],
        on_ready: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._api = api
        self._check = check
        self._on_ready = on_ready
        self._on_change = on_change
        self._slices: dict[str, Reflector[JsonObject]] = {}  # by namespace
        self._namespaces: dict[str, set[str]] = {}  # export -> where it has or had slices

    def direct(self, export: Export) -> bool:
        """Bring it all to what the export says now. False: not everything could be done yet; ask again."""
        service = export.spec.service
        done = True  # also without an address: export.client_mount says so, and it is looked for now and then
        if service is not None and self._learn_address(export, service):
            done = self._point(export, service)
        return self._remove_left(export.name, service) and done

    def _point(self, export: Export, service: ServiceRef) -> bool:
        """The slice to the active replica."""
        active = export.spec.replica(export.active_replica)
        if active is None or not export.ready:
            return True
        wanted = endpoint_slice(service.namespace, service.name, active.server, active.name)
        wanted["metadata"]["labels"][EXPORT_LABEL] = export.name
        reflector = self._cache(export.name, service.namespace)
        if not reflector.synced.wait(SYNC):
            return False
        return self._keep(reflector, wanted)

    def forget(self, name: str) -> None:
        """The export is gone: watch nothing for it any more. What was made for it stays as it is."""
        self._namespaces.pop(name, None)
        self._stop_unused()

    def stop(self) -> None:
        """End every watch."""
        for reflector in list(self._slices.values()):
            reflector.stop()

    def _learn_address(self, export: Export, service: ServiceRef) -> bool:
        """Whether it is known; asked for again only while somebody uses it."""
        if export.client_address is not None and not export.address_used:
            return True
        export.address_used = False
        try:
            found = self._api.get(SERVICE, service.name, service.namespace)
        except NotFound:
            found = {}
        address = (found.get("spec") or {}).get("clusterIP") or ""
        before, export.client_address = export.client_address, None if address in ("", "None") else address
        if export.client_address is None or export.spec.service != service:
            export.client_address = None
            return False
        if before != address:
            log.info("export %s: clients mount %s (before: %s)", export.name, address, before or "not known")
            self._on_ready(export.name)  # claims wait for it, and volumes of it can be adopted
        return True

    def _keep(self, reflector: Reflector[JsonObject], wanted: JsonObject) -> bool:
        namespace, name = wanted["metadata"]["namespace"], wanted["metadata"]["name"]
        present = reflector.get(f"{namespace}/{name}")
        if present is not None and present["addressType"] != wanted["addressType"]:  # which is immutable
            self._remove(present)
            present = None
        if present is None:
            self._check()
            try:
                reflector.put(self._api.create(ENDPOINT_SLICE, wanted, namespace))
            except AlreadyExists:  # somebody else's, or the cache is a moment behind
                return False
        elif (
            any(present[key] != wanted[key] for key in _COMPARED)
            or not _labels(wanted).items() <= _labels(present).items()
        ):
            self._check()
            body = {"endpoints": wanted["endpoints"], "ports": wanted["ports"], "metadata": wanted["metadata"]}
            reflector.put(self._api.patch(ENDPOINT_SLICE, name, body, namespace=namespace))
        return True

    def _remove_left(self, name: str, service: ServiceRef | None) -> bool:
        """Slices that were made for Services which this export named before: they would keep an old address alive."""
        known = self._namespaces.get(name, set())
        for namespace in sorted(known):
            reflector = self._slices[namespace]
            if not reflector.synced.is_set():
                return False
            for found in reflector.items():
                if _labels(found).get(EXPORT_LABEL) == name and not _is_of(found, service):
                    log.info("export %s: EndpointSlice %s is not its any more", name, found["metadata"]["name"])
                    self._remove(found)
            if service is None or namespace != service.namespace:
                known.discard(namespace)
                self._stop_unused()
        return True

    def _remove(self, found: JsonObject) -> None:
        metadata = found["metadata"]
        self._check()
        with contextlib.suppress(NotFound):
            self._api.delete(
                ENDPOINT_SLICE,
                metadata["name"],
                namespace=metadata["namespace"],
                uid=metadata["uid"],
                resource_version=metadata["resourceVersion"],
            )

    def _cache(self, export: str, namespace: str) -> Reflector[JsonObject]:
        self._namespaces.setdefault(export, set()).add(namespace)
        reflector = self._slices.get(namespace)
        if reflector is None:
            reflector = self._slices[namespace] = Reflector(
                self._api,
                ENDPOINT_SLICE,
                slim=lambda raw: {key: raw.get(key) for key in ("metadata", *_COMPARED)},
                on_change=lambda _key, _old, _new: self._on_change(),
                namespace=namespace,
                label_selector=f"endpointslice.kubernetes.io/managed-by={MANAGED_BY}",
            )
            reflector.start()
        return reflector

    def _stop_unused(self) -> None:
        used = set().union(*self._namespaces.values()) if self._namespaces else set()
        for namespace in [namespace for namespace in self._slices if namespace not in used]:
            self._slices.pop(namespace).stop()


def _labels(found: JsonObject) -> dict[str, Any]:
    return found["metadata"].get("labels") or {}


def _is_of(found: JsonObject, service: ServiceRef | None) -> bool:
    if service is None:
        return False
    metadata = found["metadata"]
    return (metadata["namespace"], metadata["name"]) == (service.namespace, slice_name(service.name))
