"""The embedded API server, a network to it that can fail, and ways to wait."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.kube import api as kube
from tests.unit.kube.network import FaultyNetwork

DEADLINE = 90.0


def eventually(condition: Callable[[], object], what: str = "", deadline: float = DEADLINE) -> None:
    """Waits until `condition` holds; fails, saying what was waited for."""
    pause = threading.Event()
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline} s: {what or condition}"
        pause.wait(0.01)


def write_kubeconfig(path: Path, server: str, token: str = "not-checked", **user: object) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user or {"token": token}}],
    }
    path.write_text(json.dumps(config))
    return path


def claim(name: str, namespace: str = "default", **labels: str) -> kube.JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "none",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }


class Requests:
    """What `observe` was told."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, str]] = []

    def __call__(self, verb: str, resource: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.all.append((verb, resource, code))

    def count(self, verb: str, code: str | None = None) -> int:
        return sum(1 for v, _, c in self.all if v == verb and code in (None, c))


@pytest.fixture
def server() -> Iterator[EmbeddedApiServer]:
    with EmbeddedApiServer() as running:
        yield running


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
def api(server: EmbeddedApiServer, tmp_path: Path, requests: Requests) -> Iterator[kube.Api]:
    loaded = kube.load(str(server.write_kubeconfig(tmp_path / "kubeconfig")), observe=requests)
    yield loaded
    loaded.close()


@pytest.fixture
def network(server: EmbeddedApiServer) -> Iterator[FaultyNetwork]:
    with FaultyNetwork(("127.0.0.1", urlsplit(server.url).port or 0)) as running:
        yield running


@pytest.fixture
def faulty_api(network: FaultyNetwork, tmp_path: Path, requests: Requests) -> Iterator[kube.Api]:
    """Reaches the same server through `network`."""
    config = write_kubeconfig(tmp_path / "faulty-kubeconfig", f"http://127.0.0.1:{network.port}")
    loaded = kube.load(str(config), observe=requests)
    yield loaded
    loaded.close()
