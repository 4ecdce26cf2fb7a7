"""A small HTTP/1.1 server on asyncio: keep-alive, chunked streams. Knows nothing of Kubernetes.

Handlers run in the event loop and answer at once, with a coroutine, or with a stream that goes on until either end
closes. The invariant: one request of a connection is answered completely before the next one is read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl, unquote

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_LINGER = 10.0  # seconds that a client which was refused may still send
_MAX_HEADER = 64 * 1024
_MAX_UNSENT = 256 * 1024 * 1024


@dataclass(slots=True)
class Request:
    """One request. Header names are in lower case; the query keeps the last value of a name."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Response:
    """A complete answer."""

    code: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Channel:
    """The sending end of a stream. `on_close` is called once, whoever closes first."""

    def __init__(self, transport: asyncio.Transport, finished: Callable[[], None]) -> None:
        self._transport = transport
        self._finished = finished
        self._pending: list[bytes] = []
        self._open = True
        self.on_close: Callable[[], None] = lambda: None

    def send(self, line: bytes) -> None:
        """Queues one chunk; what is queued in one turn of the loop goes out in one write."""
        if not self._open:
            return
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending.append(b"%x\r\n%b\r\n" % (len(line), line))

    def _flush(self) -> None:
        if self._open and self._pending:
            self._transport.write(b"".join(self._pending))
            self._pending.clear()
            if self._transport.get_write_buffer_size() > _MAX_UNSENT:
                self.abort()  # as the real server does with a watcher that does not read

    def end(self) -> None:
        """Ends the stream in order; the connection stays usable."""
        if self._open:
            self._flush()
            self._transport.write(b"0\r\n\r\n")
            self.closed()
            self._finished()

    def abort(self) -> None:
        """Drops the connection."""
        self._transport.abort()

    def closed(self) -> None:
        if self._open:
            self._open = False
            self._pending.clear()
            self.on_close()


@dataclass(slots=True)
class Stream:
    """An answer without an end: `start` is given the channel after the head has been sent."""

    start: Callable[[Channel], None]
    content_type: str = "application/json"


Answer = Response | Stream | Coroutine[Any, Any, Response]
Handler = Callable[[Request], Answer]


@dataclass(slots=True)
class Connections:
    """The open connections of one server, and what it answers to a body of more than `max_body` bytes."""

    max_body: int
    too_large: Response
    all: set[Connection] = field(default_factory=set)


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, handler: Handler, connections: Connections) -> None:
        self._handler = handler
        self._connections = connections
        self._buffer = bytearray()
        self._busy = False
        self._continued = False
        self._deaf = False
        self._transport: asyncio.Transport
        self.channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (signature of asyncio.Protocol)
        self._connections.all.discard(self)
        if self.channel is not None:
            self.channel.closed()
        if self._task is not None:
            self._task.cancel()

    def drop(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._buffer += data
        self._serve()

    def _refuse(self, answer: Response) -> None:
        """Answers, and lets the client finish sending: a connection closed too early would swallow the answer."""
        self._deaf = self._busy = True
        self._transport.write(_head(answer, close=True) + answer.body)
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER, self._transport.close)

    def _serve(self) -> None:
        while not self._busy:
            try:
                request = self._next_request()
            except ValueError as problem:
                self._refuse(Response(400, str(problem).encode(), "text/plain"))
                return
            if request is None:
                return
            self._answer(request)

    def _next_request(self) -> Request | None:
        """The next complete request in the buffer, or None."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEADER:
                raise ValueError("header too large")
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "transfer-encoding" in headers:
            raise ValueError("a request body needs a Content-Length")
        size = int(headers.get("content-length", "0"))
        if size > self._connections.max_body:
            self._refuse(self._connections.too_large)
            return None
        if len(self._buffer) < end + 4 + size:
            if headers.get("expect", "").lower() == "100-continue" and not self._continued:
                self._continued = True
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        self._continued = False
        method, _, rest = first.partition(" ")
        target, _, _protocol = rest.rpartition(" ")
        path, _, query = target.partition("?")
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        parsed = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
        return Request(method, unquote(path) if "%" in path else path, parsed, headers, body)

    def _answer(self, request: Request) -> None:
        close = request.headers.get("connection", "").lower() == "close"
        answer = self._handler(request)
        if isinstance(answer, Response):
            self._send(answer, close)
        elif isinstance(answer, Stream):
            self._busy = True
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {answer.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
            self._transport.write(head.encode())
            self.channel = Channel(self._transport, self._stream_ended)
            answer.start(self.channel)
        else:
            self._busy = True
            self._task = asyncio.get_running_loop().create_task(self._later(answer, close))

    async def _later(self, answer: Coroutine[Any, Any, Response], close: bool) -> None:
        response = await answer
        self._task = None
        self._busy = False
        self._send(response, close)
        self._serve()

    def _stream_ended(self) -> None:
        self.channel = None
        self._busy = False
        # Not from within the handler's own call: the caller may still be serving this connection.
        asyncio.get_running_loop().call_soon(self._serve)

    def _send(self, response: Response, close: bool) -> None:
        self._transport.write(_head(response, close) + response.body)
        if close:
            self._transport.close()


def _head(response: Response, close: bool) -> bytes:
    phrase = _PHRASES.get(response.code, "")
    head = (
        f"HTTP/1.1 {response.code} {phrase}\r\n"
        f"Content-Type: {response.content_type}\r\nContent-Length: {len(response.body)}\r\n"
    )
    head += "".join(f"{name}: {value}\r\n" for name, value in response.headers)
    return f"{head}Connection: close\r\n\r\n".encode() if close else f"{head}\r\n".encode()


async def fetch(host: str, port: int, head: bytes, body: bytes) -> Response:
    """One request to another server, for the service proxy. `head` is complete and asks to close the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(head + body)
        raw_head = await reader.readuntil(b"\r\n\r\n")
        payload = await reader.read(-1)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    first, *lines = raw_head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        payload = _dechunk(payload)
    return Response(int(first.split(" ")[1]), payload, headers.get("content-type", "application/octet-stream"))


def _dechunk(raw: bytes) -> bytes:
    parts: list[bytes] = []
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        parts.append(raw[:length])
        raw = raw[length + 2 :]
    return b"".join(parts)
