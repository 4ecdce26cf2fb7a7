"""NFSExports that come and go while the controller runs."""

from __future__ import annotations

import threading

from nfs_provisioner.kube.api import NFS_EXPORT
from tests.embedded.site import Site


def message(site: Site, export: str) -> str:
    return str(site.export_condition(export, "Ready").get("message", ""))


def threads_of(export: str) -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return sorted(name for name in names if name.startswith((f"worker-{export}-", f"export-{export}")))


def provision(site: Site, claim: str) -> str:
    site.claim(claim, storage_class="later")
    pv: str = site.until(
        lambda: (c := site.get_claim(claim)) and c["spec"].get("volumeName"), f"claim {claim} has no PV"
    )
    return pv


def provision_and_delete(site: Site, claim: str) -> None:
    pv = provision(site, claim)
    site.delete_claim(claim)
    site.gone(pv)


def test_no_thread_of_a_deleted_export_stays_and_one_of_its_name_is_served_again(site: Site) -> None:
    site.make_class("later", export="later")
    with site.controller():
        for claim in ("first", "second"):
            site.make_export("later")
            provision_and_delete(site, claim)
            site.until(lambda: len(threads_of("later")) == 3, "there are not two workers, and the export's own")
            site.api.delete(NFS_EXPORT, "later")
            site.until(lambda: not threads_of("later"), "threads of the deleted export are left")


def test_an_export_that_waits_for_its_volumes_to_go_says_so(site: Site) -> None:
    site.make_class("later", export="later")
    with site.controller():
        site.make_export("later")
        pv = provision(site, "data")
        assert "deleted" not in message(site, "later")
        site.api.delete(NFS_EXPORT, "later")
        told = "it is deleted when no PV of it is left (kubectl get pv -l nfs-provisioner.io/export=later)"
        site.until(lambda: told in message(site, "later"), "nobody says what it waits for")
        site.delete_claim("data")
        site.gone(pv)
        site.until(lambda: not threads_of("later"), "it is still there")
