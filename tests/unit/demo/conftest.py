"""A client of the embedded server, as in the contract suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from tests.contract.client import Client, Credentials


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[EmbeddedApiServer], Client]]:
    """Makes clients of any embedded server, closed when the test ends."""
    made: list[Client] = []

    def connect(server: EmbeddedApiServer) -> Client:
        kubeconfig = server.write_kubeconfig(tmp_path / f"kubeconfig-{len(made)}")
        made.append(Client(Credentials.read(kubeconfig)))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def api(embedded_api: EmbeddedApiServer, connect: Callable[[EmbeddedApiServer], Client]) -> Client:
    """A client of `embedded_api`."""
    return connect(embedded_api)
