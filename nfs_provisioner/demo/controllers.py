"""The controllers beside the API server: binding, protection finalizers, namespaces, and just enough of a scheduler.

They run in the server's event loop, a few objects per turn, so that requests are answered in between. They act on
changes of the store only; the invariant is that every change they depend on puts the object back into the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nfs_provisioner.demo.binder import SELECTED_NODE, Binder, annotations_of
from nfs_provisioner.demo.faults import Json
from nfs_provisioner.demo.kinds import PV_PROTECTION, PVC_PROTECTION, add_finalizer, class_of
from nfs_provisioner.demo.registry import Registry
from nfs_provisioner.demo.resources import CLAIMS, CLASSES, NAMESPACES, PODS, VOLUMES, Resource
from nfs_provisioner.demo.store import Change, Key

NODE = "demo-node"
_PER_TURN = 16


class Controllers:
    """A queue of objects to look at, each once however often it changed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._queue: dict[tuple[Resource, Key], None] = {}
        self._scheduled = False
        self._running = False
        self._binder = Binder(registry, self._enqueue)
        self._users: dict[Key, set[str]] = {}  # claim -> pods that name it
        self._claims_of: dict[Key, list[Key]] = {}  # pod -> claims it names
        self._terminating: set[str] = set()
        self._sync: dict[Resource, list[Callable[[Key], None]]] = {
            CLAIMS: [self._binder.sync_claim, self._protect_claim, self._schedule],
            VOLUMES: [self._binder.sync_volume, self._protect_volume],
            NAMESPACES: [self._empty_namespace],
        }
        self._store.observers.append(self._observe)

    def start(self) -> None:
        """Goes on with what is queued; to be called in the server's loop."""
        self._running = True
        self._scheduled = False
        self._wake()

    def stop(self) -> None:
        self._running = False

    def _enqueue(self, resource: Resource, key: Key) -> None:
        self._queue[resource, key] = None
        self._wake()

    def _wake(self) -> None:
        if self._running and self._queue and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        for _ in range(min(_PER_TURN, len(self._queue))):
            resource, key = next(iter(self._queue))
            del self._queue[resource, key]
            for sync in self._sync[resource]:
                sync(key)
        self._wake()

    def _observe(self, resource: Resource, change: Change) -> None:
        self._binder.observe(resource, change)
        if resource is PODS:
            self._pod_changed(change)
        elif resource is NAMESPACES:
            if change.new is None:
                self._terminating.discard(change.key[1])
            elif "deletionTimestamp" in change.new.load()["metadata"]:
                self._terminating.add(change.key[1])
                self._enqueue(NAMESPACES, change.key)
        elif change.new is None and change.key[0] in self._terminating:
            self._enqueue(NAMESPACES, ("", change.key[0]))

    # -- protection

    def _protect_claim(self, key: Key) -> None:
        self._keep_protected(CLAIMS, key, PVC_PROTECTION, lambda _: not self._in_use(key))

    def _protect_volume(self, key: Key) -> None:
        self._keep_protected(VOLUMES, key, PV_PROTECTION, lambda volume: volume["status"].get("phase") != "Bound")

    def _keep_protected(self, resource: Resource, key: Key, finalizer: str, unused: Callable[[Json], bool]) -> None:
        """The finalizer is there as long as the object is in use or not being deleted."""
        entry = self._store.get(resource, key)
        if entry is None:
            return
        obj = entry.load()
        terminating = "deletionTimestamp" in obj["metadata"]
        has = finalizer in obj["metadata"].get("finalizers", [])
        if terminating and has and unused(obj):
            self._registry.write(resource, key, lambda obj: _drop_finalizer(obj, finalizer))
        elif not terminating and not has:
            self._registry.write(resource, key, lambda obj: add_finalizer(obj, finalizer))

    def _in_use(self, claim: Key) -> bool:
        """A pod without a node does not hold its claims: the kubelet would not start it any more."""
        for name in self._users.get(claim, ()):
            entry = self._store.get(PODS, (claim[0], name))
            if entry is not None and entry.load()["spec"].get("nodeName"):
                return True
        return False

    # -- pods

    def _pod_changed(self, change: Change) -> None:
        for claim in self._claims_of.pop(change.key, ()):
            self._users.get(claim, set()).discard(change.key[1])
            self._enqueue(CLAIMS, claim)
        if change.new is None:
            return
        volumes = change.new.load()["spec"].get("volumes") or []
        names = [
            volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume
        ]
        self._claims_of[change.key] = [(change.key[0], name) for name in names]
        for claim in self._claims_of[change.key]:
            self._users.setdefault(claim, set()).add(change.key[1])
            self._enqueue(CLAIMS, claim)

    def _schedule(self, key: Key) -> None:
        """A claim that waits for its first consumer gets a node as soon as a pod names it."""
        entry = self._store.get(CLAIMS, key) if self._users.get(key) else None
        if entry is None:
            return
        claim = entry.load()
        storage_class = self._store.get(CLASSES, ("", class_of(claim)))
        if storage_class is None or claim["spec"].get("volumeName") or SELECTED_NODE in annotations_of(claim):
            return
        if storage_class.load()["volumeBindingMode"] == "WaitForFirstConsumer":

            def select(now: Json) -> None:
                now["metadata"].setdefault("annotations", {})[SELECTED_NODE] = NODE

            self._registry.write(CLAIMS, key, select)

    # -- namespaces

    def _empty_namespace(self, key: Key) -> None:
        """Deletes what is in a terminating namespace; the namespace goes when nothing is left."""
        if key[1] not in self._terminating:
            return
        left = 0
        for resource in self._registry.catalogue.all():
            if resource.namespaced:
                for stored, _ in list(self._store.scan(resource, key[1])):
                    _, gone = self._registry.delete(resource, stored, {})
                    left += not gone
        if not left:
            self._registry.write(NAMESPACES, key, lambda namespace: namespace["spec"].pop("finalizers", None))


def _drop_finalizer(obj: Json, finalizer: str) -> None:
    finalizers = obj["metadata"].get("finalizers", [])
    obj["metadata"]["finalizers"] = [name for name in finalizers if name != finalizer]
