"""NFSExports that come and go while the controller runs."""

from __future__ import annotations

import threading

from nfs_provisioner.kube.api import NFS_EXPORT
from tests.embedded.site import Site


def threads_of(export: str) -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return sorted(name for name in names if name.startswith((f"worker-{export}-", f"export-{export}")))


def provision_and_delete(site: Site, claim: str) -> None:
    site.claim(claim, storage_class="later")
    pv = site.until(lambda: (c := site.get_claim(claim)) and c["spec"].get("volumeName"), f"claim {claim} has no PV")
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
