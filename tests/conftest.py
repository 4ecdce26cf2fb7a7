"""Fixtures that several tiers share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example took says how busy the machine was. (Where CI is set, this adds to hypothesis' own profile.)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

pytest_plugins = ["tests.controlplane.plugin", "tests.plugins.embedded"]
