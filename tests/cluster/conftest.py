"""The controller's account on the real control plane, a site for each module, and what most modules have on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.site import ExportOnDisk, Site
from tests.controlplane.controlplane import ControlPlane
from tests.plugins.controller import NAMESPACE, SHORT_LEASE, Controller

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"


def shipped(plane: ControlPlane) -> None:
    """Applies the CRD, the namespace, the ServiceAccount and the roles as they are shipped."""
    files = [f"--filename={MANIFESTS / name}.yaml" for name in ("crd", "namespace", "serviceaccount", "rbac")]
    plane.kubectl("apply", *files)
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/nfsexports.nfs-provisioner.io")


@pytest.fixture(scope="session")
def account(control_plane: ControlPlane) -> Path:
    """The kubeconfig of the controller's account."""
    shipped(control_plane)
    return control_plane.service_account_kubeconfig(NAMESPACE, "nfs-provisioner")


@pytest.fixture(scope="module")
def site(control_plane: ControlPlane, account: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """This module's namespace, provisioner name and directories."""
    made = Site(control_plane, account, tmp_path_factory.mktemp("site"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def web(site: Site) -> ExportOnDisk:
    """A pair."""
    return site.export("web")


@pytest.fixture(scope="module")
def plain(site: Site, web: ExportOnDisk) -> str:
    """A class on `web`, also where a module has one of its own."""
    return site.storage_class("plain", web)


@pytest.fixture
def controller(site: Site, web: ExportOnDisk) -> Iterator[Controller]:
    """Started afresh for each test; a short lease, because a test that needs that ends it the hard way."""
    with site.controller(lease=SHORT_LEASE).start() as made:
        yield made.wait_ready(web.name)
        assert "Traceback" not in made.log
