"""The embedded API server: one process-local Kubernetes API with the objects a claim meets, in memory.

Starts and stops the server's thread and offers what tests and the demo need from outside; the semantics live in
registry.py, watch.py and binder.py. The invariant: all state is touched in the server's event loop only, so every
public method may be called from any thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from nfs_provisioner.demo import faults
from nfs_provisioner.demo.controllers import Controllers
from nfs_provisioner.demo.http import Connection, Connections, Response
from nfs_provisioner.demo.registry import Registry
from nfs_provisioner.demo.resources import NAMESPACES, Catalogue
from nfs_provisioner.demo.routes import Router
from nfs_provisioner.demo.store import Store, dump

_MAX_BODY = 3 * 1024 * 1024
_FIRST_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


class EmbeddedApiServer:
    """Plain HTTP on 127.0.0.1. `stop` and `start` again keep the port and every object.

    port 0 picks a free one. With a token, every request needs it as a bearer token. `watch_cache` is the number of
    changes of one kind that a watch can go back; older versions answer 410. `bookmark_interval` is in seconds.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        token: str | None = None,
        watch_cache: int = 10_000,
        bookmark_interval: float = 60.0,
    ) -> None:
        self._port = port
        self._store = Store(watch_cache)
        catalogue = Catalogue()
        registry = Registry(self._store, catalogue)
        self._controllers = Controllers(registry)
        self._router = Router(self._store, catalogue, registry, bookmark_interval)
        self._router.token = token
        too_large = Response(413, dump(faults.too_large(_MAX_BODY).status()))
        self._connections = Connections(_MAX_BODY, too_large)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        for resource in catalogue.all():
            self._store.open(resource)
        for name in _FIRST_NAMESPACES:
            registry.create(NAMESPACES, "", {"metadata": {"name": name}})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def token(self) -> str | None:
        return self._router.token

    @token.setter
    def token(self, token: str | None) -> None:
        """Another token from now on: clients with the old one get 401."""
        self._router.token = token

    @property
    def revision(self) -> int:
        """The latest resourceVersion."""
        return self._store.revision

    def start(self) -> None:
        """Returns when connections are accepted; OSError when the port is taken."""
        if self._thread is not None:
            raise RuntimeError("the server is running already")
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", self._port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        self._port = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        arguments = (self._loop, listener, ready)
        self._thread = threading.Thread(target=self._run, args=arguments, name="embedded-apiserver", daemon=True)
        self._thread.start()
        ready.wait()

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket, ready: threading.Event) -> None:
        asyncio.set_event_loop(loop)

        def connect() -> Connection:
            return Connection(self._router, self._connections)

        server = loop.run_until_complete(loop.create_server(connect, sock=listener))
        loop.call_soon(self._controllers.start)
        loop.call_soon(ready.set)
        loop.run_forever()
        self._controllers.stop()
        # Accept no more, but finish what is half accepted: asyncio would forget such a connection when the server is
        # closed now, it would stay open for ever, and its client would wait for ever.
        loop.remove_reader(listener)
        _turn(loop)
        server.close()
        self._drop_all()
        _turn(loop)
        loop.close()

    def stop(self) -> None:
        """Closes the port and every connection at once; what is stored stays."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop = self._thread = None

    def __enter__(self) -> EmbeddedApiServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _drop_all(self) -> None:
        for connection in list(self._connections.all):
            connection.drop()

    def _in_loop(self, action: Callable[[], None]) -> None:
        if self._loop is None:
            action()
            return
        done = threading.Event()

        def run() -> None:
            action()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    def close_watches(self) -> None:
        """Cuts the connection of every watch in progress in the middle of its stream; other connections stay."""

        def drop() -> None:
            for connection in list(self._connections.all):
                if connection.channel is not None:
                    connection.drop()

        self._in_loop(drop)

    def expire_history(self, *, as_http_status: bool = False) -> None:
        """Every later watch or continued list from a version before now is answered 410.

        A watch gets an ERROR event in a 200 stream, as from the real server's watch cache, or with `as_http_status`
        the HTTP status itself, as proxies and older servers answer.
        """

        def forget() -> None:
            self._store.forget_history()
            self._router.gone_as_status = as_http_status

        self._in_loop(forget)

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig for this server in JSON (which is YAML); valid also before `start` if the port is fixed.

        kubectl sends no token over plain HTTP, so it can only be used on a server without one.
        """
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "embedded",
            "contexts": [{"name": "embedded", "context": {"cluster": "embedded", "user": "embedded"}}],
            "clusters": [{"name": "embedded", "cluster": {"server": self.url}}],
            "users": [{"name": "embedded", "user": {"token": self.token or "not-checked"}}],
        }
        path.write_text(json.dumps(config, indent=2) + "\n")
        path.chmod(0o600)
        return path


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Lets the loop do what it has put off; asyncio takes three turns from accepting to connection_made."""
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0))


def main(arguments: list[str] | None = None) -> int:
    """Runs one in the foreground until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m nfs_provisioner.demo.apiserver", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token")
    parser.add_argument("--watch-cache", type=int, default=10_000)
    parser.add_argument("--kubeconfig", type=Path)
    options = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with EmbeddedApiServer(port=options.port, token=options.token, watch_cache=options.watch_cache) as server:
        if options.kubeconfig is not None:
            server.write_kubeconfig(options.kubeconfig)
        print(server.url, flush=True)
        ended.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
