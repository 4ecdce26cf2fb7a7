"""A whole installation on one machine for tests over NFS: embedded API server, the real controller, exports, claims.

The controller runs in a thread of the tests, with its workers as processes of their own, so that clocks, pauses and
deadlines can be set. It reaches an export at its mountPath, a local directory; clients reach it through a server of
their own, by what the PV says. Must not touch an export from behind but to look, or as the broken disk of a test does.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from nfs_provisioner.config.controller import ControllerConfig, HttpConfig, LeaderElectionConfig
from nfs_provisioner.daemon import Daemon
from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.export.replica import Replica
from tests.contract.client import Client, Credentials, Json
from tests.nfs.client import Mount

CONTROL = ".nfs-provisioner"
PROVISIONER = "over-nfs.example.com/nfs"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
CLAIMS = "/api/v1/namespaces/default/persistentvolumeclaims"
EVENTS = "/api/v1/namespaces/default/events"
EXPORTS = "/apis/nfs-provisioner.io/v1alpha1/nfsexports"
VOLUMES = "/api/v1/persistentvolumes"
REQUEST = "nfs-provisioner.io/request"
DEADLINE = 100.0
POLL = 0.2  # seconds between the controller's looks at a replica
CALL_DEADLINE = 4.0  # seconds after which a worker that does not answer is given up; the product waits longer

Found = TypeVar("Found")


def eventually(look: Callable[[], Found], what: str, seconds: float = DEADLINE) -> Found:
    """Polls until `look` gives something true, and returns that; an AssertionError in it counts as not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := look():
                return found
            assert time.monotonic() < end, f"{what}: not in {seconds:g} s"
        except AssertionError:
            if time.monotonic() > end:
                raise
        time.sleep(0.02)


class Stand:
    """Use as a context manager; the controller is started by the test, when its exports are as it wants them."""

    def __init__(self, home: Path) -> None:
        self.exports = home / "exports"
        self.exports.mkdir(parents=True)
        self._server = EmbeddedApiServer()
        self._kubeconfig = home / "kubeconfig"
        self._daemon: Daemon | None = None
        self._thread: threading.Thread | None = None
        self._numbers = iter(range(1 << 30))

    def __enter__(self) -> Self:
        self._server.start()
        self._server.write_kubeconfig(self._kubeconfig)
        self.api = Client(Credentials.read(self._kubeconfig))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_controller()
        self.api.close()
        self._server.stop()

    # -- the controller -------------------------------------------------------------------------------------------

    def start_controller(self) -> Self:
        """Returns when it has begun to look at the exports."""
        config = ControllerConfig(
            provisioner=PROVISIONER,
            leader_election=LeaderElectionConfig(enabled=False),
            http=HttpConfig("127.0.0.1", 0),
            mount_root=str(self.exports),
        )
        logging.getLogger("nfs_provisioner").setLevel(logging.DEBUG)
        self._daemon = Daemon(config, kubeconfig=str(self._kubeconfig), poll=POLL)
        self._thread = threading.Thread(target=self._daemon.run, name="controller", daemon=True)
        self._thread.start()
        eventually(lambda: self.daemon.leading, "the controller leads")
        return self

    def stop_controller(self) -> None:
        """In good order, as SIGTERM does; does nothing when it is not running."""
        if self._daemon is None or self._thread is None:
            return
        self._daemon.stop()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the controller does not end"
        self._daemon = self._thread = None

    @property
    def daemon(self) -> Daemon:
        assert self._daemon is not None, "the controller is not running"
        return self._daemon

    def worker(self, export: str, replica: str) -> int:
        """Pid of the process that does the calls on this replica."""
        pid = self.replica(export, replica).pid
        assert pid is not None, f"replica {replica} has no worker"
        return pid

    def give_up(self, export: str, replica: str) -> None:
        """End its worker, whose calls hang, now: with a deadline that nobody reaches it would be long."""
        self.replica(export, replica).stop("given up")

    def replica(self, export: str, name: str) -> Replica:
        registry = self.daemon.registry
        found = registry.get(export) if registry is not None else None
        assert found is not None, f"the controller does not know export {export}"
        return next(attachment.replica for attachment in found.attachments() if attachment.name == name)

    def http(self, path: str) -> tuple[int, str]:
        """Code and body of what the controller answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.daemon.web.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def overview(self, export: str) -> Json:
        """What /api/status says of an export now; sizes in bytes."""
        found: list[Json] = json.loads(self.http("/api/status")[1])["exports"]
        return next(entry for entry in found if entry["name"] == export)

    def healthy(self) -> bool:
        return self.http("/healthz") == (200, "ok\n")

    # -- objects --------------------------------------------------------------------------------------------------

    def export(
        self, name: str, replicas: Mapping[str, Path], *, servers: Mapping[str, str] | None = None, **spec: Any
    ) -> str:
        """An NFSExport; `replicas` maps names to mountPaths, `servers` to `server:path`, if anybody mounts them.

        Capacity is fixed and the reserve is nothing, so that no test depends on the machine's disk. A class of the
        same name, on this export alone, is made too.
        """
        addresses = servers or {r: f"192.0.2.{number}:/srv/{name}" for number, r in enumerate(replicas, start=11)}
        made = [
            dict(zip(("server", "path"), addresses[replica].split(":"), strict=True))
            | {"name": replica, "mountPath": str(path)}
            for replica, path in replicas.items()
        ]
        body = {
            "apiVersion": "nfs-provisioner.io/v1alpha1",
            "kind": "NFSExport",
            "metadata": {"name": name},
            "spec": {"replicas": made, "capacity": "10Ti", "reserve": "0%"} | spec,
        }
        self.api.post(EXPORTS, body).ok()
        self.storage_class(name, export=name)
        return name

    def local_export(self, name: str, replicas: str = "a", **spec: Any) -> dict[str, Path]:
        """An export on new local directories; returns them by replica."""
        roots = {replica: self.exports / name / replica for replica in replicas}
        for root in roots.values():
            root.mkdir(parents=True)
        self.export(name, roots, **spec)
        return roots

    def storage_class(self, name: str, *, mount_options: Iterable[str] = (), **parameters: str) -> str:
        body = {
            "metadata": {"name": name},
            "provisioner": PROVISIONER,
            "parameters": parameters,
            "mountOptions": list(mount_options),
        }
        self.api.post(CLASSES, body).ok()
        return name

    def claim(self, storage_class: str, name: str | None = None, size: str = "1Mi") -> str:
        """POST a claim; returns its name."""
        name = name or f"{storage_class}-{next(self._numbers)}"
        spec = {"storageClassName": storage_class, "accessModes": ["ReadWriteMany"]}
        body = {"metadata": {"name": name}, "spec": spec | {"resources": {"requests": {"storage": size}}}}
        self.api.post(CLAIMS, body).ok()
        return name

    def claims(self, storage_class: str, count: int) -> list[str]:
        return [self.claim(storage_class) for _ in range(count)]

    def phase(self, claim: str) -> str:
        return str(self.api.get(f"{CLAIMS}/{claim}").ok()["status"]["phase"])

    def bound(self, *claims: str, seconds: float = DEADLINE) -> list[Json]:
        """Waits until all are Bound; returns their PVs."""
        volumes = []
        for name in claims:
            try:
                seen = self.api.eventually(f"{CLAIMS}/{name}", lambda c: c["status"]["phase"] == "Bound", seconds)
            except AssertionError as error:
                raise AssertionError(f"{error}; told: {self.told(name)}") from None
            volumes.append(self.api.get(f"{VOLUMES}/{seen['spec']['volumeName']}").ok())
        return volumes

    def bind(self, storage_class: str, name: str | None = None) -> Json:
        """A new claim's PV."""
        return self.bound(self.claim(storage_class, name))[0]

    def delete(self, *volumes: Json) -> None:
        """Deletes the claims that these PVs are bound to."""
        for volume in volumes:
            self.api.delete(f"{CLAIMS}/{volume['spec']['claimRef']['name']}").ok()

    def gone(self, *volumes: Json, seconds: float = DEADLINE) -> None:
        """Waits until these PVs are gone."""
        for volume in volumes:
            self.api.eventually_gone(f"{VOLUMES}/{volume['metadata']['name']}", seconds)

    def volumes(self) -> list[Json]:
        found: list[Json] = self.api.get(VOLUMES).ok()["items"]
        return found

    def told(self, name: str) -> list[tuple[str, str]]:
        """Reason and message of each Event about an object of this name."""
        found = self.api.get(EVENTS, fieldSelector=f"involvedObject.name={name}").ok()["items"]
        return [(event["reason"], event["message"]) for event in found]

    def event(self, name: str, reason: str, *words: str) -> str:
        """Waits for an Event with this reason whose message holds all the words; returns the message."""

        def look() -> str | None:
            told = self.told(name)
            found = [message for seen, message in told if seen == reason and all(word in message for word in words)]
            assert found, f"no Event {reason} with {words} among {told}"
            return found[0]

        message = eventually(look, f"Event {reason} of {name}")
        assert message is not None
        return message

    def status(self, export: str) -> Json:
        """Of the NFSExport, as the API has it."""
        found: Json = self.api.get(f"{EXPORTS}/{export}").ok().get("status") or {}
        return found

    def says(self, export: str, phase: str, *words: str) -> str:
        """Waits until the export is in this phase and the message of its condition holds all the words."""

        def look() -> str:
            status = self.status(export)
            message = str(status.get("conditions", [{}])[0].get("message", ""))
            assert status.get("phase") == phase and all(word in message for word in words), json.dumps(status, indent=1)
            return message or " "

        return eventually(look, f"export {export} is {phase}")

    def replica_says(self, export: str, replica: str, *words: str) -> str:
        """Waits until the status of this replica has a message with all the words."""

        def look() -> str:
            status = self.status(export)
            message = next((str(r.get("message", "")) for r in status.get("replicas", []) if r["name"] == replica), "")
            assert message and all(word in message for word in words), json.dumps(status, indent=1)
            return message

        return eventually(look, f"replica {replica} of {export} says {words}")

    def ready(self, *exports: str) -> Self:
        """Waits until these exports are Ready."""
        for export in exports:
            self.says(export, "Ready")
        return self

    def request(self, export: str, text: str) -> None:
        """As `kubectl annotate nfsx` does."""
        self.api.patch(f"{EXPORTS}/{export}", {"metadata": {"annotations": {REQUEST: text}}}).ok()


def mount(volume: Json, *, uid: int = 0, gid: int = 0) -> Mount:
    """What a kubelet does with a PV: nothing but what stands in it is used."""
    nfs = volume["spec"]["nfs"]
    options = dict(option.partition("=")[::2] for option in volume["spec"]["mountOptions"])
    return Mount(nfs["server"], int(options["port"]), nfs["path"], uid=uid, gid=gid)


def directory_of(volume: Json) -> str:
    """Name of a PV's directory, where no pattern nests it."""
    return str(volume["spec"]["nfs"]["path"]).rpartition("/")[2]


def entries(root: Path) -> set[str]:
    """Names at an export's root but for our own directory."""
    return {entry.name for entry in root.iterdir()} - {CONTROL}


def records(root: Path) -> dict[str, Json]:
    """Every record, by PV name."""
    found: dict[str, Json] = {}
    for file in (root / CONTROL / "volumes").glob("*.json"):
        with suppress(FileNotFoundError):  # it went since the directory was read
            record: Json = json.loads(file.read_text())
            found[record["pv"]] = record
    return found


def identity(root: Path) -> Json:
    """The replica's export.json."""
    found: Json = json.loads((root / CONTROL / "export.json").read_text())
    return found


def leftovers(root: Path) -> list[str]:
    """What should not stay: entries of work/<term>/, trash/ and lost/. A pair's child keeps empty directories there."""
    control = root / CONTROL
    ours = [*control.glob("work/[!s]*/*"), *control.glob("work/sync-*/*/*")]
    found = [*ours, *control.glob("trash/*"), *control.glob("lost/*")]
    return sorted(str(path.relative_to(control)) for path in found)


def has_exactly(root: Path, volumes: Iterable[Json]) -> bool:
    """Asserts that a replica holds the directories of these PVs and nothing else, in its records as well."""
    names = {directory_of(volume) for volume in volumes}
    assert entries(root) == names, f"{root}: differs in {entries(root) ^ names}"
    recorded = {record["directory"] for record in records(root).values() if record["state"] != "deleted"}
    assert recorded == names, f"{root}: the records differ in {recorded ^ names}"
    assert leftovers(root) == []
    return True
