"""Where the configuration is found, and what is said when it cannot be used."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config

from nfs_provisioner.errors import InvalidInput
from nfs_provisioner.kube import api as kube
from nfs_provisioner.kube import connection
from nfs_provisioner.kube.connection import Connection
from tests.unit.kube.conftest import write_kubeconfig


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    (home / ".kube").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The directory with the service account of a pod."""
    (tmp_path / "token").write_text("first")
    (tmp_path / "ca.crt").write_text("certificates")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    return tmp_path


def a_minute_passes(opened: Connection) -> None:
    """For the client library, which keeps a pod's token for one."""
    hook: Any = opened._configuration.refresh_api_key_hook
    loader = inspect.getclosurevars(hook).nonlocals["self"]
    loader.token_expires_at -= loader._token_refresh_period


def test_the_configuration_is_looked_for_where_kubectl_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pod: Path
) -> None:
    write_kubeconfig(tmp_path / "home/.kube/config", "http://home")
    write_kubeconfig(tmp_path / "other", "http://environment")
    write_kubeconfig(tmp_path / "given", "http://given")
    assert pod.exists()
    assert kube.load().host == "https://[fd00::1]:443"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "other"))
    assert kube.load().host == "http://environment"
    assert kube.load(str(tmp_path / "given")).host == "http://given"
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert kube.load().host == "http://home"


def test_a_pods_token_is_read_again_when_it_is_a_minute_old_and_when_it_was_refused(
    pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Connection(None, 4)
    assert opened._current_authorization() == "bearer first"
    (pod / "token").write_text("second\n")
    opened.reload(opened.generation)
    assert opened._current_authorization() == "bearer second"
    (pod / "token").write_text("third")
    monkeypatch.setattr(connection, "_TOKEN_CHECK_SECONDS", -1.0)
    assert opened._current_authorization() == "bearer second", "read on every request"
    a_minute_passes(opened)
    assert opened._current_authorization() == "bearer third"


def test_a_pods_token_that_vanished_is_an_error_of_the_request(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Connection(None, 4)
    monkeypatch.setattr(connection, "_TOKEN_CHECK_SECONDS", -1.0)
    a_minute_passes(opened)
    (pod / "token").unlink()
    with pytest.raises(InvalidInput, match="token"):
        opened._current_authorization()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "no such file"),
        ("", "empty"),
        ("{", "line 1"),
        ("just text", ""),
        ("[]", ""),
        ("current-context: x", "contexts"),
        ('{"current-context": "x", "contexts": [], "clusters": [], "users": []}', "name x"),
        ("\x00", ""),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_named(content: str | None, what: str, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput) as caught:
        kube.load(str(path))
    assert str(path) in caught.value.message
    assert what in caught.value.message


def test_a_cluster_without_a_usable_server_is_named(tmp_path: Path) -> None:
    path = write_kubeconfig(tmp_path / "kubeconfig", "unix:///run/x")
    with pytest.raises(InvalidInput, match="http or https URL, not 'unix:///run/x'"):
        kube.load(str(path))


def test_without_any_configuration_the_default_file_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"\.kube/config.*no such file.*--kubeconfig"):
        kube.load()


def test_bad_base64_in_a_certificate_is_explained(tmp_path: Path) -> None:
    data = {"client-certificate-data": "not base64!", "client-key-data": "x"}
    with pytest.raises(InvalidInput, match="base64"):
        kube.load(str(write_kubeconfig(tmp_path / "kubeconfig", "https://x", **data)))
