"""HTTP: /metrics, /healthz, /readyz, /api/status. Serves what it is given; knows nothing itself."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

Status = Callable[[], tuple[int, dict[str, Any]]]


class WebServer:
    """`healthy` and `ready` return what is wrong, empty for nothing; `port` is the one that was really bound."""

    def __init__(
        self,
        bind: str,
        port: int,
        *,
        metrics: Callable[[], bytes],
        healthy: Callable[[], str],
        ready: Callable[[], str],
        status: Status,
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_GET(self) -> None:
                path = self.path.split("?", 1)[0]
                if path == "/metrics":
                    self._answer(200, metrics(), CONTENT_TYPE_LATEST)
                elif path in ("/healthz", "/readyz"):
                    problem = healthy() if path == "/healthz" else ready()
                    self._answer(503 if problem else 200, (problem or "ok").encode() + b"\n", "text/plain")
                elif path == "/api/status":
                    code, body = status()
                    self._answer(code, json.dumps(body).encode(), "application/json")
                else:
                    known = b"not here; try /metrics, /healthz, /readyz or /api/status\n"
                    self._answer(404, known, "text/plain")

            do_HEAD = do_GET

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    self.close_connection = True  # who asked has gone: no news either

            def _answer(self, code: int, body: bytes, content_type: str) -> None:
                self.send_response(code)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
                """Probes every few seconds are no news."""

        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self._server = type("Server", (ThreadingHTTPServer,), {"address_family": family})((bind, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=lambda: self._server.serve_forever(poll_interval=0.1), name="http", daemon=True
        )  # the interval is how long `stop` may take

    @property
    def port(self) -> int:
        """The bound TCP port."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
