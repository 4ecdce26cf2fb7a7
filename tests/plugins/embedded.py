"""pytest plugin: embedded API servers for tests that need the Kubernetes API but no real control plane.

Each test gets a server of its own, which starts in milliseconds, so that nothing has to be cleaned up. What a test may
learn from it is what tests/contract has compared with a real API server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer


@pytest.fixture
def embedded_api() -> Iterator[EmbeddedApiServer]:
    """A running embedded API server, empty but for its first namespaces."""
    with EmbeddedApiServer() as server:
        yield server


@pytest.fixture
def embedded_kubeconfig(embedded_api: EmbeddedApiServer, tmp_path: Path) -> Path:
    """The kubeconfig of `embedded_api`."""
    return embedded_api.write_kubeconfig(tmp_path / "embedded.kubeconfig")
