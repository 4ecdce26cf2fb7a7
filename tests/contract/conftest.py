"""The two backends of the contract suite, and a place for each test that it shares with nobody.

What a test makes carries its own suffix and is removed afterwards, so that the suite can run on a control plane that
others use. Where the embedded server and the real one disagree, the real one is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from tests.contract.client import Client, Credentials
from tests.contract.world import World

BACKENDS = [pytest.param("embedded", id="embedded"), pytest.param("real", id="real", marks=pytest.mark.cluster)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Names the control plane as a fixture of the tests that will ask for it, for those who prepare it in advance."""
    for item in items:
        call = getattr(item, "callspec", None)
        if call is not None and call.params.get("credentials") == "real":
            item.fixturenames.append("control_plane")  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def contract_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of one embedded server for all contract tests."""
    with EmbeddedApiServer(token="contract") as server:
        yield server.write_kubeconfig(tmp_path_factory.mktemp("embedded") / "kubeconfig")


@pytest.fixture(scope="session", params=BACKENDS)
def credentials(request: pytest.FixtureRequest) -> Credentials:
    """How to reach the server under test as its administrator."""
    if request.param == "embedded":
        return Credentials.read(request.getfixturevalue("contract_server"))
    return Credentials.read(request.getfixturevalue("control_plane").admin_kubeconfig)


@pytest.fixture
def api(credentials: Credentials) -> Iterator[Client]:
    """A client of the test's own."""
    client = Client(credentials)
    yield client
    client.close()


@pytest.fixture
def world(api: Client) -> Iterator[World]:
    """A namespace of the test's own, and names nobody else uses for what is cluster-scoped."""
    with World(api) as world:
        yield world
