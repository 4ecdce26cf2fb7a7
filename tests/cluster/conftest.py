"""The controller's account on the real control plane, a site for each module, and what most modules have on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.site import ExportOnDisk, Site, eventually
from tests.controlplane.controlplane import ControlPlane, KubectlError
from tests.plugins.controller import NAMESPACE, Controller

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"


def shipped(plane: ControlPlane) -> None:
    """Applies the CRD, the namespace, the ServiceAccount and the roles as they are shipped."""
    files = [f"--filename={MANIFESTS / name}.yaml" for name in ("crd", "namespace", "serviceaccount", "rbac")]
    plane.kubectl("apply", *files)
    served(plane, "nfsexports.nfs-provisioner.io")


def served(plane: ControlPlane, *definitions: str) -> None:
    """Waits until these kinds can be used: a kind that is Established may still be unknown to whoever asks for it."""
    plane.kubectl("wait", "--for=condition=Established", "--timeout=120s", *(f"crd/{name}" for name in definitions))

    def known() -> bool:
        try:
            plane.kubectl("get", ",".join(definitions), "--all-namespaces")
        except KubectlError as error:
            raise AssertionError(str(error)) from None
        return True

    eventually(known, f"{', '.join(definitions)} can be asked for")


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
    """Started afresh for each test."""
    with site.controller().start() as made:
        yield made.wait_ready(web.name)
        assert "Traceback" not in made.log
