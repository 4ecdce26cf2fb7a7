"""The floor: POSTs one pre-bound PV per claim and DELETEs released ones. No directory, no record, no event, no safety.

Its figures are the API server's and the binder's own limit on this machine, out of Python, over a few keep-alive
connections. A process of its own, like the controller it is compared with. Must not learn anything it could leave out:
each line added here flatters the product. `python -m tests.bench.floor KUBECONFIG PROVISIONER` prints a line when both
watches are open, and works until it is killed.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from tests.contract.client import Credentials, Json

CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
CONNECTIONS = 8
PATIENCE = 3600.0  # seconds of silence on a connection that count as its end

_STORAGE_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"

Request = tuple[str, str, bytes | None]


class Floor:
    """Two watches fill one queue; each connection's thread empties it."""

    def __init__(self, credentials: Credentials, provisioner: str, connections: int = CONNECTIONS) -> None:
        self._credentials = credentials
        self._provisioner = provisioner
        self._connections = connections
        self._headers = {"Authorization": f"Bearer {credentials.token}", "Content-Type": "application/json"}
        self._requests: SimpleQueue[Request] = SimpleQueue()
        self._seen: set[str] = set()

    def run(self) -> None:
        """Work until the process is killed."""
        for _ in range(self._connections):
            threading.Thread(target=self._send, daemon=True).start()
        opened = threading.Semaphore(0)
        watches = [
            threading.Thread(target=self._watch, args=(path, on_object, opened), daemon=True)
            for path, on_object in ((VOLUMES, self._on_volume), (CLAIMS, self._on_claim))
        ]
        for watch in watches:
            watch.start()
        for _ in watches:
            opened.acquire()
        print("watching", flush=True)
        for watch in watches:
            watch.join()

    def _watch(self, path: str, on_object: Callable[[Json], None], opened: threading.Semaphore) -> None:
        """A busy API server closes watches that lag behind; the next one begins with everything there is."""
        while True:
            connection = self._credentials.connect(PATIENCE)
            connection.request("GET", f"{path}?watch=1", headers=self._headers)
            response = connection.getresponse()
            opened.release()
            while line := response.readline():
                event = json.loads(line)
                if event["type"] != "DELETED":
                    on_object(event["object"])
            connection.close()

    def _on_claim(self, claim: Json) -> None:
        metadata, spec = claim["metadata"], claim["spec"]
        asked = metadata.get("annotations", {}).get(_STORAGE_PROVISIONER) == self._provisioner
        if asked and not spec.get("volumeName") and metadata["uid"] not in self._seen:
            self._seen.add(metadata["uid"])
            self._requests.put(("POST", VOLUMES, json.dumps(self._volume(metadata, spec)).encode()))

    def _volume(self, metadata: Json, spec: Json) -> Json:
        uid = metadata["uid"]
        return {
            "metadata": {"name": f"pvc-{uid}", "annotations": {_PROVISIONED_BY: self._provisioner}},
            "spec": {
                "accessModes": spec["accessModes"],
                "capacity": spec["resources"]["requests"],
                "storageClassName": spec["storageClassName"],
                "persistentVolumeReclaimPolicy": "Delete",
                "nfs": {"server": "127.0.0.1", "path": f"/x/{uid}"},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "name": metadata["name"],
                    "namespace": metadata["namespace"],
                    "uid": uid,
                },
            },
        }

    def _on_volume(self, volume: Json) -> None:
        metadata = volume["metadata"]
        ours = metadata.get("annotations", {}).get(_PROVISIONED_BY) == self._provisioner
        released = volume.get("status", {}).get("phase") == "Released"
        if ours and released and "deletionTimestamp" not in metadata:
            self._requests.put(("DELETE", f"{VOLUMES}/{metadata['name']}", None))

    def _send(self) -> None:
        connection = self._credentials.connect(PATIENCE)
        while True:
            method, path, body = self._requests.get()
            connection.request(method, path, body, self._headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status >= 300 and response.status not in (404, 409):
                print(f"{method} {path}: HTTP {response.status}: {answer[:200]!r}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.floor", description=__doc__)
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("provisioner", help="the provisioner name that it answers to")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    arguments = parser.parse_args()
    Floor(Credentials.read(arguments.kubeconfig), arguments.provisioner, arguments.connections).run()


if __name__ == "__main__":
    main()
