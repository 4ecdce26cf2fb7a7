"""The controller's account on the real control plane, and a site for each module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.site import Site
from tests.controlplane.controlplane import ControlPlane
from tests.plugins.controller import NAMESPACE

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"


@pytest.fixture(scope="session")
def account(control_plane: ControlPlane) -> Path:
    """The CRD, the namespace, the ServiceAccount and the roles as shipped; a kubeconfig with the account's token."""
    files = [f"--filename={MANIFESTS / name}.yaml" for name in ("crd", "namespace", "serviceaccount", "rbac")]
    control_plane.kubectl("apply", *files)
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd/nfsexports.nfs-provisioner.io")
    return control_plane.service_account_kubeconfig(NAMESPACE, "nfs-provisioner")


@pytest.fixture(scope="module")
def site(control_plane: ControlPlane, account: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """This module's namespace, provisioner name and directories."""
    made = Site(control_plane, account, tmp_path_factory.mktemp("site"))
    yield made
    made.close()
