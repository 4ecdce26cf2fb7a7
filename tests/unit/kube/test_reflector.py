"""The cache against a server that restarts, forgets, goes silent, goes back in time, or is not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.kube import api as kube
from nfs_provisioner.kube.api import PVC, Resource
from nfs_provisioner.kube.reflector import Reflector
from tests.unit.kube.conftest import DEADLINE, Requests, claim, eventually, write_kubeconfig
from tests.unit.kube.network import FaultyNetwork
from tests.unit.kube.scripted import ScriptedServer, answer, chunked

Start = Callable[..., "Cache"]


class Cache:
    """A reflector of claims, and what it told."""

    def __init__(self, api: kube.Api, resource: Resource = PVC, **options: Any) -> None:
        self.told: list[tuple[str, str | None, str | None]] = []
        self.reflector: Reflector[str] = Reflector(
            api, resource, on_change=lambda *change: self.told.append(change), **({"slim": app} | options)
        )

    def run(self) -> None:
        self.reflector.start()
        assert self.reflector.synced.wait(DEADLINE)

    def has(self, *names: str) -> bool:
        return sorted(self.reflector.items()) == sorted(names)


def app(obj: kube.JsonObject) -> str | None:
    """The label `app`; claims without one are of no interest."""
    value = obj["metadata"].get("labels", {}).get("app")
    return None if value is None else str(value)


class Waits:
    """Takes the place of the pauses of a reflector: they are noted, and over at once, up to `count`."""

    def __init__(self, reflector: Reflector[str], count: int) -> None:
        self.seconds: list[float] = []
        self.all_taken = threading.Event()
        self._count = count
        self._stopping = reflector._stopping
        self._real = reflector._stopping.wait
        reflector._stopping.wait = self.wait  # type: ignore[method-assign]

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(timeout)
        if len(self.seconds) < self._count:
            return False
        self.all_taken.set()
        return self._real()


@pytest.fixture
def start() -> Iterator[Start]:
    caches: list[Cache] = []

    def make(api: kube.Api, **options: Any) -> Cache:
        caches.append(Cache(api, **options))
        caches[-1].run()
        return caches[-1]

    yield make
    for cache in caches:
        cache.reflector.stop(DEADLINE)
        assert not cache.reflector.is_alive()


def test_it_lists_then_follows(api: kube.Api, start: Start) -> None:
    api.create(PVC, claim("a", app="a1"))
    api.create(PVC, claim("plain"))
    cache = start(api, index=lambda item: [item[0]])
    assert cache.told == [("default/a", None, "a1")]
    api.create(PVC, claim("b", app="b1"))
    api.patch(PVC, "a", {"metadata": {"labels": {"app": "a2"}}}, namespace="default")
    api.delete(PVC, "b", namespace="default")
    api.patch(PVC, "plain", {"metadata": {"labels": {"app": "p"}}}, namespace="default")
    eventually(lambda: len(cache.told) == 5)
    assert cache.told[1:] == [
        ("default/b", None, "b1"),
        ("default/a", "a1", "a2"),
        ("default/b", "b1", None),
        ("default/plain", None, "p"),
    ]
    assert cache.reflector.get("default/a") == "a2"
    assert cache.reflector.get("default/b") is None
    assert cache.reflector.by_index("a") == ["a2"]
    assert cache.reflector.healthy_since is not None
    assert cache.reflector.last_error is None


def test_selectors_and_a_namespace_narrow_it(api: kube.Api, start: Start) -> None:
    api.create(kube.NAMESPACE, {"metadata": {"name": "other"}})
    api.create(PVC, claim("a", "other", app="yes", tier="x"))
    api.create(PVC, claim("b", "default", app="no", tier="x"))
    cache = start(api, namespace="other", label_selector="tier=x", field_selector="metadata.name=a")
    api.create(PVC, claim("c", "other", app="no", tier="x"))
    api.patch(PVC, "a", {"metadata": {"labels": {"app": "still"}}}, namespace="other")
    eventually(lambda: cache.has("still"))
    api.patch(PVC, "a", {"metadata": {"labels": {"tier": "y"}}}, namespace="other")
    eventually(lambda: cache.has(), "a selector that stops matching is a deletion")


def test_it_reads_its_own_writes(api: kube.Api, start: Start) -> None:
    cache = start(api)
    for i in range(50):
        cache.reflector.put(api.create(PVC, claim(f"c{i}", app=f"v{i}")))
        assert cache.reflector.get(f"default/c{i}") == f"v{i}"
    eventually(lambda: len(cache.told) == 50)
    assert cache.told == [(f"default/c{i}", None, f"v{i}") for i in range(50)]


def test_h17_when_idle_it_asks_for_nothing_but_the_next_watch(api: kube.Api, start: Start, requests: Requests) -> None:
    for i in range(20):
        api.create(PVC, claim(f"c{i}", app="x"))
    requests.all.clear()
    began = time.monotonic()
    cache = start(api, watch_seconds=1)
    eventually(lambda: requests.count("watch") >= 3)
    watches = requests.count("watch")  # before the time is taken: the next one may come between the two
    assert watches <= (time.monotonic() - began) / 0.9 + 1
    assert requests.count("list") == 1
    api.create(PVC, claim("later", app="later"))
    eventually(lambda: cache.reflector.get("default/later"))
    assert cache.reflector.last_error is None


def test_h17_a_restarted_server_is_not_asked_for_everything_again(
    faulty_api: kube.Api, api: kube.Api, network: FaultyNetwork, start: Start, requests: Requests
) -> None:
    for i in range(20):
        api.create(PVC, claim(f"c{i}", app="x"))
    cache = start(faulty_api)
    network.refuse()
    eventually(lambda: cache.reflector.last_error)
    assert cache.reflector.healthy_since is None
    api.delete(PVC, "c7", namespace="default")
    api.create(PVC, claim("new", app="new"))
    assert len(cache.reflector) == 20
    requests.all.clear()
    network.restore()
    eventually(lambda: cache.reflector.get("default/new"))
    assert cache.reflector.get("default/c7") is None
    assert cache.told[-2:] == [("default/c7", "x", None), ("default/new", None, "new")]
    assert requests.count("list", "200") == 1, "more than the look at the server's version"


def test_h17_a_server_that_is_away_is_asked_ever_less_often(network: FaultyNetwork, faulty_api: kube.Api) -> None:
    network.refuse()
    cache = Cache(faulty_api, rand=lambda: 0.0)
    waits = Waits(cache.reflector, 12)
    cache.reflector.start()
    assert waits.all_taken.wait(DEADLINE)
    assert waits.seconds[:7] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0]
    assert set(waits.seconds[7:]) == {15.0}
    assert "refused" in (cache.reflector.last_error or "")
    assert not cache.reflector.synced.is_set()
    cache.reflector.stop()


def test_h17_a_server_that_asks_to_wait_is_obeyed(tmp_path: Path) -> None:
    with ScriptedServer(answer(429, b"{}", "Retry-After: 11"), answer(503)) as server:
        cache = Cache(kube.load(str(write_kubeconfig(tmp_path / "k", server.url))), rand=lambda: 0.0)
        waits = Waits(cache.reflector, 2)
        cache.reflector.start()
        assert waits.all_taken.wait(DEADLINE)
        assert waits.seconds == [11.0, 0.5]
        cache.reflector.stop()


@pytest.mark.parametrize("as_http_status", [False, True])
def test_h18_a_deletion_that_happened_while_the_history_was_lost_is_noticed(
    as_http_status: bool,
    faulty_api: kube.Api,
    api: kube.Api,
    network: FaultyNetwork,
    server: EmbeddedApiServer,
    start: Start,
) -> None:
    for name in ("stays", "goes", "changes"):
        api.create(PVC, claim(name, app=name))
    cache = start(faulty_api)
    network.refuse()
    eventually(lambda: cache.reflector.last_error)
    api.delete(PVC, "goes", namespace="default")
    api.patch(PVC, "changes", {"metadata": {"labels": {"app": "changed"}}}, namespace="default")
    server.expire_history(as_http_status=as_http_status)
    network.restore()
    eventually(lambda: cache.has("stays", "changed"))
    assert sorted(cache.told[3:]) == [("default/changes", "changes", "changed"), ("default/goes", "goes", None)]


def test_h18_a_watch_answered_410_for_ever_is_repeated_ever_less_often(tmp_path: Path) -> None:
    listing = answer(200, b'{"metadata":{"resourceVersion":"5"},"items":[]}')
    gone = chunked(b'{"type":"ERROR","object":{"code":410,"reason":"Expired"}}\n')
    with ScriptedServer(*[listing, gone] * 8) as server:
        cache = Cache(kube.load(str(write_kubeconfig(tmp_path / "k", server.url))), rand=lambda: 0.0)
        waits = Waits(cache.reflector, 8)
        cache.reflector.start()
        assert waits.all_taken.wait(DEADLINE)
        assert waits.seconds == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
        assert [request.split("?")[0] for request in server.requests] == ["GET /api/v1/persistentvolumeclaims"] * 16
        cache.reflector.stop()


def test_h18_watches_that_end_at_once_but_politely_are_not_repeated_at_once(tmp_path: Path) -> None:
    listing = answer(200, b'{"metadata":{"resourceVersion":"5"},"items":[]}')
    with ScriptedServer(listing, *[chunked()] * 4) as server:
        cache = Cache(kube.load(str(write_kubeconfig(tmp_path / "k", server.url))), rand=lambda: 0.0)
        waits = Waits(cache.reflector, 4)
        cache.reflector.start()
        assert waits.all_taken.wait(DEADLINE)
        assert waits.seconds == [0.25, 0.5, 1.0, 2.0]
        cache.reflector.stop()


def test_h18_backoff_starts_again_only_after_a_watch_that_lived(tmp_path: Path) -> None:
    now = 100.0
    listing = answer(200, b'{"metadata":{"resourceVersion":"5"},"items":[]}')
    event = b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"%d","labels":{"app":"%d"}}}}\n'
    streams = [chunked(event % (6 + i, i), end=i == 2) for i in range(4)]
    answers = [listing, streams[0], listing, streams[1], listing, streams[2], streams[3]]
    with ScriptedServer(*answers) as server:
        cache = Cache(kube.load(str(write_kubeconfig(tmp_path / "k", server.url))), rand=lambda: 0.0)
        cache.reflector._clock = lambda: now
        tell = cache.reflector._on_change

        def on_change(key: str, old: str | None, new: str | None) -> None:
            nonlocal now
            now += 100 if new == "2" else 1
            tell(key, old, new)

        cache.reflector._on_change = on_change
        waits = Waits(cache.reflector, 3)
        cache.reflector.start()
        assert waits.all_taken.wait(DEADLINE)
        # Two that broke; the third lived, ended as agreed, and was followed at once by the fourth, which broke.
        assert waits.seconds == [0.25, 0.5, 0.25]
        cache.reflector.stop()


def test_h18_a_connection_that_went_silent_is_replaced(
    faulty_api: kube.Api,
    api: kube.Api,
    network: FaultyNetwork,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kube, "WATCH_READ_SLACK", 0.3)
    cache = start(faulty_api, watch_seconds=2)
    # Retries during the silence would wait the 5 s of a new connection, or the 30 s of an answer.
    monkeypatch.setattr(faulty_api._timeout, "_read", 0.5)
    eventually(lambda: cache.reflector.healthy_since)
    network.silence()
    api.create(PVC, claim("unheard", app="unheard"))
    eventually(lambda: cache.reflector.last_error)
    network.restore()
    eventually(lambda: cache.has("unheard"))


def test_h18_reset_connections_lose_nothing(
    faulty_api: kube.Api, api: kube.Api, network: FaultyNetwork, start: Start, server: EmbeddedApiServer
) -> None:
    cache = start(faulty_api)
    want: list[str] = []
    for i in range(30):
        api.create(PVC, claim(f"c{i}", app=f"c{i}"))
        want.append(f"c{i}")
        if i % 3 == 2:
            api.delete(PVC, want[0], namespace="default")
            want.pop(0)
        if i % 10 == 5:
            network.reset()
        if i % 10 == 9:
            server.close_watches()
    eventually(lambda: cache.has(*want))
    state: dict[str, str] = {}
    for key, old, new in cache.told:
        assert state.get(key) == old
        state.pop(key, None)
        if new is not None:
            state[key] = new
    assert sorted(state.values()) == sorted(want)


def test_h40_a_server_restored_from_a_backup_is_believed_not_waited_for(tmp_path: Path, start: Start) -> None:
    with EmbeddedApiServer() as before:
        config = str(before.write_kubeconfig(tmp_path / "k"))
        api = kube.load(config)
        for i in range(10):
            api.create(PVC, claim(f"c{i}", app=f"c{i}"))
        cache = start(api)
        port = int(before.url.rsplit(":", 1)[1])
        before.stop()
        with EmbeddedApiServer(port=port) as restored:
            assert restored.revision < 10
            api.create(PVC, claim("c3", app="old"))
            eventually(lambda: cache.has("old"))  # its pauses after errors come to half a minute
            api.create(PVC, claim("new", app="new"))
            eventually(lambda: cache.has("old", "new"))
    assert cache.reflector.get("default/c3") == "old"


@pytest.mark.parametrize("part", ["slim", "index"])
def test_an_object_that_cannot_be_read_is_named_and_hides_no_other(
    part: str, api: kube.Api, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Listed, followed, put, and when it was known before: it is as if it were not there."""

    def fails(text: str) -> bool:
        if text == "broken":
            raise ValueError("not of this world")
        return True

    def slim(obj: kube.JsonObject) -> str | None:
        found = app(obj)
        return found if found is None or part == "index" or fails(found) else None

    api.create(PVC, claim("listed", app="broken"))
    api.create(PVC, claim("good", app="good"))
    api.create(PVC, claim("turns", app="fine"))
    cache = start(api, slim=slim, index=lambda item: (letter for letter in item[0] if part == "slim" or fails(item)))
    assert cache.has("good", "fine")
    cache.reflector.put(api.create(PVC, claim("put", app="broken")))
    api.patch(PVC, "turns", {"metadata": {"labels": {"app": "broken"}}}, namespace="default")
    api.create(PVC, claim("later", app="later"))
    eventually(lambda: cache.has("good", "later"))
    assert cache.told[-2:] == [("default/turns", "fine", None), ("default/later", None, "later")]
    assert cache.reflector.by_index("f") == []
    api.patch(PVC, "listed", {"metadata": {"labels": {"app": "mended"}}}, namespace="default")
    eventually(lambda: cache.has("good", "later", "mended"))
    assert cache.reflector.is_alive()
    for name in ("listed", "put", "turns"):
        assert f"default/{name}" in caplog.text
    assert "not of this world" in caplog.text


def test_a_kind_that_does_not_exist_yet_is_waited_for(api: kube.Api) -> None:
    cache = Cache(api, Resource("example.com", "v1", "things"), rand=lambda: 0.0)
    waits = Waits(cache.reflector, 3)
    cache.reflector.start()
    assert waits.all_taken.wait(DEADLINE)
    assert waits.seconds == [0.25, 0.5, 1.0]
    assert "list things: 404" in (cache.reflector.last_error or "")
    assert not cache.reflector.synced.is_set()
    cache.reflector.stop()


def test_stopping_is_prompt_in_a_quiet_watch_and_tells_nothing_more(api: kube.Api) -> None:
    cache = Cache(api)
    cache.run()
    eventually(lambda: cache.reflector.healthy_since)
    cache.reflector.stop(DEADLINE)  # the watch would go on for 290 seconds
    assert not cache.reflector.is_alive()
    assert cache.reflector.last_error is None
    api.create(PVC, claim("a", app="a"))
    assert cache.told == []


def test_stopping_does_not_wait_for_a_server_that_does_not_answer(faulty_api: kube.Api, network: FaultyNetwork) -> None:
    network.silence()
    cache = Cache(faulty_api)
    cache.reflector.start()
    eventually(lambda: network.accepted)
    began = time.monotonic()
    cache.reflector.stop(timeout=0.2)
    assert time.monotonic() - began < 25, "it waits until the request gives up, after 30 seconds"
