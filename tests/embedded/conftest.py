"""A site of its own for each test: it starts in milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from tests.embedded.site import Site, unhurried


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    unhurried(monkeypatch)


@pytest.fixture
def site(embedded_api: EmbeddedApiServer, tmp_path: Path) -> Site:
    """One export `web` and one class `nfs`; no controller yet."""
    made = Site(embedded_api, tmp_path)
    made.make_export()
    made.make_class()
    return made
