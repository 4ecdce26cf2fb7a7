"""What several modules' tests of the engine begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.passes import Sides


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    """Two empty directories."""
    return Sides(tmp_path)
