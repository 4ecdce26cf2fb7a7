"""Where the API server is, who we are, and the pool of connections to it.

Responsible for finding the configuration as kubectl does, for TLS, proxies and sockets that notice a dead peer, and
for fresh credentials. Must not know resources or interpret answers. Invariant: every connection has keepalive and no
request is retried behind the caller's back.
"""

from __future__ import annotations

import binascii
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
import yaml
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException, incluster_config, kube_config

from nfs_provisioner.errors import InvalidInput

# 15 s of silence, then probes every 5 s, three of them: a peer that is gone is noticed after 30 s. TCP_USER_TIMEOUT
# (ms) bounds what keepalive does not: data sent that is never acknowledged (man 7 tcp).
_PEER_TIMEOUT_MS = 30_000
SOCKET_OPTIONS: list[tuple[int, int, int]] = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 15),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", _PEER_TIMEOUT_MS),
        )
        if hasattr(socket, name)
    ),
]

# Exec plugins and projected tokens tell or imply an expiry; looking is cheap, but not free on every request.
_TOKEN_CHECK_SECONDS = 5.0

_NO_RETRIES = urllib3.Retry(False, redirect=False)

_BAD_CONFIG = (ConfigException, OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError)


class Connection:
    """The pool and the credentials; all methods may be called from any thread."""

    def __init__(self, kubeconfig: str | None, pool_size: int) -> None:
        self._kubeconfig = kubeconfig
        self._pool_size = pool_size
        self._lock = threading.Lock()
        self.generation = 0
        self._load()

    def send(
        self,
        method: str,
        target: str,
        *,
        headers: dict[str, str],
        body: bytes | None,
        timeout: urllib3.Timeout,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """One request, one attempt. Raises urllib3's HTTPError when no answer came, InvalidInput when the credentials
        cannot be read."""
        authorization = self._current_authorization()
        if authorization:
            headers = {**headers, "Authorization": authorization}
        response: urllib3.BaseHTTPResponse = self._urlopen(
            method,
            self._prefix + target,
            body=body,
            headers=headers,
            retries=_NO_RETRIES,
            redirect=False,
            timeout=timeout,
            preload_content=not stream,
            decode_content=True,
        )
        return response

    def reload(self, seen: int) -> None:
        """Loads the credentials again, unless another thread did since the caller looked at `generation`."""
        with self._lock:
            if self.generation == seen:
                self._load()

    def close(self) -> None:
        self._manager.clear()

    def _load(self) -> None:
        configuration = _configuration(self._kubeconfig)
        configuration.connection_pool_maxsize = self._pool_size
        configuration.retries = False
        configuration.socket_options = SOCKET_OPTIONS
        self.host = configuration.host.rstrip("/")
        manager = RESTClientObject(configuration).pool_manager
        # A request through the pool saves the manager's look-up, but only the manager knows how to ask a proxy.
        self._urlopen: Any
        if isinstance(manager, urllib3.ProxyManager):
            self._urlopen, self._prefix = manager.urlopen, self.host
        else:
            self._urlopen, self._prefix = manager.connection_from_url(self.host).urlopen, urlsplit(self.host).path
        self._manager = manager
        self._configuration = configuration
        self._authorization = _authorization(configuration)
        self._checked = time.monotonic()
        self.generation += 1

    def _current_authorization(self) -> str | None:
        if time.monotonic() - self._checked > _TOKEN_CHECK_SECONDS:
            with self._lock:
                if time.monotonic() - self._checked > _TOKEN_CHECK_SECONDS:
                    try:
                        self._authorization = _authorization(self._configuration)
                    except _BAD_CONFIG as error:
                        raise InvalidInput(f"cannot refresh the credentials of {self.host}: {error}") from error
                    self._checked = time.monotonic()
        return self._authorization


def _authorization(configuration: Configuration) -> str | None:
    value = configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    # A token file that ends with a newline would break the request's header.
    return value.strip() if value else None


def _configuration(kubeconfig: str | None) -> Configuration:
    source = kubeconfig or os.environ.get("KUBECONFIG") or ""
    configuration = Configuration()
    try:
        if not source and incluster_config.SERVICE_HOST_ENV_NAME in os.environ:
            source = "the service account of this pod"
            incluster_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return configuration
        source = source or str(Path("~/.kube/config").expanduser())
        kube_config.load_kube_config(config_file=source, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except _BAD_CONFIG as error:
        raise InvalidInput(f"cannot use {source} to reach the Kubernetes API: {_explain(source, error)}") from error
    if urlsplit(configuration.host).scheme not in ("http", "https"):
        raise InvalidInput(f"{source}: the cluster's server must be an http or https URL, not {configuration.host!r}")
    return configuration


def _explain(source: str, error: Exception) -> str:
    paths = [Path(part).expanduser() for part in source.split(os.pathsep) if part]
    if isinstance(error, ConfigException) and "/" in source and not any(path.exists() for path in paths):
        return "no such file; name one with --kubeconfig or $KUBECONFIG"
    if isinstance(error, binascii.Error):
        return f"bad base64 in certificate or key data: {error}"
    return str(error) or type(error).__name__
