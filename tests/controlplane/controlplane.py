"""One real control plane on loopback: etcd, kube-apiserver with RBAC, kube-controller-manager.

What it serves is Kubernetes as shipped: default admission, default controllers. Only what a single machine forces is
changed: no nodes, no scheduler (set `volume.kubernetes.io/selected-node` yourself), static tokens for the two people
who exist before any ServiceAccount does, and a faster client for the controller-manager, whose default rate limit
would measure itself instead of us.

Must not touch anything outside its directory. Invariant: when `stop` returns, or when this process dies in any way,
no server it started is left.
"""

from __future__ import annotations

import http.client
import os
import secrets
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from types import TracebackType
from typing import Self

from tests.controlplane import credentials
from tests.controlplane.binaries import Binaries, Missing, find
from tests.controlplane.processes import Child, StartupError, free_ports

#: How long one part may take to come up, in seconds. Generous: a cold disk and two busy cores are normal.
STARTUP_DEADLINE = 120.0


class KubectlError(Exception):
    """kubectl failed; the message carries its arguments and what it said."""


class ControlPlane:
    """A running control plane. Make one with `ControlPlane.start`; leave it with `stop` or as a context manager."""

    def __init__(self, directory: Path, binaries: Binaries, *, no_fsync: bool, qps: tuple[int, int]) -> None:
        self.directory = directory.absolute()
        self.binaries = binaries
        self._secrets = self.directory / "secrets"
        self._logs = self.directory / "logs"
        for folder in (self.directory, self._secrets, self._logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._admin_token = secrets.token_urlsafe(24)
        self._controller_manager_token = secrets.token_urlsafe(24)
        self._etcd_port, self._peer_port, self._port, self._health_port = free_ports(4)
        self.server = f"https://127.0.0.1:{self._port}"
        self.admin_kubeconfig = self.directory / "admin.kubeconfig"
        self._controller_manager_kubeconfig = self._secrets / "controller-manager.kubeconfig"
        self._etcd = self._child("etcd", binaries.etcd, self._etcd_flags(no_fsync))
        self._apiserver = self._child("kube-apiserver", binaries.kube_apiserver, self._apiserver_flags())
        self._controller_manager = self._child(
            "kube-controller-manager", binaries.kube_controller_manager, self._controller_manager_flags(*qps)
        )

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        controller_manager: bool = True,
        no_fsync: bool = False,
        kcm_qps: int = 1000,
        kcm_burst: int = 2000,
        apiserver_flags: Sequence[str] = (),
        controller_manager_flags: Sequence[str] = (),
    ) -> Self:
        """Starts a fresh cluster in `directory` (made if need be; must hold no earlier one) and waits until it works.

        no_fsync: etcd does not sync its disk; right for tests, wrong for benchmarks. The flags are added to the
        servers' own, and win over them. Raises StartupError, also when the programs cannot be had.
        """
        binaries = find()
        if isinstance(binaries, Missing):
            raise StartupError(binaries.reason)
        if (directory / "etcd").exists():
            raise StartupError(f"{directory} holds an earlier control plane; use an empty directory")
        self = cls(directory, binaries, no_fsync=no_fsync, qps=(kcm_qps, kcm_burst))
        self._apiserver.add_flags(apiserver_flags)
        self._controller_manager.add_flags(controller_manager_flags)
        try:
            self._bring_up(controller_manager=controller_manager)
        except BaseException:
            self.stop()
            raise
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Program name -> pid, of those that run (paused ones too)."""
        return {child.name: child.pid for child in self._children() if child.running}

    def log(self, program: str) -> Path:
        """The log file of `etcd`, `kube-apiserver` or `kube-controller-manager`."""
        return self._logs / f"{program}.log"

    def wait_ready(self, *, timeout: float = STARTUP_DEADLINE) -> None:
        """Waits until the API server says it is ready, and the controller-manager, if it runs, that it is healthy."""
        deadline = time.monotonic() + timeout
        self._apiserver.wait_until(self._apiserver_ready, deadline=deadline, what="/readyz was not ok")
        if self._controller_manager.running:
            self._controller_manager.wait_until(self._controllers_work, deadline=deadline, what="no controller worked")

    def stop_apiserver(self, *, grace: float = 10.0) -> None:
        """Ends the API server: SIGTERM, then SIGKILL after `grace` seconds; 0 is a crash. Everything else stays."""
        self._apiserver.stop(grace=grace)

    def start_apiserver(self, *, timeout: float = STARTUP_DEADLINE) -> None:
        """Starts it again, on the same port with the same data and certificate, and waits until it is ready."""
        self._apiserver.start()
        self.wait_ready(timeout=timeout)

    def pause_apiserver(self) -> None:
        """SIGSTOP: connections stay open and are even accepted by the kernel, but nothing is answered."""
        self._apiserver.signal(SIGSTOP)

    def resume_apiserver(self) -> None:
        self._apiserver.signal(SIGCONT)

    def stop_controller_manager(self, *, grace: float = 10.0) -> None:
        """Ends the controller-manager: from now on nothing binds, and no claim gets the provisioner's annotation."""
        self._controller_manager.stop(grace=grace)

    def start_controller_manager(self, *, timeout: float = STARTUP_DEADLINE) -> None:
        self._controller_manager.start()
        self.wait_ready(timeout=timeout)

    def stop(self) -> None:
        """Ends every server of this control plane. Safe to repeat; logs and data stay for whoever wants to look."""
        # Nothing here needs saving, and an API server with open watches would take its time: a short grace is enough.
        for child, grace in ((self._controller_manager, 0.0), (self._apiserver, 1.0), (self._etcd, 5.0)):
            child.stop(grace=grace)

    def kubectl(
        self,
        *args: str,
        input: str | None = None,  # noqa: A002 (its name in subprocess.run)
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> str:
        """Runs kubectl, as admin unless told otherwise, and returns its standard output.

        input goes to its standard input (`-f -`). Raises KubectlError when it fails; with check=False, returns
        standard output and error together instead.
        """
        environment = os.environ | {
            "KUBECONFIG": str(kubeconfig or self.admin_kubeconfig),
            "KUBECACHEDIR": str(self.directory / "kubectl-cache"),
            "KUBERC": "off",  # nothing of the developer's own preferences may change a test
        }
        ended = subprocess.run(
            [str(self.binaries.kubectl), *args],
            input=input or "",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if check else subprocess.STDOUT,
            env=environment,
            text=True,
            timeout=240,
            check=False,
        )
        if check and ended.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(args)} exited with {ended.returncode}: {ended.stderr.strip()}")
        return ended.stdout

    def service_account_kubeconfig(self, namespace: str, name: str, duration: str = "24h") -> Path:
        """A kubeconfig with a fresh token of an existing ServiceAccount, which outlives every run of the tests."""
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", f"--duration={duration}").strip()
        user = f"system:serviceaccount:{namespace}:{name}"
        path = self.directory / f"sa-{namespace}-{name}-{secrets.token_hex(4)}.kubeconfig"
        self._write_kubeconfig(path, user, token)
        return path

    def _bring_up(self, *, controller_manager: bool) -> None:
        deadline = time.monotonic() + STARTUP_DEADLINE
        credentials.write_private(self._secrets / "service-account.pem", credentials.signing_key())
        tokens = credentials.token_file(self._admin_token, self._controller_manager_token)
        credentials.write_private(self._secrets / "tokens.csv", tokens)
        self._etcd.start()
        health = f"http://127.0.0.1:{self._etcd_port}/health"
        self._etcd.wait_until(lambda: _answers(health), deadline=deadline, what="/health was not ok")
        self._apiserver.start()
        # It makes its certificate itself, below cert-dir; the file holds the authority's certificate as well.
        self._apiserver.wait_until(self._apiserver_ready, deadline=deadline, what="/readyz was not ok")
        self._write_kubeconfig(self.admin_kubeconfig, credentials.ADMIN, self._admin_token)
        manager = credentials.CONTROLLER_MANAGER
        self._write_kubeconfig(self._controller_manager_kubeconfig, manager, self._controller_manager_token)
        if controller_manager:
            self._controller_manager.start()
        self.wait_ready()

    def _children(self) -> tuple[Child, Child, Child]:
        return self._etcd, self._apiserver, self._controller_manager

    def _child(self, name: str, program: Path, flags: dict[str, str]) -> Child:
        return Child(name, [str(program), *(f"--{flag}={value}" for flag, value in flags.items())], self.log(name))

    @property
    def _certificate(self) -> Path:
        return self.directory / "apiserver" / "apiserver.crt"

    def _write_kubeconfig(self, path: Path, user: str, token: str) -> None:
        text = credentials.kubeconfig(server=self.server, authority=self._certificate, user=user, token=token)
        credentials.write_private(path, text)

    def _apiserver_ready(self) -> bool:
        return self._certificate.exists() and _answers(f"{self.server}/readyz", self._admin_token, self._certificate)

    def _controllers_work(self) -> bool:
        # Healthy comes first, working later: a namespace's ServiceAccount appears once controllers have their caches.
        account = f"{self.server}/api/v1/namespaces/default/serviceaccounts/default"
        return _answers(f"https://127.0.0.1:{self._health_port}/healthz") and _answers(
            account, self._admin_token, self._certificate
        )

    def _etcd_flags(self, no_fsync: bool) -> dict[str, str]:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        return {
            "name": "test",
            "data-dir": str(self.directory / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"test={peer}",
            "unsafe-no-fsync": str(no_fsync).lower(),
            "log-level": "warn",
        }

    def _apiserver_flags(self) -> dict[str, str]:
        return {
            "etcd-servers": f"http://127.0.0.1:{self._etcd_port}",
            "bind-address": "127.0.0.1",
            "secure-port": str(self._port),
            "cert-dir": str(self.directory / "apiserver"),
            # An address is required that is not loopback, and nobody dials it: one reserved for documentation.
            "advertise-address": "192.0.2.1",
            "endpoint-reconciler-type": "none",
            "service-cluster-ip-range": "10.96.0.0/16",
            "authorization-mode": "RBAC",
            "token-auth-file": str(self._secrets / "tokens.csv"),
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
            "service-account-signing-key-file": str(self._secrets / "service-account.pem"),
            "service-account-key-file": str(self._secrets / "service-account.pem"),
            "allow-privileged": "true",
        }

    def _controller_manager_flags(self, qps: int, burst: int) -> dict[str, str]:
        kubeconfig = str(self._controller_manager_kubeconfig)
        return {
            "kubeconfig": kubeconfig,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            "bind-address": "127.0.0.1",
            "secure-port": str(self._health_port),
            "cert-dir": str(self.directory / "controller-manager"),
            "root-ca-file": str(self._certificate),
            "service-account-private-key-file": str(self._secrets / "service-account.pem"),
            "use-service-account-credentials": "true",
            "kube-api-qps": str(qps),
            "kube-api-burst": str(burst),
            "leader-elect": "false",
            # The default lies in /usr/libexec and would be created there.
            "flex-volume-plugin-dir": str(self.directory / "flex-volume-plugins"),
        }


def _answers(url: str, token: str | None = None, authority: Path | None = None) -> bool:
    """Whether a GET is answered with 200 within five seconds. Without an authority, the server's word is not checked."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    context = None
    if url.startswith("https:"):
        context = ssl.create_default_context(cafile=str(authority)) if authority else ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):  # refused, reset, timed out, or another status: not yet
        return False
