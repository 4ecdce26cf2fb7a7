"""What tests of a catalog, and of what is kept beside it, begin with."""

from __future__ import annotations

import pytest

from nfs_provisioner.export.catalog import Catalog
from tests.unit.export.world import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(clock: Clock) -> Catalog:
    return Catalog(clock=clock)
