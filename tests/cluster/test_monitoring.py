"""The component `monitoring` on a real API server that knows the Prometheus Operator's kinds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import served
from tests.controlplane.controlplane import ControlPlane

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT / "tests/monitoring/crds.yaml"


@pytest.mark.parametrize("overlay", ["single", "pair"])
def test_the_component_is_uncommented_and_applies(control_plane: ControlPlane, tmp_path: Path, overlay: str) -> None:
    for folder in ("manifests", "kustomize"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    file = tmp_path / "kustomize" / overlay / "kustomization.yaml"
    plain = control_plane.kubectl("kustomize", str(file.parent))
    file.write_text(file.read_text().replace("# - ../components/monitoring", "- ../components/monitoring"))
    built = list(yaml.safe_load_all(control_plane.kubectl("kustomize", str(file.parent))))
    added = [document for document in built if document not in list(yaml.safe_load_all(plain))]
    assert sorted(document["kind"] for document in added) == ["ConfigMap", "PodMonitor", "PrometheusRule"]

    kubectl = control_plane.kubectl
    kubectl("apply", "-f", str(ROOT / "manifests/namespace.yaml"), "-f", str(CRDS))
    served(control_plane, *(crd["metadata"]["name"] for crd in yaml.safe_load_all(CRDS.read_text())))
    text = yaml.safe_dump_all(added)
    try:
        first = kubectl("apply", "--validate=strict", "-f", "-", input=text, check=False)
        assert [line for line in first.splitlines() if not re.fullmatch(r"\S+ (created|unchanged)", line)] == []
        again = kubectl("apply", "--validate=strict", "-f", "-", input=text)
        assert [line for line in again.splitlines() if not line.endswith(" unchanged")] == []
    finally:
        kubectl("delete", "--ignore-not-found", "-f", "-", input=text)
