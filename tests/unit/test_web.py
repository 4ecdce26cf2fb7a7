"""What HTTP serves, and that one bad question does not end it."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nfs_provisioner.web import WebServer


class Answers:
    """What the server is given; tests change it."""

    def __init__(self) -> None:
        self.healthy = ""
        self.ready = ""
        self.status: tuple[int, dict[str, Any]] = (200, {"exports": []})


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def server(answers: Answers) -> Iterator[WebServer]:
    made = WebServer(
        "127.0.0.1",
        0,
        metrics=lambda: b"up 1\n",
        healthy=lambda: answers.healthy,
        ready=lambda: answers.ready,
        status=lambda: answers.status,
    )
    made.start()
    yield made
    made.stop()


def get(server: WebServer, path: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def test_metrics_are_prometheus_text(server: WebServer) -> None:
    code, kind, body = get(server, "/metrics?name=ignored")
    assert (code, body) == (200, "up 1\n")
    assert kind.startswith("text/plain; version=")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_probe_says_ok_or_what_is_wrong(server: WebServer, answers: Answers, path: str) -> None:
    assert get(server, path)[::2] == (200, "ok\n")
    setattr(answers, "healthy" if path == "/healthz" else "ready", "the watch of claims ended")
    assert get(server, path)[::2] == (503, "the watch of claims ended\n")


def test_each_probe_has_its_own_answer(server: WebServer, answers: Answers) -> None:
    """A controller that still fills its caches is alive; restarting it would only begin again."""
    answers.ready = "waiting for claims"
    assert (get(server, "/healthz")[0], get(server, "/readyz")[0]) == (200, 503)


def test_the_status_is_json_with_its_own_code(server: WebServer, answers: Answers) -> None:
    assert json.loads(get(server, "/api/status")[2]) == {"exports": []}
    answers.status = (503, {"error": "this controller does not lead"})
    code, kind, body = get(server, "/api/status")
    assert (code, kind, json.loads(body)) == (503, "application/json", {"error": "this controller does not lead"})


@pytest.mark.parametrize("path", ["/", "/metrics/", "/api", "/api/status/web", "/../etc/passwd"])
def test_anything_else_names_what_there_is(server: WebServer, path: str) -> None:
    code, _, body = get(server, path)
    assert code == 404 and "/api/status" in body


def test_only_get_is_answered(server: WebServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/metrics", body=b"x")
    assert connection.getresponse().status == 501
    connection.close()


def test_head_is_answered_as_get_without_a_body(server: WebServer) -> None:
    """What `curl -I` and load balancers ask."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as asking:
        asking.sendall(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = b"".join(iter(lambda: asking.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"Content-Length: 5" in head and body == b""


def test_a_client_that_goes_away_leaves_no_traceback_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    asked, sent = threading.Event(), threading.Event()

    def slow() -> bytes:
        asked.set()
        assert sent.wait(60)
        return b"x" * (16 << 20)  # more than the socket takes

    made = WebServer("127.0.0.1", 0, metrics=slow, healthy=str, ready=str, status=lambda: (200, {}))
    made.start()
    before = threading.active_count()
    with socket.create_connection(("127.0.0.1", made.port), timeout=60) as asking:
        asking.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asked.wait(60)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as of a dead client
    sent.set()
    end = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < end:
        threading.Event().wait(0.01)
    made.stop()
    assert capfd.readouterr().err == ""


def test_nonsense_and_silence_keep_nobody_else_waiting(server: WebServer) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.port)) as silent,
        socket.create_connection(("127.0.0.1", server.port)) as nonsense,
    ):
        nonsense.sendall(b"\x16\x03\x01 not HTTP\r\n\r\n")
        assert get(server, "/healthz")[0] == 200
        assert silent.fileno() > 0


def test_a_connection_is_kept_for_the_next_scrape(server: WebServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for _ in range(3):
        connection.request("GET", "/metrics")
        assert connection.getresponse().read() == b"up 1\n"
    connection.close()


def test_a_port_that_is_taken_is_an_error_at_once(server: WebServer) -> None:
    with pytest.raises(OSError, match="in use"):
        WebServer(
            "127.0.0.1",
            server.port,
            metrics=lambda: b"",
            healthy=lambda: "",
            ready=lambda: "",
            status=lambda: (200, {}),
        )


def test_a_stopped_server_frees_its_port() -> None:
    def make(port: int) -> WebServer:
        return WebServer(
            "127.0.0.1",
            port,
            metrics=lambda: b"",
            healthy=lambda: "",
            ready=lambda: "",
            status=lambda: (200, {}),
        )

    first = make(0)
    first.start()
    first.stop()
    second = make(first.port)
    second.stop()
