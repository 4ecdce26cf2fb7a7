"""What the embedded server offers beyond the API: restarts, faults on request, tokens, the small scheduler."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from tests.contract.client import Client, Credentials, Json, Watch
from tests.contract.world import CLASSES, VOLUMES, World, has_provisioner, phase

Connect = Callable[[EmbeddedApiServer], Client]
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
EXPORTS = "/apis/nfs-provisioner.io/v1alpha1/nfsexports"
REPOSITORY = Path(__file__).resolve().parents[3]


def config_map(name: str, **data: str) -> Json:
    return {"metadata": {"name": name}, "data": data}


def cut_off(running: Watch) -> bool:
    """Reads to the end of the connection; whether the stream broke off instead of ending in order."""
    return not running.response.fp.read().endswith(b"0\r\n\r\n")


def test_a_restart_keeps_port_and_objects(embedded_api: EmbeddedApiServer, connect: Connect) -> None:
    first = connect(embedded_api)
    made = first.post(CONFIG_MAPS, config_map("a")).ok()
    url = embedded_api.url
    embedded_api.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.credentials.port), timeout=60)
    embedded_api.start()
    assert embedded_api.url == url
    again = connect(embedded_api)
    assert again.get(f"{CONFIG_MAPS}/a").ok() == made
    assert int(again.post(CONFIG_MAPS, config_map("b")).ok()["metadata"]["resourceVersion"]) > int(
        made["metadata"]["resourceVersion"]
    )


def test_a_watch_goes_on_after_a_restart(embedded_api: EmbeddedApiServer, connect: Connect) -> None:
    api = connect(embedded_api)
    start = api.get(CONFIG_MAPS).ok()["metadata"]["resourceVersion"]
    api.post(CONFIG_MAPS, config_map("a")).ok()
    embedded_api.stop()
    embedded_api.start()
    with connect(embedded_api).watch(CONFIG_MAPS, resourceVersion=start) as running:
        assert running.next()["object"]["metadata"]["name"] == "a"


def test_the_binder_goes_on_after_a_restart(embedded_api: EmbeddedApiServer, connect: Connect) -> None:
    embedded_api.stop()
    embedded_api.start()
    with World(connect(embedded_api)) as world:
        world.bound("a", world.storage_class())


def test_starting_twice_and_stopping_twice(embedded_api: EmbeddedApiServer) -> None:
    with pytest.raises(RuntimeError):
        embedded_api.start()
    embedded_api.stop()
    embedded_api.stop()


def test_a_taken_port_is_an_error(embedded_api: EmbeddedApiServer) -> None:
    port = int(embedded_api.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        EmbeddedApiServer(port=port).start()


def test_stopping_ends_watches(embedded_api: EmbeddedApiServer, api: Client) -> None:
    with api.watch(CONFIG_MAPS) as running:
        embedded_api.stop()
        assert cut_off(running)


def test_stopping_forgets_no_connection_that_is_just_being_made(embedded_api: EmbeddedApiServer) -> None:
    address = ("127.0.0.1", int(embedded_api.url.rpartition(":")[2]))
    connections = [socket.create_connection(address, timeout=60) for _ in range(50)]
    embedded_api.stop()
    for connection in connections:
        with connection, contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_close_watches_cuts_watches_and_nothing_else(embedded_api: EmbeddedApiServer, api: Client) -> None:
    api.get(CONFIG_MAPS).ok()
    with api.watch(CONFIG_MAPS) as running:
        embedded_api.close_watches()
        assert cut_off(running)
    api.get(CONFIG_MAPS).ok()  # on the connection from before


def test_h18_expired_history_is_an_error_event(embedded_api: EmbeddedApiServer, api: Client) -> None:
    start = api.get(CONFIG_MAPS).ok()["metadata"]["resourceVersion"]
    api.post(CONFIG_MAPS, config_map("a")).ok()
    embedded_api.expire_history()
    with api.watch(CONFIG_MAPS, resourceVersion=start) as running:
        assert running.response.status == 200
        assert [event["object"]["code"] for event in running] == [410]
    fresh = api.get(CONFIG_MAPS).ok()["metadata"]["resourceVersion"]
    with api.watch(CONFIG_MAPS, resourceVersion=fresh) as running:
        api.post(CONFIG_MAPS, config_map("b")).ok()
        assert running.next()["object"]["metadata"]["name"] == "b"


def test_h18_expired_history_can_be_a_status_code(embedded_api: EmbeddedApiServer, api: Client) -> None:
    start = api.get(CONFIG_MAPS).ok()["metadata"]["resourceVersion"]
    api.post(CONFIG_MAPS, config_map("a")).ok()
    embedded_api.expire_history(as_http_status=True)
    api.get(CONFIG_MAPS, watch="1", resourceVersion=start).refused(410, "Expired", "too old resource version")


def test_a_watch_that_wants_the_list_first_is_refused_as_by_a_server_that_has_no_such_thing(api: Client) -> None:
    """kubectl then lists and watches as before; a watch that never sends the list lets `kubectl delete` wait for ever."""
    asked = {"watch": "1", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    api.get(CONFIG_MAPS, **asked).refused(422, "Invalid", "sendInitialEvents is forbidden for watch")


def test_h18_pages_of_an_expired_list_are_refused(embedded_api: EmbeddedApiServer, api: Client) -> None:
    for name in "abc":
        api.post(CONFIG_MAPS, config_map(name)).ok()
    token = api.get(CONFIG_MAPS, limit=1).ok()["metadata"]["continue"]
    assert api.get(CONFIG_MAPS, limit=1, **{"continue": token}).ok()["items"][0]["metadata"]["name"] == "b"
    api.delete(f"{CONFIG_MAPS}/c").ok()
    embedded_api.expire_history()
    api.get(CONFIG_MAPS, limit=1, **{"continue": token}).refused(410, "Expired", "continue parameter is too old")


def test_the_watch_cache_is_bounded(connect: Connect) -> None:
    with EmbeddedApiServer(watch_cache=5) as server:
        api = connect(server)
        versions = [
            api.post(CONFIG_MAPS, config_map(f"c{index}")).ok()["metadata"]["resourceVersion"] for index in range(8)
        ]
        with api.watch(CONFIG_MAPS, resourceVersion=versions[2]) as running:
            assert running.next()["object"]["metadata"]["name"] == "c3"
        with api.watch(CONFIG_MAPS, resourceVersion=versions[1]) as running:
            assert running.next()["type"] == "ERROR"


def test_bookmarks_come_at_the_interval_when_the_kind_has_changed(connect: Connect) -> None:
    with EmbeddedApiServer(bookmark_interval=0.05) as server:
        api = connect(server)
        query = {"allowWatchBookmarks": "true", "fieldSelector": "metadata.name=none"}
        with api.watch(CONFIG_MAPS, **query) as running:
            made = api.post(CONFIG_MAPS, config_map("a")).ok()
            bookmark = running.next()
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"] == {"resourceVersion": made["metadata"]["resourceVersion"]}


def test_another_token_locks_old_clients_out(connect: Connect) -> None:
    with EmbeddedApiServer(token="first") as server:
        api = connect(server)
        api.get(VOLUMES).ok()
        server.token = "second"
        api.get(VOLUMES).refused(401, "Unauthorized")
        connect(server).get(VOLUMES).ok()


def test_the_kubeconfig_is_private_and_yaml(embedded_api: EmbeddedApiServer, tmp_path: Path) -> None:
    path = embedded_api.write_kubeconfig(tmp_path / "kubeconfig")
    config = yaml.safe_load(path.read_text())
    assert config["clusters"][0]["cluster"] == {"server": embedded_api.url}
    assert config["users"][0]["user"]["token"]
    assert path.stat().st_mode & 0o077 == 0


def test_a_pod_makes_its_waiting_claim_ready_to_provision(api: Client) -> None:
    with World(api) as world:
        world.claim("a", world.storage_class(volumeBindingMode="WaitForFirstConsumer"))
        world.settle()
        assert not has_provisioner(api.get(world.claim_path("a")).ok())
        volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "a"}}]
        containers = [{"name": "main", "image": "registry.example.com/none"}]
        pods = f"/api/v1/namespaces/{world.namespace}/pods"
        world.make(pods, {"metadata": {"name": "p"}, "spec": {"containers": containers, "volumes": volumes}})
        claim = api.eventually(world.claim_path("a"), has_provisioner)
        assert claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"]
        world.provisioned("a", claim)
        api.eventually(world.claim_path("a"), phase("Bound"))


def test_a_pod_can_be_evicted(api: Client) -> None:
    pods = "/api/v1/namespaces/default/pods"
    api.post(pods, {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main", "image": "x"}]}}).ok()
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p", "namespace": "default"}}
    assert api.post(f"{pods}/p/eviction", eviction).code == 201
    api.get(f"{pods}/p").refused(404, "NotFound")


def test_exports_are_served_without_a_definition(api: Client) -> None:
    body = {"apiVersion": "nfs-provisioner.io/v1alpha1", "kind": "NFSExport", "metadata": {"name": "web"}}
    made = api.post(EXPORTS, body | {"spec": {"replicas": []}, "status": {"phase": "Ready"}}).ok()
    assert made["metadata"]["generation"] == 1
    assert "status" not in made
    assert api.patch(f"{EXPORTS}/web/status", {"status": {"phase": "Ready"}}).ok()["status"] == {"phase": "Ready"}


def test_exports_follow_the_definition_that_we_ship(api: Client) -> None:
    """CEL rules apart, which only a real server evaluates."""
    definition = yaml.safe_load((REPOSITORY / "manifests" / "crd.yaml").read_text())
    api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).ok()
    replica = {"name": "a", "server": "192.0.2.1", "path": "/srv/web", "mountPath": "/exports/web/a"}
    head = {"apiVersion": "nfs-provisioner.io/v1alpha1", "kind": "NFSExport", "metadata": {"name": "web"}}
    wrong = head | {"spec": {"replicas": [replica | {"server": 1}]}}
    api.post(EXPORTS, wrong).refused(422, "Invalid", "spec.replicas[0].server in body must be of type string")
    made = api.post(EXPORTS, head | {"spec": {"replicas": [replica], "unheard": "of"}}).ok()
    assert made["spec"]["replicas"] == [replica]
    assert "unheard" not in made["spec"]
    definition_path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/nfsexports.nfs-provisioner.io"
    api.delete(definition_path).ok()
    assert api.get(EXPORTS).ok()["items"] == []  # still served, without the schema
    api.post(EXPORTS, wrong).ok()


class _Echo(BaseHTTPRequestHandler):
    """Answers with what it was asked."""

    def do_GET(self) -> None:
        body = f"{self.command} {self.path} {self.headers.get('Accept')}".encode()
        self.send_response(200 if self.path.startswith("/api") else 418)
        self.send_header("Content-Type", "text/x-echo")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Says nothing."""


@pytest.fixture
def backend() -> Iterator[int]:
    """The port of an HTTP server to be reached through the service proxy."""
    with HTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("reference", ["status", "http:status:http", "status:8080"])
def test_the_service_proxy(api: Client, backend: int, reference: str) -> None:
    services = "/api/v1/namespaces/default/services"
    annotations = {"demo.nfs-provisioner.io/target": f"127.0.0.1:{backend}"}
    ports = [{"name": "http", "port": 8080}]
    api.post(services, {"metadata": {"name": "status", "annotations": annotations}, "spec": {"ports": ports}}).ok()
    answer = api.get(f"{services}/{reference}/proxy/api/status", export="web site")
    assert (answer.code, answer.text) == (200, "GET /api/status?export=web+site application/json")
    assert answer.headers["content-type"] == "text/x-echo"
    assert api.get(f"{services}/{reference}/proxy/teapot").code == 418


def test_the_service_proxy_says_when_nobody_is_there(api: Client) -> None:
    services = "/api/v1/namespaces/default/services"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        annotations = {"demo.nfs-provisioner.io/target": f"127.0.0.1:{unused.getsockname()[1]}"}
        spec = {"ports": [{"port": 8080}]}
        api.post(services, {"metadata": {"name": "status", "annotations": annotations}, "spec": spec}).ok()
        api.get(f"{services}/status/proxy/").refused(503, "ServiceUnavailable", "error trying to reach service")


def test_the_service_proxy_survives_a_backend_that_speaks_no_http(api: Client) -> None:
    services = "/api/v1/namespaces/default/services"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        annotations = {"demo.nfs-provisioner.io/target": f"127.0.0.1:{listener.getsockname()[1]}"}
        spec = {"ports": [{"port": 8080}]}
        api.post(services, {"metadata": {"name": "status", "annotations": annotations}, "spec": spec}).ok()

        def babble() -> None:
            for words in (b"", b"220 mail.example.com\r\n\r\n", b"HTTP/1.1\r\n\r\n"):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(words)

        thread = Thread(target=babble)
        thread.start()
        codes = [api.get(f"{services}/status/proxy/").code for _ in range(3)]
        thread.join()
    assert codes == [503, 503, 503]
    api.patch(f"{services}/status", {"metadata": {"annotations": {"demo.nfs-provisioner.io/target": "nowhere"}}}).ok()
    api.get(f"{services}/status/proxy/").refused(503, "ServiceUnavailable", "not host:port")


def test_a_service_without_ready_endpoints_is_unavailable(api: Client) -> None:
    services = "/api/v1/namespaces/default/services"
    api.post(services, {"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}).ok()
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
    metadata = {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}
    api.post(slices, {"metadata": metadata, "addressType": "IPv4"}).ok()
    api.get(f"{services}/web/proxy/").refused(503, "ServiceUnavailable", 'no endpoints available for service "web"')


def test_the_program(tmp_path: Path) -> None:
    """python -m nfs_provisioner.demo.apiserver: prints its address, ends on SIGTERM."""
    kubeconfig = tmp_path / "kubeconfig"
    command = [sys.executable, "-m", "nfs_provisioner.demo.apiserver", "--kubeconfig", str(kubeconfig), "--token", "t"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        client = Client(Credentials.read(kubeconfig))
        assert url == f"http://127.0.0.1:{client.credentials.port}"
        client.get(CLASSES).ok()
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
