"""Requests and their refusals, on the embedded API server, a failing network and scripted answers."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from pathlib import Path

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.errors import RetryLater
from nfs_provisioner.kube import api as kube
from nfs_provisioner.kube.api import PV, PVC, STORAGE_CLASS
from tests.unit.kube.conftest import DEADLINE, Requests, claim, eventually, write_kubeconfig
from tests.unit.kube.network import FaultyNetwork
from tests.unit.kube.scripted import ScriptedServer, answer, chunked


def scripted_api(server: ScriptedServer, tmp_path: Path, requests: Requests | None = None) -> kube.Api:
    config = write_kubeconfig(tmp_path / "scripted", server.url)
    return kube.load(str(config), observe=requests or Requests())


def test_an_object_from_creation_to_deletion(api: kube.Api, requests: Requests) -> None:
    made = api.create(PVC, claim("a", app="x"))
    assert api.get(PVC, "a", "default")["metadata"]["uid"] == made["metadata"]["uid"]
    made["metadata"]["labels"]["app"] = "y"
    replaced = api.replace(PVC, made)
    assert replaced["metadata"]["labels"] == {"app": "y"}
    patched = api.patch(PVC, "a", {"metadata": {"annotations": {"k": "v"}}}, namespace="default")
    assert patched["metadata"]["annotations"]["k"] == "v"
    status = {"status": {"phase": "Lost"}}
    assert api.patch(PVC, "a", status, namespace="default", subresource="status")["status"]["phase"] == "Lost"
    with pytest.raises(kube.Conflict, match="delete persistentvolumeclaims default/a: 409 Conflict"):
        api.delete(PVC, "a", namespace="default", uid="another")
    with pytest.raises(kube.Conflict):
        api.delete(PVC, "a", namespace="default", resource_version=made["metadata"]["resourceVersion"])
    current = patched["metadata"]["uid"]
    api.delete(PVC, "a", namespace="default", uid=current)
    assert requests.all[:3] == [
        ("create", "persistentvolumeclaims", "201"),
        ("get", "persistentvolumeclaims", "200"),
        ("update", "persistentvolumeclaims", "200"),
    ]


def test_json_and_strategic_patches(api: kube.Api) -> None:
    body = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv", "finalizers": ["a/b", "c/d"]}}
    nfs = {"server": "127.0.0.1", "path": "/x"}
    body["spec"] = {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteMany"], "nfs": nfs}
    api.create(PV, body)
    remove = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"]}}
    assert "a/b" not in api.patch(PV, "pv", remove, kind="strategic")["metadata"]["finalizers"]
    add = [{"op": "add", "path": "/metadata/labels", "value": {"k": "v"}}]
    assert api.patch(PV, "pv", add, kind="json")["metadata"]["labels"] == {"k": "v"}


def test_refusals_name_the_verb_the_resource_and_the_object(api: kube.Api) -> None:
    with pytest.raises(kube.NotFound, match="get persistentvolumeclaims default/none: 404 NotFound") as caught:
        api.get(PVC, "none", "default")
    assert (caught.value.status, caught.value.api_reason) == (404, "NotFound")
    assert "none" in caught.value.body
    made = api.create(PVC, claim("a"))
    with pytest.raises(kube.AlreadyExists, match="create persistentvolumeclaims default/a"):
        api.create(PVC, claim("a"))
    api.patch(PVC, "a", {"metadata": {"labels": {"k": "v"}}}, namespace="default")
    with pytest.raises(kube.Conflict, match="update persistentvolumeclaims default/a"):
        api.replace(PVC, made)
    invalid = claim("b")
    del invalid["spec"]["accessModes"]
    with pytest.raises(kube.Invalid, match="accessModes"):
        api.create(PVC, invalid)


@pytest.mark.parametrize(
    ("response", "kind", "after"),
    [
        (answer(403, b'{"reason":"Forbidden","message":"no"}'), kube.Forbidden, None),
        (answer(429, b"slow down", "Retry-After: 7"), kube.Throttled, 7.0),
        (answer(429, b'{"details":{"retryAfterSeconds":3}}'), kube.Throttled, 3.0),
        (answer(502, b"<html>Bad Gateway</html>"), kube.Unavailable, None),
        (answer(503, b"{}", "Retry-After: Thu, 01 Jan 2026 00:00:00 GMT"), kube.Unavailable, None),
        (answer(500, b"[]"), kube.Unavailable, None),
        (answer(200, b"<html>log in</html>"), kube.Unavailable, None),
        (answer(200, b"[]"), kube.Unavailable, None),
        (answer(302, b"", "Location: http://127.0.0.1:1/"), kube.ApiError, None),
        (answer(400, b""), kube.ApiError, None),
        (None, kube.Unavailable, None),
    ],
)
def test_what_proxies_and_overloaded_servers_answer_becomes_an_error_of_the_right_kind(
    response: bytes | None, kind: type[kube.ApiError], after: float | None, tmp_path: Path
) -> None:
    with ScriptedServer(response) as server:
        with pytest.raises(kube.ApiError) as caught:
            scripted_api(server, tmp_path).create(PVC, claim("a"))
        assert type(caught.value) is kind
        assert "create persistentvolumeclaims default/a" in caught.value.message
        if isinstance(caught.value, RetryLater):
            assert caught.value.after == after
        assert server.requests == ["POST /api/v1/namespaces/default/persistentvolumeclaims"], "sent more than once"


def test_h17_a_read_that_got_no_answer_is_not_repeated_behind_the_callers_back(tmp_path: Path) -> None:
    with ScriptedServer(None, answer(200)) as server:
        with pytest.raises(kube.Unavailable):
            scripted_api(server, tmp_path).get(STORAGE_CLASS, "fast")
        assert len(server.requests) == 1


def test_h17_a_refused_connection_is_one_attempt_and_says_where(tmp_path: Path, requests: Requests) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        api = kube.load(str(write_kubeconfig(tmp_path / "k", url)), observe=requests)
        with pytest.raises(kube.Unavailable, match=rf"get storageclasses fast: {url}: .*refused"):
            api.get(STORAGE_CLASS, "fast")
    assert requests.all == [("get", "storageclasses", "none")]


def test_h18_a_request_into_silence_ends_with_its_timeout(
    faulty_api: kube.Api, network: FaultyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_api.get_raw("/version")
    network.silence()
    monkeypatch.setattr(faulty_api._timeout, "_read", 0.3)
    with pytest.raises(kube.Unavailable, match="timed out"):
        faulty_api.get(PVC, "a", "default")
    monkeypatch.undo()
    network.restore()
    assert faulty_api.get_raw("/version"), "the dead connection was kept"


def test_h18_every_socket_notices_a_dead_peer_in_about_30_seconds(api: kube.Api) -> None:
    watch = api.watch(PVC, resource_version="1", timeout_seconds=10)
    connection = watch._response.connection
    assert isinstance(connection, http.client.HTTPConnection)
    sock = connection.sock
    options = {
        name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_NODELAY")
    }
    watch.close()
    assert options.pop("TCP_NODELAY")
    assert options == {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
    assert sock.fileno() == -1 or sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_list_fetches_its_pages_only_as_they_are_read(api: kube.Api, requests: Requests) -> None:
    for i in range(25):
        api.create(PVC, claim(f"c{i:02}", parity=str(i % 2)))
    items, version = api.list(PVC, limit=10)
    assert requests.count("list") == 1
    assert [next(items)["metadata"]["name"] for _ in range(10)] == [f"c{i:02}" for i in range(10)]
    assert requests.count("list") == 1
    assert len(list(items)) == 15
    assert requests.count("list") == 3
    assert int(version) == int(api.get(PVC, "c24", "default")["metadata"]["resourceVersion"])
    odd, _ = api.list(PVC, "default", label_selector="parity=1", limit=5)
    assert len(list(odd)) == 12
    one, _ = api.list(PVC, field_selector="metadata.name=c07")
    assert [obj["metadata"]["name"] for obj in one] == ["c07"]


def test_h18_a_list_whose_later_pages_have_expired_says_gone(api: kube.Api, server: EmbeddedApiServer) -> None:
    for i in range(5):
        api.create(PVC, claim(f"c{i}"))
    items, _ = api.list(PVC, limit=2)
    api.create(PVC, claim("later"))
    server.expire_history()
    with pytest.raises(kube.Gone):
        list(items)


def test_a_watch_brings_changes_in_order_and_ends_when_the_server_ends_it(api: kube.Api) -> None:
    _, version = api.list(PVC)
    api.create(PVC, claim("a"))
    api.patch(PVC, "a", {"metadata": {"labels": {"k": "v"}}}, namespace="default")
    opened: list[kube.Watch] = []
    watch = api.watch(PVC, resource_version=version, timeout_seconds=1, on_open=opened.append)
    assert opened == [watch]
    events = [(kind, obj["metadata"]["name"]) for kind, obj in watch if kind != "BOOKMARK"]
    assert events == [("ADDED", "a"), ("MODIFIED", "a")]


@pytest.mark.parametrize("as_http_status", [False, True])
def test_h18_a_watch_from_a_forgotten_version_says_gone_in_either_form(
    as_http_status: bool, api: kube.Api, server: EmbeddedApiServer
) -> None:
    _, version = api.list(PVC)
    api.create(PVC, claim("a"))
    server.expire_history(as_http_status=as_http_status)
    with pytest.raises(kube.Gone):
        list(api.watch(PVC, resource_version=version, timeout_seconds=5))


def test_an_error_event_becomes_the_error_of_its_code(tmp_path: Path) -> None:
    status = {"type": "ERROR", "object": {"kind": "Status", "code": 504, "reason": "Timeout", "message": "too large"}}
    with ScriptedServer(chunked(json.dumps(status).encode() + b"\n")) as server:
        watch = scripted_api(server, tmp_path).watch(PVC, resource_version="1", timeout_seconds=5)
        with pytest.raises(kube.Unavailable, match="504 Timeout: too large"):
            list(watch)


EVENTS = b'{"type":"ADDED","object":{"n":"\xc3\xa4"}}\n{"type":"MODIFIED","object":{"n":2}}\n'


@pytest.mark.parametrize(
    "response",
    [
        chunked(EVENTS),
        chunked(*(EVENTS[i : i + 1] for i in range(len(EVENTS)))),
        chunked(EVENTS[:30], EVENTS[30:60], EVENTS[60:] + b"\n"),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + EVENTS,
    ],
    ids=["together", "byte by byte", "split, blank lines", "not chunked"],
)
def test_events_are_put_together_however_they_are_cut(response: bytes, tmp_path: Path) -> None:
    with ScriptedServer(response) as server:
        watch = scripted_api(server, tmp_path).watch(PVC, resource_version="1", timeout_seconds=5)
        assert list(watch) == [("ADDED", {"n": "ä"}), ("MODIFIED", {"n": 2})]


def test_a_stream_that_breaks_in_the_middle_says_unavailable_after_what_was_whole(tmp_path: Path) -> None:
    with ScriptedServer(chunked(EVENTS, b'{"type":"DEL', end=False)) as server:
        watch = scripted_api(server, tmp_path).watch(PVC, resource_version="1", timeout_seconds=5)
        assert [next(watch)[0], next(watch)[0]] == ["ADDED", "MODIFIED"]
        with pytest.raises(kube.Unavailable, match="watch persistentvolumeclaims"):
            next(watch)


def test_a_watch_is_not_compressed(tmp_path: Path) -> None:
    with ScriptedServer(chunked()) as server:
        list(scripted_api(server, tmp_path).watch(PVC, resource_version="1", timeout_seconds=5))
        assert "accept-encoding: identity" in server.heads[0]


def test_close_ends_a_blocked_watch_at_once(api: kube.Api) -> None:
    _, version = api.list(PVC)
    watch = api.watch(PVC, resource_version=version, timeout_seconds=300)
    ended = threading.Event()

    def read() -> None:
        list(watch)
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    watch.close()
    assert ended.wait(DEADLINE), "it waits for the server to end it, after 300 seconds"
    watch.close()


def test_h18_a_watch_that_goes_silent_ends_soon_after_the_server_should_have_ended_it(
    faulty_api: kube.Api, network: FaultyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "WATCH_READ_SLACK", 4.0)  # which is also the time that a busy server has to begin it
    _, version = faulty_api.list(PVC)
    watch = faulty_api.watch(PVC, resource_version=version, timeout_seconds=1)
    network.silence()
    with pytest.raises(kube.Unavailable, match="timed out"):
        list(watch)


def test_an_expired_token_is_read_again_once_by_whoever_notices(
    server: EmbeddedApiServer, tmp_path: Path, requests: Requests
) -> None:
    server.token = "first"
    token = tmp_path / "token"
    token.write_text("first\n")
    api = kube.load(str(write_kubeconfig(tmp_path / "k", server.url, tokenFile=str(token))), observe=requests)
    api.get_raw("/version")
    server.token = "second"
    token.write_text("second\n")
    together = threading.Barrier(8)
    failures: list[Exception] = []

    def ask() -> None:
        together.wait(DEADLINE)
        try:
            api.get_raw("/version")
        except kube.ApiError as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert failures == []
    assert api._connection.generation == 2, "the credentials were loaded more than once"
    assert 1 <= requests.count("get", "401") <= 8


def test_a_token_that_stays_wrong_is_tried_twice_and_no_more(
    server: EmbeddedApiServer, tmp_path: Path, requests: Requests
) -> None:
    server.token = "right"
    config = write_kubeconfig(tmp_path / "k", server.url, token="wrong")
    api = kube.load(str(config), observe=requests)
    with pytest.raises(kube.Unauthorized, match="get storageclasses fast: 401"):
        api.get(STORAGE_CLASS, "fast")
    assert requests.count("get", "401") == 2
    config.unlink()
    with pytest.raises(kube.Unauthorized, match=str(config)):
        api.watch(PVC, resource_version="1", timeout_seconds=1)


def test_a_credential_plugin_is_asked_again_after_401(server: EmbeddedApiServer, tmp_path: Path) -> None:
    server.token = "first"
    plugin, token = tmp_path / "plugin", tmp_path / "token"
    token.write_text("first")
    plugin.write_text(
        "#!/bin/sh\n"
        'echo "{\\"apiVersion\\":\\"client.authentication.k8s.io/v1\\",\\"kind\\":\\"ExecCredential\\",'
        f'\\"status\\":{{\\"token\\":\\"$(cat {token})\\"}}}}"\n'
    )
    plugin.chmod(0o755)
    plugin_config = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
    api = kube.load(
        str(write_kubeconfig(tmp_path / "k", server.url, exec={**plugin_config, "interactiveMode": "Never"}))
    )
    assert api.get_raw("/version")
    server.token = "second"
    token.write_text("second")
    assert api.get_raw("/version")


def test_watches_and_errors_give_their_connections_back(api: kube.Api, server: EmbeddedApiServer) -> None:
    def connections() -> int:
        return len(server._connections.all)

    for _ in range(5):
        with pytest.raises(kube.NotFound):
            api.get(PVC, "none", "default")
        with pytest.raises(kube.NotFound):
            api.watch(kube.Resource("no", "v1", "such"), resource_version="1", timeout_seconds=5)
        api.watch(PVC, resource_version="1", timeout_seconds=300).close()
    opened = api.watch(PVC, resource_version="1", timeout_seconds=300)
    opened.close()
    assert list(opened) == []
    api.get_raw("/version")
    eventually(lambda: connections() <= 2 + 5, f"{connections()} connections")


def test_a_server_below_a_path_and_names_that_need_quoting(tmp_path: Path) -> None:
    with ScriptedServer(answer(200), answer(200)) as server:
        api = kube.load(str(write_kubeconfig(tmp_path / "k", server.url + "/k8s/clusters/c-1/")))
        api.get(PVC, "a?b", "../x")
        api.get_raw("/api/v1/namespaces/n/services/s:http/proxy/api/status?x=1")
        assert server.requests == [
            "GET /k8s/clusters/c-1/api/v1/namespaces/..%2Fx/persistentvolumeclaims/a%3Fb",
            "GET /k8s/clusters/c-1/api/v1/namespaces/n/services/s:http/proxy/api/status?x=1",
        ]


def test_a_plain_http_proxy_is_asked_for_the_whole_url(tmp_path: Path) -> None:
    with ScriptedServer(answer(200)) as proxy:
        config = json.loads(write_kubeconfig(tmp_path / "k", "http://cluster.invalid:8001").read_text())
        config["clusters"][0]["cluster"]["proxy-url"] = proxy.url
        (tmp_path / "k").write_text(json.dumps(config))
        kube.load(str(tmp_path / "k")).get(STORAGE_CLASS, "fast")
        assert proxy.requests == ["GET http://cluster.invalid:8001/apis/storage.k8s.io/v1/storageclasses/fast"]


def test_many_threads_share_one_api(api: kube.Api) -> None:
    problems: list[BaseException] = []

    def write(thread: int) -> None:
        try:
            for i in range(20):
                api.create(PVC, claim(f"t{thread}-{i}"))
        except kube.ApiError as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert problems == []
    assert len(list(api.list(PVC)[0])) == 160
