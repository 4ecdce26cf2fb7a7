"""Each flow is cut off before and after each of its API requests, and a new controller starts: it must converge.

What is checked is the end: the objects, the record and the directories agree, and the data is where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.export.records import State
from nfs_provisioner.kube.api import PV, PVC
from tests.embedded.site import MI, CutOff, Moment, Site

pytestmark = pytest.mark.timeout(1800)  # for all of its rounds together: each waits for the disk

MOMENTS: list[Moment] = ["before", "after"]
NewSite = Callable[[], Site]


@pytest.fixture
def new_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewSite]:
    """As many sites as a test cuts off controllers."""
    servers: list[EmbeddedApiServer] = []

    def make() -> Site:
        servers.append(EmbeddedApiServer())
        servers[-1].start()
        site = Site(servers[-1], tmp_path_factory.mktemp("site"))
        site.make_export()
        site.make_class()
        return site

    yield make
    for server in servers:
        server.stop()


def cuts(
    new_site: NewSite,
    prepare: Callable[[Site], str],
    done: Callable[[Site, str], bool],
    moment: Moment,
    **options: tuple[str, ...],
) -> Iterator[tuple[Site, str, CutOff]]:
    """A prepared site for every request of the flow, with a controller that was cut off there."""
    for at in count(1):
        site = new_site()
        name = prepare(site)
        cut = site.run_cut_off(at, moment, lambda site=site, name=name: done(site, name), **options)  # type: ignore[misc]
        if not cut.cut:
            assert at > 1, "the flow made no request, so it was never cut off"
            return
        yield site, name, cut


def made(site: Site, name: str = "data") -> str:
    """A bound claim with a file in it, by a controller that ended in peace."""
    site.claim(name)
    with site.controller():
        pv = site.bound(name)
    (site.directory_of(pv) / "file").write_text("data")
    return pv


@pytest.mark.parametrize("moment", MOMENTS)
def test_h13_a_provision_cut_off_at_any_request_ends_in_one_volume(new_site: NewSite, moment: Moment) -> None:
    def prepare(site: Site) -> str:
        site.claim("data")
        return "data"

    def done(site: Site, name: str) -> bool:
        claim = site.get_claim(name)
        return claim is not None and site.state(claim["spec"].get("volumeName", "")) is State.LIVE

    for site, name, cut in cuts(new_site, prepare, done, moment):
        with site.controller():
            pv = site.bound(name)
        record = site.record(pv)
        assert record is not None
        assert site.directories() == [record.directory], cut.seen
        assert (site.root / record.directory).stat().st_ino == record.inode
        assert [v["metadata"]["name"] for v in site.volumes()] == [pv]
        assert site.volumes()[0]["spec"]["nfs"]["path"] == f"/srv/nfs/{record.directory}"


@pytest.mark.parametrize("moment", MOMENTS)
def test_h13_a_claim_deleted_while_its_provision_was_cut_off_leaves_nothing(new_site: NewSite, moment: Moment) -> None:
    def prepare(site: Site) -> str:
        uid = site.claim("data")["metadata"]["uid"]
        return f"pvc-{uid}"

    for site, pv, cut in cuts(new_site, prepare, lambda site, pv: site.state(pv) is State.LIVE, moment):
        site.delete_claim("data")
        with site.controller():
            site.gone(pv)
            site.becomes(pv, None, State.ARCHIVED)
        record = site.record(pv)
        # Nobody ever saw the volume: it is taken back. Or its PV was there, and its (empty) directory is archived.
        assert site.directories() == ([] if record is None else [record.directory]), cut.seen
        assert record is None or record.directory.startswith("archived-")


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_archive_cut_off_at_any_request_keeps_the_data(new_site: NewSite, moment: Moment) -> None:
    def prepare(site: Site) -> str:
        pv = made(site)
        site.delete_claim("data")
        return pv

    for site, pv, cut in cuts(new_site, prepare, lambda site, pv: site.volume(pv) is None, moment):
        with site.controller():
            site.gone(pv)
            site.becomes(pv, State.ARCHIVED, State.ORPHANED)
        record = site.record(pv)
        assert record is not None
        assert record.state is State.ARCHIVED, f"{cut.seen}: the deletion was forgotten"
        assert site.directories() == [record.directory], cut.seen
        assert (site.root / record.directory / "file").read_text() == "data"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_growth_cut_off_at_any_request_is_finished(new_site: NewSite, moment: Moment) -> None:
    def prepare(site: Site) -> str:
        pv = made(site)
        site.grow("data", "20Mi")
        return pv

    def grown(site: Site, pv: str) -> bool:
        claim, volume, record = site.get_claim("data"), site.volume(pv), site.record(pv)
        assert claim is not None and volume is not None and record is not None
        status = claim["status"]
        sizes = status["capacity"]["storage"], volume["spec"]["capacity"]["storage"], record.requested
        return sizes == ("20Mi", "20Mi", 20 * MI) and not status.get("allocatedResourceStatuses")

    for site, pv, cut in cuts(new_site, prepare, grown, moment):
        with site.controller():
            site.until(lambda site=site, pv=pv: grown(site, pv), f"{cut.seen}: the growth is not finished")  # type: ignore[misc]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_lost_claims_pv_cut_off_while_it_is_given_back_comes_back(new_site: NewSite, moment: Moment) -> None:
    def prepare(site: Site) -> str:
        pv = made(site)
        site.force_away(pv)
        site.until(lambda: (site.get_claim("data") or {})["status"]["phase"] == "Lost", "the claim is not Lost")
        return pv

    def back(site: Site, pv: str) -> bool:
        claim = site.get_claim("data")
        return claim is not None and claim["status"]["phase"] == "Bound" and site.state(pv) is State.LIVE

    for site, pv, cut in cuts(new_site, prepare, back, moment):
        with site.controller():
            assert site.bound("data") == pv, cut.seen
        assert (site.directory_of(pv) / "file").read_text() == "data"


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_pv_deleted_before_it_was_bound_is_made_again_wherever_that_is_cut_off(
    new_site: NewSite, moment: Moment
) -> None:
    def prepare(site: Site) -> str:
        pv = f"pvc-{site.claim('data')['metadata']['uid']}"
        site.until(lambda: storage_provisioner(site), "nobody named the provisioner on the claim")
        site.pause_binder()
        with site.controller():
            site.until(lambda: site.volume(pv), "there is no PV")
        site.api.delete(PV, pv)
        return pv

    def remade(site: Site, pv: str) -> bool:
        volume = site.volume(pv)
        if volume is not None and FINALIZER not in volume["metadata"]["finalizers"]:
            site.resume_binder()  # from here on it goes, and is bound when it is back
        claim = site.get_claim("data")
        return claim is not None and claim["status"]["phase"] == "Bound" and site.state(pv) is State.LIVE

    for site, pv, cut in cuts(new_site, prepare, remade, moment):
        with site.controller():
            site.until(lambda site=site, pv=pv: remade(site, pv), f"{cut.seen}: the PV did not come back")  # type: ignore[misc]
        record = site.record(pv)
        assert record is not None and site.directories() == [record.directory]
        volume = site.volume(pv)
        assert volume is not None and "deletionTimestamp" not in volume["metadata"]


FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"


def storage_provisioner(site: Site) -> str:
    claim = site.get_claim("data")
    assert claim is not None
    annotations = claim["metadata"].get("annotations") or {}
    found: str = annotations.get("volume.kubernetes.io/storage-provisioner", "")
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_adoption_cut_off_at_any_request_is_finished(new_site: NewSite, moment: Moment) -> None:
    def prepare(site: Site) -> str:
        foreign_volume(site, "theirs", "shop-data")
        return "theirs"

    def adopted(site: Site, pv: str) -> bool:
        volume = site.volume(pv)
        assert volume is not None
        by = volume["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"]
        return by == "test.example/nfs" and site.state(pv) is State.LIVE

    for site, pv, cut in cuts(new_site, prepare, adopted, moment, adopt_from=("other.example/nfs",)):
        with site.controller(adopt_from=("other.example/nfs",)):
            site.until(lambda site=site, pv=pv: adopted(site, pv), f"{cut.seen}: it was not taken over")  # type: ignore[misc]
            site.delete_claim("theirs")
            site.gone(pv)
        assert site.directories() == ["archived-shop-data"]
        assert (site.root / "archived-shop-data" / "file").read_text() == "theirs"


def foreign_volume(site: Site, name: str, directory: str, policy: str = "Delete") -> None:
    """A bound volume as another provisioner leaves it: PV, claim, and a directory with a file."""
    (site.root / directory).mkdir(parents=True, exist_ok=True)
    (site.root / directory / "file").write_text("theirs")
    annotations = {"pv.kubernetes.io/provisioned-by": "other.example/nfs"}
    spec = {
        "accessModes": ["ReadWriteMany"],
        "capacity": {"storage": "10Mi"},
        "persistentVolumeReclaimPolicy": policy,
        "storageClassName": "old",
        "nfs": {"server": "192.0.2.1", "path": f"/srv/nfs/{directory}"},
        "claimRef": {"namespace": "shop", "name": name},
    }
    site.api.create(PV, {"metadata": {"name": name, "annotations": annotations}, "spec": spec})
    claim = {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "old",
        "volumeName": name,
        "resources": {"requests": {"storage": "10Mi"}},
    }
    named = {"volume.kubernetes.io/storage-provisioner": "other.example/nfs"}
    site.api.create(PVC, {"metadata": {"name": name, "annotations": named}, "spec": claim}, "shop")
    site.until(lambda: (site.get_claim(name) or {})["status"]["phase"] == "Bound", f"claim {name} is not Bound")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_policy_change_cut_off_at_any_request_is_followed(new_site: NewSite, moment: Moment) -> None:
    """Retain takes the finalizer off, Delete puts it on; with it, the PV waits for us before it goes."""

    def prepare(site: Site) -> str:
        pv = made(site)
        site.api.patch(PV, pv, {"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
        return pv

    def free(site: Site, pv: str) -> bool:
        volume = site.volume(pv)
        return volume is not None and FINALIZER not in volume["metadata"]["finalizers"]

    for site, pv, cut in cuts(new_site, prepare, free, moment):
        with site.controller():
            site.until(lambda site=site, pv=pv: free(site, pv), f"{cut.seen}: the finalizer is still there")  # type: ignore[misc]
            site.api.patch(PV, pv, {"spec": {"persistentVolumeReclaimPolicy": "Delete"}})
            site.until(lambda site=site, pv=pv: not free(site, pv), "the finalizer did not come back")  # type: ignore[misc]
