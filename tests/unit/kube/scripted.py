"""A server that answers every request with the next of the bytes it was given."""

from __future__ import annotations

import socketserver
import threading
from types import TracebackType
from typing import Self


class ScriptedServer:
    """HTTP on 127.0.0.1. Each answer is raw bytes, head included; the connection is closed after an answer that says
    so, and at once, unanswered, for None."""

    def __init__(self, *answers: bytes | None) -> None:
        self.requests: list[str] = []
        self.heads: list[str] = []
        remaining = list(answers)
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while line := self.rfile.readline():
                    head = []
                    while (header := self.rfile.readline().strip()) != b"":
                        head.append(header.decode().lower())
                    lengths = [int(h.split(":")[1]) for h in head if h.startswith("content-length:")]
                    self.rfile.read(sum(lengths))
                    outer.requests.append(" ".join(line.decode().split()[:2]))
                    outer.heads.append("\n".join(head))
                    answer = remaining.pop(0)
                    if answer is None:
                        return
                    self.wfile.write(answer)
                    if b"connection: close" in answer.lower():
                        return

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(code: int, body: bytes = b"{}", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {code} X", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def chunked(*chunks: bytes, end: bool = True) -> bytes:
    """A stream of these chunks; without an end it is cut in the middle."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + (b"" if end else b"Connection: close\r\n") + b"\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + body + (b"0\r\n\r\n" if end else b"")
