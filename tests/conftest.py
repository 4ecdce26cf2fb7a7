"""Fixtures that several tiers share."""

from __future__ import annotations

pytest_plugins = ["tests.controlplane.plugin", "tests.plugins.embedded"]
