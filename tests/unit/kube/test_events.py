"""Events never come before claims, and warnings before good news."""

from __future__ import annotations

import threading
from typing import Any, cast

from nfs_provisioner.kube.api import Api
from nfs_provisioner.kube.events import GOOD_NEWS_PATIENCE, PATIENCE, EventWriter

DEADLINE = 60.0


class Server:
    """Takes Events and says which."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.arrived = threading.Condition()

    def create(self, _resource: object, event: dict[str, Any], _namespace: str) -> dict[str, Any]:
        self._note(event["message"])
        return event

    def patch(self, _resource: object, _name: str, change: dict[str, Any], *, namespace: str) -> None:
        self._note(f"{change['message']} x{change['count']} in {namespace}")

    def _note(self, text: str) -> None:
        with self.arrived:
            self.posted.append(text)
            self.arrived.notify_all()

    def wait(self, count: int) -> list[str]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posted) >= count, DEADLINE), self.posted
            return list(self.posted)


def event(message: str, *, warning: bool = False) -> dict[str, Any]:
    return {
        "metadata": {"name": message, "namespace": "ns"},
        "involvedObject": {"uid": "u", "name": "claim"},
        "type": "Warning" if warning else "Normal",
        "reason": "Reason",
        "message": message,
        "lastTimestamp": "now",
        "count": 1,
    }


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.busy = True
        self.looked = threading.Semaphore(0)
        self.server = Server()
        self.writer = EventWriter(cast(Api, self.server), busy=self._busy, clock=lambda: self.now)
        self.writer.start()

    def _busy(self) -> bool:
        self.looked.release()
        return self.busy

    def looked_twice(self) -> None:
        for _ in range(2):
            assert self.looked.acquire(timeout=DEADLINE)


def test_events_wait_for_a_busy_controller_and_warnings_less_long() -> None:
    world = World()
    world.writer.record(event("good"))
    world.writer.record(event("bad", warning=True))
    world.looked_twice()
    assert world.server.posted == []
    world.now += PATIENCE
    assert world.server.wait(1) == ["bad"]
    world.looked_twice()
    assert world.server.posted == ["bad"]
    world.now += GOOD_NEWS_PATIENCE
    assert world.server.wait(2) == ["bad", "good"]
    world.writer.stop()


def test_a_calm_controller_posts_warnings_first_and_counts_what_repeats() -> None:
    world = World()
    world.writer.record(event("good"))
    world.writer.record(event("good"))
    world.writer.record(event("bad", warning=True))
    world.busy = False
    assert world.server.wait(3) == ["bad", "good", "good x2 in ns"]
    world.writer.stop(DEADLINE)
    assert not world.writer._thread.is_alive()
