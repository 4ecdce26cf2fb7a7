"""Creates claims, as many and as fast as asked, watches what becomes of them, deletes them, and times all of it.

A process of its own, so that measuring does not share an interpreter with what is measured. Must not know who
provisions. `python -m tests.bench.burst KUBECONFIG CLASS` prints one line of JSON, a `Result`.

Rates count from the first request to the last event; latencies from the request that created a claim to the first event
that shows its PV, or the claim Bound. All times are those of this process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from tests.contract.client import Client, Credentials, Json

CONNECTIONS = 8
PATIENCE = 900.0  # seconds for all claims together
VOLUMES = "/api/v1/persistentvolumes"
SIZE = "1Mi"


class BenchError(Exception):
    """What was to be measured did not happen; the message says what is missing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """Rates per second; latencies in seconds, one for each claim. `deleted_per_s` is None when they were kept."""

    claims: int
    created_per_s: float
    volumes_per_s: float
    bound_per_s: float
    volume_latencies: tuple[float, ...]
    bound_latencies: tuple[float, ...]
    deleted_per_s: float | None = None


def percentile(values: tuple[float, ...], share: float) -> float:
    """The value that `share` (0 to 1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Burst:
    """One burst: `create`, then `delete`. The claims' names begin with something that no other burst has."""

    def __init__(self, credentials: Credentials, namespace: str, storage_class: str, claims: int) -> None:
        self._credentials = credentials
        self._claims_path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
        self._storage_class = storage_class
        self._run = f"b{uuid.uuid4().hex[:8]}"
        self._names = [f"{self._run}-{number:05}" for number in range(claims)]
        self._created: dict[str, float] = {}
        self._with_volume: dict[str, float] = {}
        self._bound: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        self._lost = ""  # why the watches cannot tell any more
        for path, on_event in ((VOLUMES, self._on_volume), (self._claims_path, self._on_claim)):
            opened = threading.Event()
            threading.Thread(target=self._watch, args=(path, on_event, opened), daemon=True).start()
            if not opened.wait(PATIENCE):
                raise BenchError(f"the watch of {path} was not answered")

    def create(self, rate: float = 0.0, *, connections: int = CONNECTIONS) -> Result:
        """Create all claims, `rate` a second (0: as fast as possible), and wait until all are Bound."""
        start = time.monotonic()
        due = {name: start + number / rate if rate else start for number, name in enumerate(self._names)}

        def post(client: Client, name: str) -> None:
            time.sleep(max(0.0, due[name] - time.monotonic()))
            self._created[name] = time.monotonic()
            client.post(self._claims_path, self._claim(name)).ok()

        self._spread(post, connections)
        posted = time.monotonic()
        self._wait_for(self._bound, "Bound")
        self._wait_for(self._with_volume, "seen with a PV")
        count = len(self._names)
        return Result(
            claims=count,
            created_per_s=count / (posted - start),
            volumes_per_s=count / (max(self._with_volume.values()) - start),
            bound_per_s=count / (max(self._bound.values()) - start),
            volume_latencies=self._latencies(self._with_volume),
            bound_latencies=self._latencies(self._bound),
        )

    def delete(self, *, connections: int = CONNECTIONS) -> float:
        """Delete all claims and wait until all their PVs are gone; PVs gone per second."""
        start = time.monotonic()
        self._spread(lambda client, name: client.delete(f"{self._claims_path}/{name}").ok(), connections)
        self._wait_for(self._gone, "gone with their PVs")
        return len(self._gone) / (max(self._gone.values()) - start)

    def _claim(self, name: str) -> Json:
        return {
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": self._storage_class,
                "resources": {"requests": {"storage": SIZE}},
            },
        }

    def _latencies(self, moments: dict[str, float]) -> tuple[float, ...]:
        return tuple(moments[name] - self._created[name] for name in self._names)

    def _spread(self, act: Callable[[Client, str], object], connections: int) -> None:
        """Call `act` for each name, over so many keep-alive connections."""
        waiting: SimpleQueue[str] = SimpleQueue()
        for name in self._names:
            waiting.put(name)
        errors: list[AssertionError] = []

        def work() -> None:
            client = Client(self._credentials, timeout=PATIENCE)
            try:
                while not errors:
                    act(client, waiting.get_nowait())
            except Empty:
                client.close()
            except AssertionError as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise BenchError(str(errors[0]))

    def _wait_for(self, moments: dict[str, float], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while len(moments) < len(self._names):
            if self._lost:
                raise BenchError(self._lost)
            if time.monotonic() > end:
                raise BenchError(f"only {len(moments)} of {len(self._names)} claims are {what}")
            time.sleep(0.05)

    # -- what the watches say -----------------------------------------------------------------------------------------

    def _watch(self, path: str, on_event: Callable[[Json, float], None], opened: threading.Event) -> None:
        """One watch after the other from where the last one ended: a busy API server closes those that lag behind."""
        client = Client(self._credentials, timeout=2 * PATIENCE)
        query: Json = {}
        while True:
            with client.watch(path, **query) as watch:
                opened.set()
                for event in watch:
                    if event["type"] == "ERROR":
                        self._lost = f"the watch of {path} was lost: {event['object'].get('message')}"
                        return
                    on_event(event, time.monotonic())
                    query = {"resourceVersion": event["object"]["metadata"]["resourceVersion"]}

    def _on_volume(self, event: Json, moment: float) -> None:
        claim = event["object"]["spec"].get("claimRef", {}).get("name", "")
        if claim.startswith(self._run):
            seen = self._gone if event["type"] == "DELETED" else self._with_volume
            seen.setdefault(claim, moment)

    def _on_claim(self, event: Json, moment: float) -> None:
        claim = event["object"]
        name = claim["metadata"]["name"]
        if name.startswith(self._run) and claim["status"].get("phase") == "Bound":
            self._bound.setdefault(name, moment)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.burst", description=__doc__)
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("storage_class", metavar="CLASS")
    parser.add_argument("--namespace", default="bench")
    parser.add_argument("--claims", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=0.0, help="claims a second; 0: as fast as possible")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--keep", action="store_true", help="do not delete the claims")
    parser.add_argument("--summary", action="store_true", help="percentiles instead of every latency")
    arguments = parser.parse_args()
    credentials = Credentials.read(arguments.kubeconfig)
    burst = Burst(credentials, arguments.namespace, arguments.storage_class, arguments.claims)
    result = burst.create(arguments.rate, connections=arguments.connections)
    if not arguments.keep:
        result = dataclasses.replace(result, deleted_per_s=burst.delete(connections=arguments.connections))
    found = dataclasses.asdict(result)
    if arguments.summary:
        for name in ("volume_latencies", "bound_latencies"):
            found[name] = {f"p{share}": round(percentile(found[name], share / 100), 4) for share in (50, 99)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
