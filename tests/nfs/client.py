"""Real NFS clients in user space: libnfs's commands, and libnfs itself for what they cannot do.

`Tools` runs nfs-ls, nfs-cat and nfs-cp, one process and one mount for each call. `Mount` keeps one client of the
shared library open: its own NFSv4 client id and connection, so two of them are two machines to the server. Neither
caches names or contents. Must not read the exported directory behind the server's back: what a test learns here has
crossed the wire.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import itertools
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.plugins.packages import find, require, unavailable

TIMEOUT = 60.0
# 4.0 (Debian 12) and 5.0 (Debian 13); from 6.0 on, the arguments of nfs_pread and nfs_pwrite have another order.
LIBRARIES = ("libnfs.so.13", "libnfs.so.14")
# libnfs 4.0 cannot encode an NFSv4 WRITE of more than 3,944 bytes ("Failed to encode COMPOUND4args").
WRITE_SIZE = 3072
READ_SIZE = 65536

# nfs-ls: "drwxr-xr-x  2  0  0  4096 name"; mode, links, owner, group, size, name.
_LS_LINE = re.compile(r"^[-a-z?][-rwxsStT]{9} +\d+ +\d+ +\d+ +\d+ (.*)$")
_names = itertools.count()


class ToolFailed(RuntimeError):
    """A libnfs command ended with an error; the message is what it printed."""


class Tools:
    """nfs-ls, nfs-cat and nfs-cp on one exported directory. Names without `?` and newlines only."""

    def __init__(self, host: str, port: int, path: str, *, timeout: float = TIMEOUT) -> None:
        require("nfs-ls", "nfs-cat", "nfs-cp", debian=["libnfs-utils"])
        self._root = f"nfs://{host}{path.rstrip('/')}"
        self._arguments = f"?version=4&nfsport={port}"
        self._timeout = timeout

    def ls(self, path: str = "") -> list[str]:
        """The sorted names in a directory."""
        output = self._run("nfs-ls", self.url(path)).decode(errors="surrogateescape")
        matches = (_LS_LINE.match(line) for line in output.splitlines())
        return sorted(match.group(1) for match in matches if match)

    def read(self, path: str) -> bytes:
        return self._run("nfs-cat", self.url(path))

    def write(self, path: str, data: bytes, scratch: Path) -> None:
        """Copy at most WRITE_SIZE bytes to a new file, mode 0660, by way of a file in the local directory `scratch`."""
        if len(data) > WRITE_SIZE:
            raise ValueError(f"nfs-cp cannot write {len(data)} bytes over NFSv4; use Mount.write")
        source = scratch / f"nfs-cp-{next(_names)}"
        source.write_bytes(data)
        self._run("nfs-cp", str(source), self.url(path))
        source.unlink()

    def exists(self, path: str) -> bool:
        """Looked up in the listing of its parent, which must exist."""
        parent, _, name = path.strip("/").rpartition("/")
        return name in self.ls(parent)

    def url(self, path: str) -> str:
        path = path.strip("/")
        return f"{self._root}/{path}{self._arguments}" if path else f"{self._root}{self._arguments}"

    def _run(self, command: str, *arguments: str) -> bytes:
        done = subprocess.run((find(command), *arguments), capture_output=True, timeout=self._timeout, check=False)
        # nfs-cat reports a missing file on stderr and ends with 0 in some versions: both count.
        complaint = done.stderr.decode(errors="replace").strip()
        if done.returncode != 0 or complaint:
            raise ToolFailed(f"{command} {' '.join(arguments)}: {complaint or f'ended with {done.returncode}'}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Stat:
    """Attributes as the server gave them. Times are nanoseconds since 1970."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int


class _StatBuffer(ctypes.Structure):
    _fields_ = tuple(
        (f"nfs_{name}", ctypes.c_uint64)
        for name in (
            *("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks"),
            *("atime", "mtime", "ctime", "atime_nsec", "mtime_nsec", "ctime_nsec", "used"),
        )
    )


class _DirectoryEntry(ctypes.Structure):
    # Only the head of struct nfsdirent: the library allocates it, this reads it.
    _fields_ = (("next", ctypes.c_void_p), ("name", ctypes.c_char_p))


class _Url(ctypes.Structure):
    _fields_ = (("server", ctypes.c_char_p), ("path", ctypes.c_char_p), ("file", ctypes.c_char_p))


class OpenFile:
    """An open file of a Mount: survives what happens to the name, and dies with the server (ESTALE, EIO)."""

    def __init__(self, mount: Mount, handle: ctypes.c_void_p, path: str) -> None:
        self._mount = mount
        self._handle = handle
        self._path = path

    def pwrite(self, data: bytes, offset: int) -> None:
        done = 0
        while done < len(data):
            piece = data[done : done + WRITE_SIZE]
            offset_now = ctypes.c_uint64(offset + done)
            count = self._mount.call("nfs_pwrite", self._path, self._handle, offset_now, _size(len(piece)), piece)
            if count == 0:
                raise OSError(errno.EIO, "the server wrote nothing", self._path)
            done += count

    def pread(self, size: int, offset: int) -> bytes:
        """At most `size` bytes; fewer only at the end of the file."""
        result = b""
        while len(result) < size:
            piece = ctypes.create_string_buffer(min(READ_SIZE, size - len(result)))
            at = ctypes.c_uint64(offset + len(result))
            got = self._mount.call("nfs_pread", self._path, self._handle, at, _size(len(piece)), piece)
            if got == 0:
                break
            result += piece.raw[:got]
        return result

    def fsync(self) -> None:
        self._mount.call("nfs_fsync", self._path, self._handle)

    def close(self) -> None:
        self._mount.call("nfs_close", self._path, self._handle)


class Mount:
    """One NFSv4 client with one exported directory mounted; use it as a context manager, from one thread at a time.

    Every failed call raises OSError with the errno of the NFS error. `uid` and `gid` are what the server is told
    (AUTH_SYS). A server that does not answer for `timeout` seconds is an error, not a hang. A broken connection is
    not repaired, and after a failed call on a file (open, chown, chmod, truncate) libnfs may lose count of its
    sequence ids and fail with NFS4ERR_BAD_SEQID: open a new Mount, as a pod that restarts does.
    """

    def __init__(
        self, host: str, port: int, path: str, *, uid: int = 0, gid: int = 0, timeout: float = TIMEOUT
    ) -> None:
        self._library = _library()
        self._context = ctypes.c_void_p(self._library.nfs_init_context())
        arguments = f"version=4&nfsport={port}&uid={uid}&gid={gid}&dircache=0&autoreconnect=0"
        self._url = f"nfs://{host}{path}?{arguments}"
        self._timeout = timeout
        self._mount()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unmount()

    def give_up_after(self, seconds: int) -> None:
        """Calls from here on wait for this long."""
        self._library.nfs_set_timeout(self._context, seconds * 1000)

    def unmount(self) -> None:
        self._library.nfs_destroy_context(self._context)

    def listdir(self, path: str = "/") -> list[str]:
        directory = ctypes.c_void_p()
        self.call("nfs_opendir", path, _name(path), ctypes.byref(directory))
        names: list[bytes] = []
        while entry := self._library.nfs_readdir(self._context, directory):
            names.append(ctypes.cast(entry, ctypes.POINTER(_DirectoryEntry)).contents.name)
        self._library.nfs_closedir(self._context, directory)
        return sorted(os.fsdecode(name) for name in names if name not in (b".", b".."))

    def lstat(self, path: str) -> Stat:
        buffer = _StatBuffer()
        self.call("nfs_lstat64", path, _name(path), ctypes.byref(buffer))
        return Stat(
            ino=buffer.nfs_ino,
            mode=buffer.nfs_mode,
            nlink=buffer.nfs_nlink,
            uid=buffer.nfs_uid,
            gid=buffer.nfs_gid,
            size=buffer.nfs_size,
            mtime_ns=buffer.nfs_mtime * 1_000_000_000 + buffer.nfs_mtime_nsec,
            ctime_ns=buffer.nfs_ctime * 1_000_000_000 + buffer.nfs_ctime_nsec,
        )

    def exists(self, path: str) -> bool:
        try:
            self.lstat(path)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def open(self, path: str, flags: int, mode: int = 0o644) -> Iterator[OpenFile]:
        """An open file; `flags` as in open(2). Closing it reports a failed write like any other call."""
        handle = ctypes.c_void_p()
        self.call("nfs_open2", path, _name(path), flags, mode, ctypes.byref(handle))
        file = OpenFile(self, handle, path)
        try:
            yield file
        except BaseException:
            # The first error is the one that tells; a second one from closing would hide it.
            with contextlib.suppress(OSError):
                file.close()
            raise
        file.close()

    def read(self, path: str) -> bytes:
        with self.open(path, os.O_RDONLY) as file:
            return file.pread(self.lstat(path).size, 0)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Create or replace the contents, and have the server commit them to disk."""
        with self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as file:
            file.pwrite(data, 0)
            file.fsync()

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self.call("nfs_mkdir2", path, _name(path), mode)

    def rmdir(self, path: str) -> None:
        self.call("nfs_rmdir", path, _name(path))

    def unlink(self, path: str) -> None:
        self.call("nfs_unlink", path, _name(path))

    def rename(self, old: str, new: str) -> None:
        self.call("nfs_rename", old, _name(old), _name(new))

    def symlink(self, target: str, path: str) -> None:
        self.call("nfs_symlink", path, os.fsencode(target), _name(path))

    def link(self, old: str, new: str) -> None:
        self.call("nfs_link", old, _name(old), _name(new))

    def chmod(self, path: str, mode: int) -> None:
        self.call("nfs_chmod", path, _name(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self.call("nfs_chown", path, _name(path), uid, gid)

    def call(self, function: str, path: str, *arguments: object) -> int:
        """Call the library's `function`; a negative result becomes OSError about `path`."""
        result: int = getattr(self._library, function)(self._context, *arguments)
        if result < 0:
            message = (self._library.nfs_get_error(self._context) or b"").decode(errors="replace")
            raise OSError(-result, f"{os.strerror(-result)} ({function}: {message})", path)
        return result

    def _mount(self) -> None:
        # The library's own id is the process id and the second: the server would take two clients for one rebooted.
        self._library.nfs4_set_client_name(self._context, f"nfs-provisioner-tests-{uuid.uuid4()}".encode())
        self._library.nfs4_set_verifier(self._context, uuid.uuid4().bytes[:8])
        url = self._library.nfs_parse_url_dir(self._context, os.fsencode(self._url))
        if not url:
            raise ValueError(f"libnfs does not understand {self._url}")
        self._library.nfs_set_timeout(self._context, max(1, int(self._timeout)) * 1000)
        try:
            self.call("nfs_mount", self._url, url.contents.server, url.contents.path)
        except OSError:
            self.unmount()
            raise
        finally:
            self._library.nfs_destroy_url(url)


def _name(path: str) -> bytes:
    return os.fsencode(path if path.startswith("/") else f"/{path}")


def _size(count: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(count)


@functools.cache
def _library() -> ctypes.CDLL:
    for name in LIBRARIES:
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            break
    else:
        unavailable(f"lacks {' and '.join(LIBRARIES)} (Debian: libnfs-utils)")
    library.nfs_init_context.restype = ctypes.c_void_p
    library.nfs_get_error.restype = ctypes.c_char_p
    library.nfs_readdir.restype = ctypes.c_void_p
    library.nfs_closedir.restype = None
    library.nfs_parse_url_dir.restype = ctypes.POINTER(_Url)
    library.nfs_destroy_context.restype = None
    return library
