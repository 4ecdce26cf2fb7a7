"""The controller's account on the real control plane, and a site for each module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.site import Site
from tests.controlplane.controlplane import ControlPlane
from tests.plugins.controller import NAMESPACE

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
