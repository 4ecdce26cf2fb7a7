"""The harness itself: what the server serves is what lies on its disk, and what clients do reaches the disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tests.nfs.client import Mount, ToolFailed, Tools
from tests.nfs.conftest import ServerFactory
from tests.nfs.ganesha import Export, Ganesha, ServerFailed, Squash
from tests.plugins.loopfs import MIB, LoopFileSystem

pytestmark = pytest.mark.nfs


def mount(server: Ganesha, export: int = 0, *, uid: int = 0, gid: int = 0, timeout: float = 60.0) -> Mount:
    return Mount(server.host, server.port, server.exports[export].path, uid=uid, gid=gid, timeout=timeout)


def tools(server: Ganesha, export: int = 0) -> Tools:
    return Tools(server.host, server.port, server.exports[export].path)


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 60
    while (stat := Path(f"/proc/{pid}/stat")).exists():
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":  # its adoptive parent reaps it when it likes
            return
        assert time.monotonic() < deadline, f"process {pid} is still in state {state}"
        threading.Event().wait(0.02)


def test_local_files_are_read_over_nfs(start_server: ServerFactory, exported: Path) -> None:
    (exported / "plain.txt").write_bytes(b"from the disk\n")
    (exported / "name with  spaces").mkdir()
    (exported / "name with  spaces" / "ümläut%20").write_bytes(b"\x00\xff" * 70_000)
    client = tools(start_server(Export(exported)))
    assert client.ls() == ["name with  spaces", "plain.txt"]
    assert client.ls("name with  spaces") == ["ümläut%20"]
    assert client.read("plain.txt") == b"from the disk\n"
    assert client.read("name with  spaces/ümläut%20") == b"\x00\xff" * 70_000
    assert client.exists("plain.txt")
    assert not client.exists("plain")
    with pytest.raises(ToolFailed, match="nfs-cat"):
        client.read("missing")


def test_files_written_over_nfs_are_on_the_disk(start_server: ServerFactory, exported: Path, tmp_path: Path) -> None:
    client = tools(start_server(Export(exported)))
    client.write("new", b"over the wire" * 200, scratch=tmp_path)
    assert (exported / "new").read_bytes() == b"over the wire" * 200
    with pytest.raises(ToolFailed, match="NFS4ERR_EXIST"):
        client.write("new", b"nfs-cp replaces nothing", scratch=tmp_path)
    with pytest.raises(ValueError, match=r"Mount\.write"):
        client.write("large", b"x" * 4096, scratch=tmp_path)


def test_an_export_is_mounted_by_the_path_that_a_volume_names(start_server: ServerFactory, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        (directory / "default-web-pvc").mkdir(parents=True)
        (directory / "default-web-pvc" / "which").write_text(directory.name)
    server = start_server(Export(first, "/srv/nfs/web"), Export(second, "/srv/nfs/db"))
    # PV.spec.nfs.path lies below the export; a pod mounts it directly.
    with Mount(server.host, server.port, "/srv/nfs/db/default-web-pvc") as pod:
        assert pod.listdir() == ["which"]
        assert pod.read("which") == b"second"
    assert tools(server, 0).read("default-web-pvc/which") == b"first"


def test_every_call_of_a_mount(start_server: ServerFactory, exported: Path) -> None:
    with mount(start_server(Export(exported))) as client:
        client.mkdir("d", 0o750)
        client.write("d/file", b"x" * 200_000, mode=0o640)
        client.rename("d/file", "d/renamed")
        client.link("d/renamed", "d/second name")
        client.symlink("renamed", "d/symlink")
        client.chmod("d/renamed", 0o4711)
        client.chown("d/renamed", 1234, 5678)
        assert client.listdir("d") == ["renamed", "second name", "symlink"]
        assert client.read("d/second name") == b"x" * 200_000
        seen = client.lstat("d/renamed")
        real = (exported / "d" / "renamed").stat()
        assert (seen.ino, seen.mode, seen.nlink, seen.uid, seen.gid, seen.size, seen.mtime_ns) == (
            *(real.st_ino, real.st_mode, 2, 1234, 5678, 200_000, real.st_mtime_ns),
        )
        assert os.readlink(exported / "d" / "symlink") == "renamed"
        client.unlink("d/second name")
        with pytest.raises(OSError) as caught:
            client.rmdir("d")
        assert caught.value.errno == errno.ENOTEMPTY
        for name in client.listdir("d"):
            client.unlink(f"d/{name}")
        client.rmdir("d")
        assert not client.exists("d")
    assert list(exported.iterdir()) == []


def test_names_no_command_line_could_carry(start_server: ServerFactory, exported: Path) -> None:
    raw = b"not utf-8 \xff, a\nnewline, a ?question"
    Path(os.fsdecode(os.fsencode(exported) + b"/" + raw)).write_bytes(b"1")
    with mount(start_server(Export(exported))) as client:
        assert client.listdir() == [os.fsdecode(raw)]
        assert client.read(os.fsdecode(raw)) == b"1"


def test_two_clients_share_a_directory_and_write_at_once(start_server: ServerFactory, exported: Path) -> None:
    server = start_server(Export(exported))
    with mount(server) as one, mount(server) as two:
        one.mkdir("shared", 0o777)
        both = threading.Barrier(2, timeout=120)
        failures: list[BaseException] = []

        def write(client: Mount, name: str) -> None:
            try:
                with client.open(f"shared/{name}", os.O_WRONLY | os.O_CREAT) as file:
                    both.wait()  # each has its file open before the other writes
                    for block in range(20):
                        file.pwrite(name.encode() * 10_000, block * 10_000 * len(name))
                    both.wait()
            except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
                both.abort()
                failures.append(error)

        threads = [threading.Thread(target=write, args=pair) for pair in ((one, "a"), (two, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        # Each sees at once what the other did.
        assert one.read("shared/b") == b"b" * 200_000
        assert two.read("shared/a") == b"a" * 200_000
        two.rename("shared/a", "shared/c")
        assert one.listdir("shared") == ["b", "c"]


@pytest.mark.parametrize(
    ("squash", "uid", "owner"),
    [
        (Squash.NONE, 0, 0),
        (Squash.ROOT, 0, 65534),
        (Squash.ROOT, 1000, 1000),
        (Squash.ALL, 1000, 65534),
    ],
)
def test_squash_decides_the_owner(
    start_server: ServerFactory, exported: Path, squash: Squash, uid: int, owner: int
) -> None:
    exported.chmod(0o777)
    with mount(start_server(Export(exported, squash=squash)), uid=uid, gid=uid) as client:
        client.write("file", b"")
        assert client.lstat("file").uid == owner
    assert (exported / "file").stat().st_uid == owner


def test_where_root_is_squashed_chown_fails_or_lies(start_server: ServerFactory, exported: Path) -> None:
    exported.chmod(0o777)
    server = start_server(Export(exported, squash=Squash.ROOT))
    with mount(server) as client:
        client.write("file", b"")
        client.chown("file", 0, 0)  # ganesha says yes and gives it to nobody: only a stat afterwards tells
    assert (exported / "file").stat().st_uid == 65534
    with mount(server) as client, pytest.raises(PermissionError):
        client.chown("file", 1234, 5678)
    assert (exported / "file").stat().st_uid == 65534


def test_a_read_only_export_is_read_only(start_server: ServerFactory, exported: Path) -> None:
    (exported / "file").write_text("kept")
    with mount(start_server(Export(exported, read_only=True))) as client:
        assert client.read("file") == b"kept"
        with pytest.raises(OSError) as caught:
            client.write("other", b"")
    assert caught.value.errno == errno.EROFS
    assert [path.name for path in exported.iterdir()] == ["file"]


def test_two_servers_are_a_pair(start_server: ServerFactory, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    first, second = start_server(Export(a, "/srv/nfs/web")), start_server(Export(b, "/srv/nfs/web"))
    with mount(first) as on_first, mount(second) as on_second:
        on_first.write("who", b"a")
        on_second.write("who", b"b")
        assert (on_first.read("who"), on_second.read("who")) == (b"a", b"b")
        first.kill()
        assert on_second.read("who") == b"b"
    assert not first.answers()
    assert second.answers()


def test_a_killed_server_comes_back_on_its_port(start_server: ServerFactory, exported: Path) -> None:
    server = start_server(Export(exported))
    port = server.port
    with mount(server) as client:
        client.write("file", b"committed")
        server.kill()
        assert not server.running
        with pytest.raises(OSError):
            client.read("file")
    server.start()
    assert server.port == port
    with mount(server) as client:
        assert client.read("file") == b"committed"


def test_a_paused_server_hangs_and_goes_on(start_server: ServerFactory, exported: Path) -> None:
    server = start_server(Export(exported))
    with mount(server) as client:
        server.pause()
        assert server.running
        assert not server.answers(timeout=0.2)
        thread = threading.Thread(target=client.mkdir, args=("late",))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert not (exported / "late").exists()
        server.resume()
        thread.join(60)
        assert not thread.is_alive()
    assert server.answers()
    assert (exported / "late").is_dir()


def test_a_call_to_a_deaf_server_ends_with_an_error(start_server: ServerFactory, exported: Path) -> None:
    server = start_server(Export(exported))
    with mount(server) as client:
        client.give_up_after(1)
        server.pause()
        with pytest.raises(OSError):
            client.listdir()
        server.resume()


def test_a_paused_server_is_stopped_at_the_end(start_server: ServerFactory, exported: Path) -> None:
    server = start_server(Export(exported))
    pid = server.pid
    server.pause()
    server.stop()
    wait_until_dead(pid)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="no-such-directory"):
        Ganesha(tmp_path, [Export(tmp_path / "no-such-directory")]).start()


def test_no_server_outlives_killed_tests(tmp_path: Path) -> None:
    Ganesha(tmp_path, [])  # skips where the program below could not run
    program = """
        import pathlib, signal, sys
        from tests.nfs.ganesha import Export, Ganesha
        home = pathlib.Path(sys.argv[1])
        server = Ganesha(home, [Export(home)])
        server.start()
        print(server.pid, flush=True)
        signal.pause()
    """
    arguments = (sys.executable, "-c", textwrap.dedent(program), str(tmp_path))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        os.kill(pid, 0)
        tests.send_signal(signal.SIGKILL)
        wait_until_dead(pid)


def test_a_full_disk_is_full_over_nfs(start_server: ServerFactory, tmp_path: Path) -> None:
    with LoopFileSystem(tmp_path, 8 * MIB) as disk:
        server = start_server(Export(disk.path, "/srv/nfs/small"))
        disk.fill()
        with mount(server) as client:
            with pytest.raises(OSError) as caught:
                client.write("file", b"x" * 100_000)
            assert caught.value.errno == errno.ENOSPC
        server.stop()  # it holds the file system busy
