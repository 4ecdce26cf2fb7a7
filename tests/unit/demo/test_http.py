"""The HTTP server below the API: what clients do to connections."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer


@pytest.fixture
def wire(embedded_api: EmbeddedApiServer) -> Iterator[socket.socket]:
    """A connection to speak on byte by byte."""
    port = int(embedded_api.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        yield connection


def answers(wire: socket.socket, count: int) -> list[bytes]:
    """Reads so many answers; each as its head."""
    heads: list[bytes] = []
    buffer = b""
    while len(heads) < count:
        while b"\r\n\r\n" not in buffer:
            received = wire.recv(65536)
            assert received, f"closed after {heads} and {buffer!r}"
            buffer += received
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        heads.append(head)
        sizes = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        missing = int(sizes[0]) if sizes else 0
        while len(buffer) < missing:
            buffer += wire.recv(65536)
        buffer = buffer[missing:]
    return heads


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def test_one_byte_at_a_time(wire: socket.socket) -> None:
    for index in range(len(GET)):
        wire.sendall(GET[index : index + 1])
    assert answers(wire, 1)[0].startswith(b"HTTP/1.1 200 ")


def test_requests_sent_ahead_are_answered_in_order(wire: socket.socket) -> None:
    wire.sendall(GET + GET.replace(b"/healthz", b"/nowhere") + GET)
    assert [head.split(b" ")[1] for head in answers(wire, 3)] == [b"200", b"404", b"200"]


def test_a_request_behind_a_watch_waits_for_its_end(wire: socket.socket) -> None:
    wire.sendall(GET.replace(b"/healthz", b"/api/v1/pods?watch=1&timeoutSeconds=1") + GET)
    received = b""
    while b"Content-Length: 2\r\n" not in received:
        part = wire.recv(65536)
        assert part
        received += part
    head, _, rest = received.partition(b"\r\n\r\n")
    assert b"chunked" in head
    assert rest.startswith(b"0\r\n\r\nHTTP/1.1 200 ")


def test_a_connection_is_closed_on_request(wire: socket.socket) -> None:
    wire.sendall(GET.replace(b"Host: x", b"Connection: close"))
    assert b"Connection: close" in answers(wire, 1)[0]
    assert wire.recv(1) == b""


def test_expect_continue(wire: socket.socket) -> None:
    head = b"POST /api/v1/namespaces HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 31\r\n\r\n"
    wire.sendall(head)
    assert answers(wire, 1) == [b"HTTP/1.1 100 Continue"]
    wire.sendall(b'{"metadata": {"name": "expect"}}'[:31])
    assert answers(wire, 1)[0].startswith(b"HTTP/1.1 400 ")  # the last brace is missing: 31 bytes were announced


def test_an_answer_to_an_endless_head_is_not_lost_while_the_client_still_sends(wire: socket.socket) -> None:
    """A connection that is closed with something unread in it is reset, and the client may never see the answer."""
    wire.sendall(b"GET / HTTP/1.1\r\nLong: " + b"x" * 1_000_000)
    assert answers(wire, 1)[0].startswith(b"HTTP/1.1 400 ")
    assert wire.recv(1) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"POST /api/v1/namespaces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nLong: " + b"x" * 70_000,
    ],
    ids=["chunked body", "bad length", "endless head"],
)
def test_what_is_not_understood_is_refused_and_closed(wire: socket.socket, head: bytes) -> None:
    wire.sendall(head)
    assert answers(wire, 1)[0].startswith(b"HTTP/1.1 400 ")
    assert wire.recv(1) == b""
