"""Fixtures of the tests of one replica's root."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfs_provisioner.export.worker import LeaseEnd
from tests.crash.steps import Power
from tests.plugins.packages import require_root
from tests.unit.export.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty export; owners are set there, so the tests run as root."""
    require_root("giving directories to other owners")
    root = tmp_path / "export"
    root.mkdir()
    made = World(root)
    yield made
    made.stop()


@pytest.fixture
def power() -> Iterator[Power]:
    """Counts what is done to the file system."""
    with Power().supply() as power:
        yield power


@pytest.fixture
def lease() -> Iterator[LeaseEnd]:
    made = LeaseEnd()
    made.set(time.clock_gettime(time.CLOCK_BOOTTIME) + 3600)
    yield made
    os.close(made.fd)
