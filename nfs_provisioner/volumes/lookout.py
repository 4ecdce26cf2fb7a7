"""The caches of claims, PVs and classes, and which volumes are looked at when something in them changes.

Decides nothing and writes nothing: it queues. Until a reconciler is there (this process does not lead yet), changes
only fill the caches; `look_at_everything` makes up for them.
"""

from __future__ import annotations

from collections.abc import Callable

from nfs_provisioner.kube.api import PV, PVC, STORAGE_CLASS, Api, JsonObject
from nfs_provisioner.kube.reflector import Reflector
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import Claim, Volume, claim_from, volume_from
from nfs_provisioner.volumes.reconciler import Caches, Reconciler


class Lookout:
    """Reflectors' threads call it, and the exports'. `on_class`: told the name of every class of these provisioners."""

    def __init__(
        self, api: Api, provisioners: frozenset[str], on_class: Callable[[str], None] = lambda name: None
    ) -> None:
        self._provisioners = provisioners
        self._on_class = on_class
        self.caches = Caches(
            claims=Reflector(
                api,
                PVC,
                slim=lambda raw: claim_from(raw, provisioners),
                on_change=self._claim_changed,
                index=lambda claim: (claim.key, ("class", claim.storage_class) if not claim.volume else None),
            ),
            volumes=Reflector(
                api,
                PV,
                slim=lambda raw: volume_from(raw, provisioners),
                on_change=self._volume_changed,
                index=lambda volume: (("export", volume.export),),
            ),
            classes=Reflector(api, STORAGE_CLASS, slim=_class_from, on_change=self._class_changed),
        )
        self.reconciler: Reconciler | None = None

    def look_at_everything(self) -> None:
        """Every volume and every claim."""
        for volume in self.caches.volumes.items():
            self._look_at(volume.name)
        for claim in self.caches.claims.items():
            self._look_at(claim.key)

    def look_at_waiting(self) -> None:
        """Claims that have no volume, and volumes that wait to be adopted: another export may be the one for them."""
        for claim in self.caches.claims.items():
            if not claim.volume:
                self._look_at(claim.key)
        for volume in self.caches.volumes.by_index(("export", "")):
            self._look_at(volume.name)

    def export_ready(self, export: Export | None) -> None:
        """Its catalog was filled: volumes may have no PV and no claim any more, and only a record."""
        for record in export.catalog.all() if export is not None else ():
            self._look_at(record.pv)
        self.look_at_everything()
        if self.reconciler is not None:
            self.reconciler.finisher.look_for_leftovers()

    def room_appeared(self, export: str) -> None:
        """There may be more room on it than before: those that wait for room are looked at again, as many as fit."""
        if self.reconciler is not None:
            self.reconciler.waiting.appeared(export)

    def may_lose_everything(self, pv: str) -> bool:
        """Whether the claim of this volume says that deleteLimit is not for it."""
        return any(claim.delete_limit == "none" for claim in self.caches.claims.by_index(pv))

    def _look_at(self, key: str) -> None:
        if self.reconciler is not None:
            self.reconciler.look_at(key)

    def _claim_changed(self, _key: str, old: Claim | None, new: Claim | None) -> None:
        for claim in (old, new):
            if claim is not None:
                self._look_at(claim.key)

    def _volume_changed(self, key: str, old: Volume | None, new: Volume | None) -> None:
        if new is None and old is not None and self.reconciler is not None:
            self.reconciler.volume_went(old)
        self._look_at(key)

    def _class_changed(self, key: str, _old: JsonObject | None, new: JsonObject | None) -> None:
        if new is not None:
            if new.get("provisioner") in self._provisioners:
                self._on_class(key)
            for claim in self.caches.claims.by_index(("class", key)):
                self._look_at(claim.key)


def _class_from(raw: JsonObject) -> JsonObject:
    keys = ("provisioner", "parameters", "reclaimPolicy", "mountOptions", "allowVolumeExpansion", "volumeBindingMode")
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": raw["metadata"]["name"]},
        **{key: raw[key] for key in keys if key in raw},
    }
