"""The only module that makes PVs, deletes them, and puts our finalizer on or takes it off.

Each write has its precondition: the claim's uid, or the PV's uid and version. So a decision on an old picture of the
cluster fails here, instead of acting on another object than the one that was looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from nfs_provisioner.errors import Infeasible, RefusedForSafety, RetryLater
from nfs_provisioner.kube.api import PV, AlreadyExists, Api, Invalid, NotFound
from nfs_provisioner.kube.reflector import Reflector
from nfs_provisioner.volumes.decisions import LOOK_AGAIN, QUIET
from nfs_provisioner.volumes.objects import JsonObject, Volume, finalizer_patch


class VolumeWriter:
    """Writes PVs. Before each write: the lease. Answers go into the cache, so that the next decision sees them."""

    def __init__(self, api: Api, cache: Reflector[Volume], check: Callable[[], None]) -> None:
        self._api = api
        self._cache = cache
        self._check = check
        self._let_go: dict[str, int] = {}  # uid of a PV whose finalizer was taken off -> its version after that

    def as_left(self, volume: Volume) -> Volume:
        """What the cache says of a PV, with what was done to it here and the watch has not brought yet: else each
        echo of an earlier step would take the finalizer off once more."""
        released = self._let_go.get(volume.uid)
        if released is None:
            return volume
        if not volume.owned or int(volume.version) > released:  # the watch has brought it, or somebody put it back
            self._let_go.pop(volume.uid, None)
            return volume
        return replace(volume, owned=False)

    def went(self, volume: Volume) -> None:
        """The PV vanished."""
        self._let_go.pop(volume.uid, None)

    def post(self, name: str, manifest: JsonObject) -> None:
        """POST the PV; one that is there already must be ours for this very claim."""
        self._check()
        try:
            made = self._api.create(PV, manifest)
        except AlreadyExists:
            made = self._api.get(PV, name)
            ref = made["spec"].get("claimRef") or {}
            if ref.get("uid") != manifest["spec"]["claimRef"]["uid"]:
                raise RefusedForSafety(
                    f"a PV {name} exists already and belongs to {ref.get('namespace')}/{ref.get('name')}; "
                    "it is left alone"
                ) from None
        except Invalid as error:
            raise Infeasible(f"the API server refuses the PV: {error.message}") from error
        self._cache.put(made)

    def begin_deletion(self, volume: Volume) -> None:
        """DELETE exactly what was looked at; our finalizer holds it. One that is going already is looked at again."""
        self._check()
        try:
            if not volume.deleting:
                self._api.delete(PV, volume.name, uid=volume.uid, resource_version=volume.version)
                return
            fresh = self._api.get(PV, volume.name)
        except NotFound as error:  # somebody took its finalizers off: the watch says so in a moment
            raise RetryLater(f"PV {volume.name} is gone already", after=LOOK_AGAIN, reason=QUIET) from error
        spec, phase = fresh["spec"], (fresh.get("status") or {}).get("phase")
        now = (fresh["metadata"]["uid"], spec["persistentVolumeReclaimPolicy"], phase)
        if now != (volume.uid, "Delete", "Released"):
            self._cache.put(fresh)
            raise RetryLater(f"PV {volume.name} changed while it was being deleted; looking again")

    def hold(self, volume: Volume) -> None:
        """Put our finalizer on: the PV waits for us before it goes."""
        self._check()
        body = finalizer_patch(volume.uid, add=True)
        body["metadata"]["resourceVersion"] = volume.version
        with contextlib.suppress(NotFound):
            self._cache.put(self._api.patch(PV, volume.name, body, kind="strategic"))
            self._let_go.pop(volume.uid, None)

    def release(self, volume: Volume) -> None:
        """Take our finalizer off, if it is on."""
        if not volume.owned:
            return
        self._check()
        with contextlib.suppress(NotFound):
            # Noted before: the watch may be faster than the answer, and then the PV must not be remembered.
            self._let_go[volume.uid] = int(volume.version)
            try:
                made = self._api.patch(PV, volume.name, finalizer_patch(volume.uid, add=False), kind="strategic")
            except BaseException:
                self._let_go.pop(volume.uid, None)
                raise
            if volume.uid in self._let_go:
                self._let_go[volume.uid] = int(made["metadata"]["resourceVersion"])
