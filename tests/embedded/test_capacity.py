"""What does not fit says by how much, waits, and is tried again as soon as there is space."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from nfs_provisioner.kube.api import EVENT, NFS_EXPORT, PV, PVC
from nfs_provisioner.volumes.objects import RESTORE_ARCHIVE
from tests.embedded.site import MI, Site
from tests.plugins.packages import unavailable

Json = dict[str, Any]
SOON = 45.0  # seconds: far below what a volume waits that nobody wakes


@pytest.fixture
def full(site: Site) -> Iterator[Site]:
    """web has 100Mi, and two claims, first and second, that have 50Mi of them each; a controller runs."""
    resize(site, capacity="100Mi")
    for name in ("first", "second"):
        site.claim(name, "50Mi")
    with site.controller():
        for name in ("first", "second"):
            site.bound(name)
        yield site


def resize(site: Site, export: str = "web", **spec: Any) -> None:
    site.api.patch(NFS_EXPORT, export, {"spec": spec})


def refusals(site: Site, name: str, reason: str = "ProvisioningFailed") -> list[str]:
    """Messages about one claim."""
    claim = site.get_claim(name)
    assert claim is not None
    events = site.api.list(EVENT, "shop")[0]
    ours = [event for event in events if event["involvedObject"]["uid"] == claim["metadata"]["uid"]]
    return [event["message"] for event in ours if event["reason"] == reason]


def refused(site: Site, name: str, words: str, reason: str = "ProvisioningFailed") -> None:
    """Wait until an Event on the claim matches."""
    site.until(
        lambda: any(re.search(words, message) for message in refusals(site, name, reason)),
        f"no Event {reason} on {name} says {words!r}, but {refusals(site, name, reason)}",
    )


def pending(site: Site, *names: str) -> None:
    for name in names:
        claim = site.get_claim(name)
        assert claim is not None and claim["status"]["phase"] == "Pending", name


def bound_soon(site: Site, name: str) -> str:
    def bound() -> str | None:
        claim = site.get_claim(name)
        return claim["spec"].get("volumeName") if claim and claim["status"]["phase"] == "Bound" else None

    return site.until(bound, f"{name} was not tried again", SOON)


def reserved(site: Site, export: str = "web") -> int:
    """What the records on disk say is promised."""
    reserving = ("creating", "live", "restoring", "orphaned", "retained")
    return sum(record.requested for record in site.records(export).values() if record.state in reserving)


def size(site: Site, pv: str) -> str:
    found: str = site.api.get(PV, pv)["spec"]["capacity"]["storage"]
    return found


# -- what brings space back -------------------------------------------------------------------------------------------


def test_a_claim_gets_the_space_of_one_that_is_archived(full: Site) -> None:
    full.claim("third", "20Mi")
    refused(full, "third", r"^export web lacks 20Mi: 100Mi of 100Mi are promised and 20Mi are wanted$")
    pending(full, "third")
    full.delete_claim("first")
    bound_soon(full, "third")
    assert reserved(full) == 70 * MI


@pytest.mark.parametrize("change", [{"capacity": "120Mi"}, {"overcommit": "1.2"}], ids=str)
def test_a_claim_gets_the_space_that_the_export_is_given(full: Site, change: Json) -> None:
    full.claim("third", "20Mi")
    refused(full, "third", "export web lacks 20Mi")
    resize(full, **change)
    bound_soon(full, "third")


def test_a_claim_below_the_reserve_says_so_and_is_tried_again_when_that_is_smaller(site: Site) -> None:
    resize(site, reserve="7Ei")
    with site.controller():
        site.claim("data")
        refused(site, "data", r"export web lacks .* of really free space: .* are kept in reserve \(spec.reserve\)")
        pending(site, "data")
        resize(site, reserve="0%")
        bound_soon(site, "data")


def test_as_many_are_bound_as_fit_and_the_oldest_first(full: Site) -> None:
    names = [f"waits-{number}" for number in range(6)]
    for name in names:
        full.claim(name, "20Mi")
        refused(full, name, "export web lacks 20Mi")
    full.delete_claim("first")  # 50Mi: two of them
    for name in names[:2]:
        bound_soon(full, name)
    pending(full, *names[2:])
    full.delete_claim(names[0])
    bound_soon(full, names[2])
    pending(full, *names[3:])
    assert reserved(full) == 90 * MI


def test_a_claim_that_was_deleted_while_it_waited_takes_nothing(full: Site) -> None:
    for name in ("third", "fourth"):
        full.claim(name, "50Mi")
        refused(full, name, "export web lacks 50Mi")
    full.delete_claim("third")
    full.delete_claim("first")
    bound_soon(full, "fourth")
    full.until(lambda: reserved(full) == 100 * MI, "it is promised to somebody else")


def test_a_claim_that_waits_is_bound_after_a_restart(site: Site) -> None:
    resize(site, capacity="100Mi")
    site.claim("first", "100Mi")
    with site.controller():
        site.bound("first")
        site.claim("second", "100Mi")
        refused(site, "second", "export web lacks 100Mi")
    with site.controller():
        site.until(lambda: site.export_status("web").get("phase") == "Ready", "web is not Ready")
        site.delete_claim("first")
        bound_soon(site, "second")


# -- several exports --------------------------------------------------------------------------------------------------


def test_a_class_that_names_two_exports_fills_one_and_then_the_next(site: Site) -> None:
    resize(site, capacity="30Mi")
    site.make_export("next", capacity="20Mi")
    site.make_class("both", export="web,next")
    with site.controller():
        for export in ("web", "next"):
            site.export_ready(export)
        for number in range(5):
            site.claim(f"data-{number}", "10Mi", storage_class="both")
        for number in range(5):
            bound_soon(site, f"data-{number}")
        assert (reserved(site), reserved(site, "next")) == (30 * MI, 20 * MI)
        site.claim("late", "10Mi", storage_class="both")
        refused(site, "late", "export next lacks 10Mi: 20Mi of 20Mi .*; export web lacks 10Mi: 30Mi of 30Mi")
        on_next = next(r.claim.name for r in site.records("next").values())
        site.delete_claim(on_next)
        pv = bound_soon(site, "late")
        assert pv in site.records("next")


def test_a_claim_goes_to_the_next_export_when_one_cannot_write_whatever_it_says(site: Site) -> None:
    """web has more space, and no inode left."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=40", "none", str(site.root)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        unavailable("mounts nothing")
    try:
        site.make_export("next", capacity="1Gi")
        site.make_class("both", export="web,next")
        with site.controller():
            for export in ("web", "next"):
                site.export_ready(export)
            with contextlib.suppress(OSError):  # it is seconds before anybody looks at that
                for number in itertools.count():
                    (site.root / f"file-{number}").touch()
            site.claim("data", storage_class="both")
            assert bound_soon(site, "data") in site.records("next")
    finally:
        subprocess.run(["umount", "-l", str(site.root)], check=True)


# -- growths, clones, restores ----------------------------------------------------------------------------------------


def test_h35_a_growth_that_does_not_fit_says_by_how_much_changes_nothing_and_is_done_when_it_fits(full: Site) -> None:
    claim = full.get_claim("first")
    assert claim is not None
    pv = claim["spec"]["volumeName"]
    full.grow("first", "70Mi")
    words = "export web lacks 20Mi: 100Mi of 100Mi are promised and 20Mi are wanted"
    refused(full, "first", f"^{words}$", "VolumeResizeFailed")
    status = full.api.get(PVC, "first", "shop")["status"]
    assert [c["message"] for c in status["conditions"] if c["type"] == "ControllerResizeError"] == [words]
    assert (status["capacity"]["storage"], size(full, pv), reserved(full)) == ("50Mi", "50Mi", 100 * MI)
    full.delete_claim("second")
    full.until(lambda: size(full, pv) == "70Mi", "the growth was not tried again", SOON)
    full.until(lambda: not full.api.get(PVC, "first", "shop")["status"].get("conditions"), "the condition stays")
    assert reserved(full) == 70 * MI


def test_h35_a_growth_keeps_the_reserve_like_a_new_claim(site: Site) -> None:
    with site.controller():
        site.claim("data")
        pv = site.bound("data")
        resize(site, reserve="7Ei")
        site.grow("data", "20Mi")
        refused(site, "data", "export web lacks .* of really free space", "VolumeResizeFailed")
        assert size(site, pv) == "10Mi"
        resize(site, reserve="0%")
        site.until(lambda: size(site, pv) == "20Mi", "the growth was not tried again", SOON)


def test_a_growth_that_was_taken_back_waits_for_nothing(full: Site) -> None:
    resize(full, capacity="110Mi")
    full.grow("first", "70Mi")
    refused(full, "first", "export web lacks 10Mi", "VolumeResizeFailed")
    full.claim("third", "20Mi")
    refused(full, "third", "export web lacks 10Mi")
    full.grow("first", "60Mi")  # as KEP-1790 allows: more than it has, less than it asked for
    full.until(lambda: reserved(full) == 110 * MI, "the smaller growth is not done")
    resize(full, capacity="130Mi")
    bound_soon(full, "third")


def test_h35_a_clone_is_decided_like_a_new_claim(full: Site) -> None:
    source = {"kind": "PersistentVolumeClaim", "name": "first"}
    full.claim("copy", "50Mi", dataSource=source)
    refused(full, "copy", "^export web lacks 50Mi: 100Mi of 100Mi are promised and 50Mi are wanted$")
    full.delete_claim("second")
    bound_soon(full, "copy")
    assert reserved(full) == 100 * MI


def test_h35_an_archive_takes_nothing_of_what_is_promised_and_its_restore_does(full: Site) -> None:
    full.delete_claim("first")
    archive = full.until(lambda: next((n for n in full.directories() if n.startswith("archived-")), None), "no archive")
    full.claim("third", "50Mi")
    bound_soon(full, "third")
    full.claim("heir", "50Mi", annotations={RESTORE_ARCHIVE: archive})
    refused(full, "heir", "^export web lacks 50Mi: 100Mi of 100Mi are promised and 50Mi are wanted$")
    assert archive in full.directories(), "it is not touched"
    full.delete_claim("second")
    bound_soon(full, "heir")
    assert reserved(full) == 100 * MI


def test_h35_the_restore_of_a_retained_volume_does_not_wait_for_the_space_that_is_kept_for_it(full: Site) -> None:
    full.make_class("kept", onDelete="retain")
    full.delete_claim("first")
    full.claim("third", "50Mi", "kept")
    pv = bound_soon(full, "third")
    full.delete_claim("third")
    full.gone(pv)
    assert reserved(full) == 100 * MI, "its directory stays"
    full.claim("larger", "60Mi", annotations={RESTORE_ARCHIVE: pv})
    refused(full, "larger", "^export web lacks 10Mi: 100Mi of 100Mi are promised and 10Mi are wanted$")
    full.claim("heir", "50Mi", annotations={RESTORE_ARCHIVE: pv})
    bound_soon(full, "heir")
    assert reserved(full) == 100 * MI


# -- races and limits -------------------------------------------------------------------------------------------------


def test_h35_claims_racing_for_room_for_half_of_them_are_never_promised_more(site: Site) -> None:
    resize(site, capacity="200Mi")
    names = [f"race-{number:02}" for number in range(40)]
    keys = {name: f"pvc-{site.claim(name, '10Mi')['metadata']['uid']}" for name in names}
    with site.controller():
        site.until(lambda: len(site.volumes()) == 20, "there are not 20 volumes")
        made = {volume["metadata"]["name"] for volume in site.volumes()}
        for name in names:
            if keys[name] in made:
                bound_soon(site, name)
            else:
                refused(site, name, "^export web lacks 10Mi: 200Mi of 200Mi are promised and 10Mi are wanted$")
                pending(site, name)
        assert reserved(site) == 200 * MI


@pytest.mark.parametrize("asked", ["8Ei", "9Ei", "1e30"])
def test_a_claim_beyond_all_bounds_is_told_so(site: Site, asked: str) -> None:
    site.claim("huge", asked)
    with site.controller():
        refused(site, "huge", "^export web lacks .*: 0B of 10Gi are promised and .* are wanted$")
        pending(site, "huge")
