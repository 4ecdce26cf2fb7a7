"""A real NFS server for tests: nfs-ganesha, NFSv4 only, serving local directories on a free port of 127.0.0.1.

Each server is a child with a configuration, log, process id and recovery directory of its own, so that two of them
make a pair. It needs root (file handles are opened with CAP_DAC_READ_SEARCH) but neither rpcbind, D-Bus nor a mount.
Must not touch anything outside `home` but what clients write into the exports. Invariant: no server outlives the
thread that started it, not even when that is killed (PR_SET_PDEATHSIG); start servers from the main thread.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.controlplane.processes import free_ports
from tests.plugins.packages import find, require, require_root, unavailable

HOST = "127.0.0.1"
START_DEADLINE = 120.0
STOP_DEADLINE = 15.0
PORT_ATTEMPTS = 5

# RFC 5531 call of procedure NULL of program 100003 version 4 with AUTH_NONE, and the record mark before it.
_XID = 0x6E667376
_NULL_CALL = struct.pack(">II8I", 0x80000000 | 40, _XID, 0, 2, 100003, 4, 0, 0, 0, 0) + struct.pack(">I", 0)


class Squash(enum.Enum):
    """Whose rights a client's requests get. ganesha's own default is ROOT, NFS for Kubernetes needs NONE."""

    NONE = "No_Root_Squash"
    ROOT = "Root_Squash"
    ALL = "All_Squash"


@dataclass(frozen=True, slots=True)
class Export:
    """A local directory, and the absolute path under which clients mount it (by default the directory's own)."""

    directory: Path
    pseudo: str = ""
    squash: Squash = Squash.NONE
    read_only: bool = False
    cache_seconds: int = 60  # for which it believes what it knows; ganesha's own default

    @property
    def path(self) -> str:
        """What stands in `nfs.path` of a PersistentVolume, and in `path` of a replica."""
        return self.pseudo or str(self.directory)


class ServerFailed(RuntimeError):
    """ganesha ended, or did not answer in time; the message carries the end of its log."""


class Ganesha:
    """A server of `exports`; use it as a context manager, or call `start` and `stop`.

    `kill` and `start` again is a crash and a restart: the port and the recovery directory stay the same.
    """

    def __init__(self, home: Path, exports: Sequence[Export], *, host: str = HOST, port: int | None = None) -> None:
        """`host` is any address of this machine; the whole of 127.0.0.0/8 is."""
        require("ganesha.nfsd", "setpriv", debian=["nfs-ganesha"])
        if not any(Path("/usr/lib").glob("*/ganesha/libfsalvfs.so")):
            unavailable("lacks the VFS module of nfs-ganesha (Debian: nfs-ganesha-vfs)")
        require_root("nfs-ganesha to open files by handle")
        self.home = home
        self.exports = tuple(exports)
        self.host = host
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        if self._port is None:
            raise ServerFailed("the server has no port before its first start")
        return self._port

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerFailed("the server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """The process exists; it may be paused."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        path = self.home / "ganesha.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def url(self, path: str = "", export: int = 0) -> str:
        """The libnfs address of `path` below the export's root. libnfs decodes nothing: no `?` in a path."""
        return f"nfs://{self.host}{self._below(path, export)}?version=4&nfsport={self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers. Raises ServerFailed."""
        if self.running:
            raise ServerFailed("the server is running already")
        for attempt in range(1, PORT_ATTEMPTS + 1):
            chosen = self._port is None
            if self._port is None:
                self._port = free_port(self.host)
            try:
                self._launch(self._port)
                return
            except ServerFailed:
                # Between choosing a free port and binding it, another process may have taken it.
                if not chosen or attempt == PORT_ATTEMPTS or "Cannot bind" not in self.log:
                    raise
                self._port = None

    def stop(self) -> None:
        """End the server in good order; a paused or deaf one is killed. Does nothing when it is not running."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_DEADLINE)
        self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash does: clients get no word, connections are reset."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and every call hangs, until `resume`.

        Returns when all threads stand still; until then a call could still be answered.
        """
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def answers(self, timeout: float = 30.0) -> bool:
        """Whether an NFSv4 NULL call is answered within `timeout` seconds."""
        try:
            with socket.create_connection((self.host, self.port), timeout) as connection:
                connection.sendall(_NULL_CALL)
                reply = connection.recv(64)
        except OSError:
            return False
        return len(reply) >= 28 and struct.unpack(">I", reply[4:8])[0] == _XID

    def _below(self, path: str, export: int) -> str:
        root = self.exports[export].path.rstrip("/")
        return f"{root}/{path.lstrip('/')}".rstrip("/") or "/"

    def _launch(self, port: int) -> None:
        (self.home / "recovery").mkdir(parents=True, exist_ok=True)
        config = self.home / "ganesha.conf"
        config.write_text(configuration(self.exports, self.host, port, self.home / "recovery"))
        (self.home / "ganesha.log").unlink(missing_ok=True)
        arguments = (
            "-F",
            "-f",
            str(config),
            "-L",
            str(self.home / "ganesha.log"),
            "-p",
            str(self.home / "ganesha.pid"),
        )
        self._process = subprocess.Popen(
            (find("setpriv"), "--pdeathsig", "KILL", "--", find("ganesha.nfsd"), *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the tests alone; they end their servers
        )
        deadline = time.monotonic() + START_DEADLINE
        # The port is open before the exports are served; the log line comes after both.
        while not ("NFS SERVER INITIALIZED" in self.log and self.answers(timeout=1.0)):
            if not self.running or time.monotonic() > deadline:
                code = self._process.poll()
                self.kill()
                state = "does not answer" if code is None else f"ended with {code}"
                raise ServerFailed(f"nfs-ganesha {state}; the end of its log:\n{self.log[-3000:]}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
        # It starts without an export that it cannot serve, and says so only here.
        if refused := [line for line in self.log.splitlines() if "Could not create export" in line]:
            self.kill()
            raise ServerFailed("\n".join(refused))


def configuration(exports: Sequence[Export], host: str, port: int, recovery: Path) -> str:
    """ganesha.conf(5). Values are quoted: a pytest directory may hold brackets."""
    blocks = [
        f"""\
NFS_CORE_PARAM {{
    Protocols = 4;
    Bind_addr = {host};
    NFS_Port = {port};
    Enable_NLM = false;
    Enable_RQUOTA = false;
    Enable_UDP = false;
    # Needed from 5.x on in containers without CAP_SYS_RESOURCE; 4.3 warns that it does not know it.
    allow_set_io_flusher_fail = true;
}}
NFSv4 {{
    Graceless = true;
    RecoveryBackend = fs;
    RecoveryRoot = "{recovery}";
    Only_Numeric_Owners = true;
}}
"""
    ]
    for number, export in enumerate(exports, start=1):
        blocks.append(
            f"""\
EXPORT {{
    Export_Id = {number};
    Path = "{export.directory}";
    Pseudo = "{export.path}";
    Access_Type = {"RO" if export.read_only else "RW"};
    Squash = {export.squash.value};
    # The kernel's nobody; ganesha's own default is 4294967294.
    Anonymous_Uid = 65534;
    Anonymous_Gid = 65534;
    SecType = sys;
    Protocols = 4;
    Transports = TCP;
    Attr_Expiration_Time = {export.cache_seconds};
    FSAL {{ Name = VFS; }}
}}
"""
        )
    return "".join(blocks)


def free_port(host: str = HOST) -> int:
    """No outgoing connection takes it while its server is killed and started again."""
    return free_ports(1)[0]
