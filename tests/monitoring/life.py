"""A controller at work: a pair, claims with files, one that cannot be provisioned, an archive, deletions, a look away.

What a dashboard needs to have something to show. Built on the embedded API server and the daemon of tests/embedded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from tests.embedded.site import Controller, Site

T = TypeVar("T")
Json = dict[str, Any]
EXPORT = "web"
#: Seconds for any step: on a machine that stalls, beside a Prometheus.
PATIENCE = 120.0


class Life(Site):
    """Export `web`, a pair; classes `nfs` (archives) and `broken` (its pattern wants a label that no claim has)."""

    def __init__(self, server: EmbeddedApiServer, directory: Path, **spec: Any) -> None:
        super().__init__(server, directory)
        self.make_export(
            EXPORT,
            replicas=[self._replica("a"), self._replica("b")],
            address="nfs.example.net",
            **{"replication": {"interval": "1s", "maxLag": "30s"}} | spec,
        )
        self.make_class(quota="soft")
        self.make_class("broken", pathPattern="${.PVC.labels.team}/${.PVC.name}")

    def until(self, condition: Callable[[], T | None], what: str, seconds: float = PATIENCE) -> T:
        return super().until(condition, what, seconds)

    def _replica(self, name: str) -> Json:
        root = self.place(name)
        root.mkdir(parents=True, exist_ok=True)
        return {"name": name, "server": f"192.0.2.{ord(name)}", "path": "/srv/nfs", "mountPath": str(root)}

    def place(self, replica: str) -> Path:
        """The root of a replica."""
        return self.mount_root / EXPORT / replica

    def write(self, pv: str, name: str, size: int) -> Path:
        """A file of a tenant; really on disk, so that it is measured."""
        file = self.directory_of(pv) / name
        file.write_bytes(os.urandom(1 << 10) * (size >> 10))
        return file

    def copied(self, pv: str, name: str) -> bool:
        return (self.place("b") / self.directory_of(pv).name / name).exists()

    @contextmanager
    def away(self, replica: str) -> Iterator[None]:
        """Its server does not show it."""
        root = self.place(replica)
        hidden = root.with_name(f"{replica}-away")
        root.rename(hidden)
        try:
            yield
        finally:
            hidden.rename(root)

    def lead_a_life(self) -> str:
        """A bit of everything, seen to its end. The claim `data` stays, and so does the failure of `nameless`.

        The name of the PV of `data`, which requested 1 MiB and has half of it.
        """
        self.claim("data", "1Mi")
        self.claim("old")
        self.claim("nameless", storage_class="broken")
        data, old = self.bound("data"), self.bound("old")
        file = self.write(data, "file", 1 << 19)
        self.write(data, "kept", 1 << 19)
        self.until(lambda: self.copied(data, "file") and self.copied(data, "kept"), "the files did not arrive")
        file.unlink()
        self.until(lambda: not self.copied(data, "file"), "the deletion did not arrive")
        self.delete_claim("old")
        self.gone(old)
        self.until(lambda: self.events("ProvisioningFailed"), "nothing failed")
        return data


def port(controller: Controller) -> int:
    """Of its /metrics."""
    return int(controller.daemon.web.port)
