"""Claims that restore an archive while something fails, on the controller as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.errors import RetryLater
from nfs_provisioner.export.records import State
from nfs_provisioner.kube.api import PVC
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE
from nfs_provisioner.volumes.pvs import VolumeWriter
from tests.embedded.site import Site


def archived(site: Site) -> tuple[str, str]:
    """PV and directory of an archive with something in it."""
    site.claim("old")
    pv = site.bound("old")
    (site.directory_of(pv) / "file").write_text("data")
    site.delete_claim("old")
    site.becomes(pv, State.ARCHIVED)
    site.gone(pv)
    return pv, site.directory_of(pv).name


def test_a_restore_whose_pv_is_refused_at_first_leaves_the_catalog_as_the_disk_says(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision that the disk never had is one that no standby ever follows."""
    post, failures = VolumeWriter.post, iter(range(3))

    def refused(self: VolumeWriter, *arguments: Any) -> None:
        if next(failures, None) is not None:
            raise RetryLater("the API server has no time", after=0.05)
        post(self, *arguments)

    with site.controller() as controller:
        old, name = archived(site)
        monkeypatch.setattr(VolumeWriter, "post", refused)
        site.claim("new", annotations={RESTORE_ARCHIVE: name})
        assert (site.directory_of(site.bound("new")) / "file").read_text() == "data"
        assert controller.daemon.registry is not None
        (export,) = controller.daemon.registry.all()
        known, record = export.catalog.get(old), site.record(old)
        assert known is not None and record is not None
        assert (known.rev, known.state, known.successor) == (record.rev, record.state, record.successor)


def test_a_restore_that_failed_half_way_gets_a_pv_on_the_directory_that_it_has(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the one that the claim's labels would give it by then."""
    call, failures = Export.call, iter(range(1))

    def half_way(self: Export, operation: str, *arguments: Any, **options: Any) -> Any:
        found = call(self, operation, *arguments, **options)
        if operation == "restore" and next(failures, None) is not None:
            site.api.patch(PVC, "new", {"metadata": {"labels": {"team": "blue"}}}, namespace="shop")
            raise RetryLater("EIO")
        return found

    site.make_class("team", pathPattern="${.PVC.labels.team}")
    with site.controller():
        _, name = archived(site)
        monkeypatch.setattr(Export, "call", half_way)
        claim = site.claim("new", storage_class="team", annotations={RESTORE_ARCHIVE: name}, labels={"team": "red"})
        pv = f"pvc-{claim['metadata']['uid']}"
        volume = site.until(lambda: site.volume(pv), "there is no PV")
        assert volume["spec"]["nfs"]["path"] == f"/srv/nfs/{site.directory_of(pv).name}"
        site.bound("new")


def test_a_restore_that_was_begun_on_an_export_that_went_away_is_an_archive_again_when_it_is_back(
    site: Site, tmp_path: Path
) -> None:
    """The claim asked for a new volume instead, and got it elsewhere: nobody else ever looks at that record."""
    with site.controller():
        _, name = archived(site)
    claim = site.claim("new", annotations={RESTORE_ARCHIVE: name})
    pv = f"pvc-{claim['metadata']['uid']}"
    at = 1
    while site.state(pv) is not State.RESTORING:
        site.run_cut_off(at, "before", lambda: site.volume(pv) is not None)
        at += 1
    assert site.volume(pv) is None
    site.root.rename(tmp_path / "away")
    site.make_export("mail")
    site.api.patch(PVC, "new", {"metadata": {"annotations": {RESTORE_ARCHIVE: None}}}, namespace="shop")
    with site.controller():
        site.until(lambda: (site.volume(pv) or {}).get("status", {}).get("phase") == "Bound", "it is not Bound")
        (tmp_path / "away").rename(site.root)
        site.becomes(pv, State.ARCHIVED)
        assert (site.directory_of(pv) / "file").read_text() == "data"
        (record,) = site.records("mail").values()
        assert record.pv == pv and record.state in (State.CREATING, State.LIVE)
