"""A TCP connection with faults: forwards bytes until it is told to go silent, to reset, or to refuse."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from types import TracebackType
from typing import Self


class FaultyNetwork:
    """Listens on 127.0.0.1 and forwards to `target`. All methods may be called from any thread.

    `silence` leaves connections open at both ends, and even accepts new ones, but nothing comes through any more:
    what a client sees whose peer lost its power.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._silent = False
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._mute: list[socket.socket] = []
        self.accepted = 0
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="faulty-network", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def silence(self) -> None:
        """Freezes every connection there is, for good, and those that come until `restore`."""
        with self._lock:
            self._silent = True
            for sock in self._pairs:
                self._selector.unregister(sock)
                self._mute.append(sock)
            self._pairs.clear()

    def restore(self) -> None:
        """New connections work again."""
        with self._lock:
            self._silent = False
            if self._listener is None:
                self._listener = socket.create_server(("127.0.0.1", self.port))
                self._selector.register(self._listener, selectors.EVENT_READ)
                self._wake.send(b"x")

    def reset(self) -> None:
        """RST on every connection."""
        with self._lock:
            for sock in list(self._pairs):
                self._drop(sock, reset=True)

    def refuse(self) -> None:
        """RST on every connection, and nobody listens until `restore`."""
        self.reset()
        with self._lock:
            if self._listener is not None:
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = None

    def close(self) -> None:
        self._ended = True
        self._wake.send(b"x")
        self._thread.join(10)
        for sock in [*self._pairs, *self._mute, self._wake, self._woken]:
            sock.close()
        if self._listener is not None:
            self._listener.close()

    def _run(self) -> None:
        while not self._ended:
            for ready, _ in self._selector.select():
                with self._lock:
                    self._serve(ready.fileobj)

    def _serve(self, sock: object) -> None:
        if sock is self._woken:
            self._woken.recv(64)
        elif sock is self._listener and self._listener is not None:
            self._accept(self._listener.accept()[0])
        elif isinstance(sock, socket.socket) and sock in self._pairs:
            try:
                data = sock.recv(65536)
                if data:
                    self._pairs[sock].sendall(data)
                    return
            except OSError:
                pass
            self._drop(sock)

    def _accept(self, client: socket.socket) -> None:
        self.accepted += 1
        if self._silent:
            self._mute.append(client)
            return
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        self._pairs[client], self._pairs[server] = server, client
        self._selector.register(client, selectors.EVENT_READ)
        self._selector.register(server, selectors.EVENT_READ)

    def _drop(self, sock: socket.socket, *, reset: bool = False) -> None:
        other = self._pairs.pop(sock, None)
        if other is None:
            return
        self._pairs.pop(other, None)
        for end in (sock, other):
            self._selector.unregister(end)
            if reset:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()
