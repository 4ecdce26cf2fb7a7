"""pytest plugin: one real control plane for the whole run, started when the first test asks for it.

Load it with `-p tests.controlplane.plugin` or from the top-level conftest. Must not decide what a test does with the
cluster: tests keep apart by their own namespaces and provisioner names, and undo what they do to the servers.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.controlplane import binaries
from tests.controlplane.controlplane import ControlPlane
from tests.plugins.packages import unavailable


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the programs before the first test, so that minutes of compiling count against no test's timeout."""
    if session.config.option.collectonly or not any(_wants_control_plane(item) for item in session.items):
        return
    if isinstance(binaries.find(build=False), binaries.Missing):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("building the control plane, once for this machine; this takes some minutes")
        binaries.find()


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane that all tests of this run share; etcd does not sync its disk."""
    found = binaries.find()
    if isinstance(found, binaries.Missing):
        unavailable(f"has no control plane: {found.reason}")
    with ControlPlane.start(
        tmp_path_factory.mktemp("control-plane"),
        no_fsync=True,
        controller_manager_flags=("--pvclaimbinder-sync-period=2s",),
    ) as running:
        yield running


def _wants_control_plane(item: pytest.Item) -> bool:
    return "control_plane" in getattr(item, "fixturenames", ())
