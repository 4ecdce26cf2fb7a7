"""The harness of hanging directories: faithful while it works, hopeless while it hangs, gone when it is stopped."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.plugins.hang import CHANGES, HangingDirectory, is_mounted
from tests.plugins.packages import require_root

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[HangingDirectory]:
    backing = tmp_path / "backing"
    backing.mkdir()
    with HangingDirectory(backing, tmp_path / "mnt") as hanging:
        yield hanging


@contextlib.contextmanager
def process(*command: str, fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A process that may hang: whatever happens, the test itself never waits for it without end."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=fds)
    try:
        yield child
    finally:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1)  # one that cannot be killed yet goes when the mount goes


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.005)


def has_ended(pid: int) -> bool:
    """An orphan stays a zombie until its adoptive parent reaps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def renameat2(old: Path, new: Path, flags: int) -> int:
    """The errno, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    return ctypes.get_errno() if failed else 0


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a faithful view must show, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(root):
        for name in (".", *directories, *files):
            path = Path(directory) / name
            status = path.lstat()
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            found[os.path.relpath(path, root)] = (
                *(status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_rdev),
                *(status.st_size, status.st_blocks, status.st_mtime_ns, status.st_ctime_ns, content, xattrs),
            )
    return found


def populate(root: Path) -> None:
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(os.urandom(300_000))
    os.link(root / "sub" / "file", root / "sub" / "deeper" / "hard link")
    os.symlink("../file", root / "sub" / "deeper" / "symlink")
    os.mkfifo(root / "sub" / "fifo", 0o600)
    os.setxattr(root / "sub" / "file", "user.key", b"\x00value")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff not utf-8\n")).write_text("odd")
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(10_000_000)
        os.pwrite(sparse.fileno(), b"end", 9_000_000)
    os.chown(root / "sub" / "file", 1234, 5678)
    os.chmod(root / "sub" / "file", 0o4750)
    os.utime(root / "sub" / "file", ns=(1_073_741_823, 1_073_741_822))  # what UTIME_NOW and UTIME_OMIT look like
    os.utime(root / "sparse", ns=(-1, -1_500_000_001))


def test_it_shows_what_is_behind_it(directory: HangingDirectory) -> None:
    populate(directory.backing)
    assert len(describe(directory.backing)) == 9
    assert describe(directory.path) == describe(directory.backing)


def test_what_is_written_through_it_arrives(directory: HangingDirectory) -> None:
    populate(directory.path)
    assert describe(directory.path) == describe(directory.backing)
    assert (directory.backing / "sub" / "file").stat().st_mtime_ns == 1_073_741_822
    assert (directory.backing / "sparse").stat().st_mtime_ns == -1_500_000_001


def test_the_flags_of_rename_are_obeyed(directory: HangingDirectory) -> None:
    for name in ("a", "b"):
        (directory.path / name).write_text(name)
    assert renameat2(directory.path / "a", directory.path / "b", RENAME_NOREPLACE) == errno.EEXIST
    assert renameat2(directory.path / "a", directory.path / "b", RENAME_EXCHANGE) == 0
    assert (directory.backing / "b").read_text() == "a"
    assert (directory.backing / "a").read_text() == "b"


def test_other_users_own_what_they_create(directory: HangingDirectory) -> None:
    directory.backing.chmod(0o777)
    directory.backing.parent.chmod(0o711)
    (directory.backing / "root's").mkdir(mode=0o700)
    script = 'mkdir -m 0700 d && touch d/f && ln -s x d/l && ! ls "root\'s"'
    done = subprocess.run(("sh", "-c", script), cwd=directory.path, user=1234, group=5678, extra_groups=[], check=False)
    assert done.returncode == 0
    for path in ("d", "d/f", "d/l"):
        status = (directory.backing / path).lstat()
        assert (status.st_uid, status.st_gid) == (1234, 5678)


def test_a_hung_call_goes_on_when_released(directory: HangingDirectory) -> None:
    directory.hang()
    with process("mkdir", str(directory.path / "late")) as child:
        directory.wait_for_hung_call()
        assert child.poll() is None
        assert list(directory.backing.iterdir()) == []
        directory.release()
        assert child.wait(60) == 0
    assert (directory.backing / "late").is_dir()
    wait_until(lambda: directory.waiting() == 0, "all calls are answered")


def test_a_process_that_hangs_can_be_killed(directory: HangingDirectory) -> None:
    directory.hang()
    with process("mkdir", str(directory.path / "never")) as child:
        directory.wait_for_hung_call()
        child.kill()
        assert child.wait(60) == -signal.SIGKILL
    directory.release()
    assert list(directory.path.iterdir()) == []


def test_a_process_with_an_open_file_can_be_killed(directory: HangingDirectory) -> None:
    script = "exec 3>open; echo x >&3; echo ready; read -r line; mkdir never"
    command = ("sh", "-c", script)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=directory.path) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        directory.hang()
        child.stdin.write(b"go\n")
        child.stdin.flush()
        directory.wait_for_hung_call()
        child.kill()
        assert child.wait(60) == -signal.SIGKILL
    directory.release()
    assert (directory.path / "open").read_text() == "x\n"


def test_a_process_can_hang_beyond_sigkill(directory: HangingDirectory) -> None:
    directory.hang(killable=False)
    with process("mkdir", str(directory.path / "late")) as child:
        directory.wait_for_hung_call()
        child.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        directory.release()
        assert child.wait(60) == -signal.SIGKILL


def test_one_operation_hangs_after_some_went_through(directory: HangingDirectory) -> None:
    directory.hang(only={"mkdir"}, after=2)
    script = "mkdir one && touch file && mkdir two && ls && mkdir three"
    with process("sh", "-c", f"cd {directory.path} && {script}") as child:
        wait_until(lambda: (directory.backing / "two").exists(), "two directories are made")
        directory.wait_for_hung_call()
        assert child.poll() is None
        assert not (directory.backing / "three").exists()
        directory.release()
        assert child.wait(60) == 0
    assert (directory.backing / "three").exists()


@pytest.mark.parametrize("killable", [True, False])
def test_stopping_ends_what_hangs(tmp_path: Path, killable: bool) -> None:
    (tmp_path / "backing").mkdir()
    directory = HangingDirectory(tmp_path / "backing", tmp_path / "mnt")
    directory.start()
    # By descriptor: whoever else asks this mount for something, its child cannot come too late and work below it.
    mounted = os.open(directory.path, os.O_PATH)
    try:
        directory.hang(killable=killable)
        with process("mkdir", f"/proc/self/fd/{mounted}/never", fds=(mounted,)) as child:
            directory.wait_for_hung_call()
            directory.stop()
            assert child.wait(60) == 1
    finally:
        os.close(mounted)
    assert not is_mounted(directory.path)
    assert list(directory.path.iterdir()) == []
    directory.start()
    (directory.path / "again").mkdir()
    directory.stop()
    assert (tmp_path / "backing" / "again").is_dir()


@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.ESTALE, errno.EACCES])
def test_every_call_fails(directory: HangingDirectory, error: int) -> None:
    (directory.path / "file").write_text("kept")
    directory.fail(error)
    for call in (os.stat, os.listdir, os.mkdir, os.statvfs):
        with pytest.raises(OSError) as caught:
            call(directory.path / "file")
        assert caught.value.errno == error
    directory.release()
    assert (directory.path / "file").read_text() == "kept"


def test_changes_alone_fail(directory: HangingDirectory) -> None:
    (directory.path / "file").write_text("kept")
    directory.fail(errno.EROFS, only=CHANGES)
    assert (directory.path / "file").read_text() == "kept"
    changes: list[Callable[[], object]] = [
        lambda: (directory.path / "new").touch(),
        lambda: (directory.path / "file").write_text("changed"),
        lambda: (directory.path / "file").rename(directory.path / "renamed"),
        lambda: (directory.path / "file").unlink(),
        lambda: (directory.path / "file").chmod(0o600),
        lambda: os.utime(directory.path / "file"),
    ]
    for change in changes:
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS
    assert (directory.backing / "file").read_text() == "kept"


def test_the_disk_fills_up_in_the_middle(directory: HangingDirectory) -> None:
    directory.fail(errno.ENOSPC, only={"write"}, after=3)
    descriptor = os.open(directory.path / "file", os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(3):
            os.write(descriptor, b"x" * 1000)
        with pytest.raises(OSError) as caught:
            os.write(descriptor, b"x" * 1000)
    finally:
        os.close(descriptor)
    assert caught.value.errno == errno.ENOSPC
    assert (directory.backing / "file").stat().st_size == 3000


@pytest.mark.parametrize("flush", [True, False])
def test_closing_fails_where_flush_is_asked_for(tmp_path: Path, flush: bool) -> None:
    (tmp_path / "backing").mkdir()
    with HangingDirectory(tmp_path / "backing", tmp_path / "mnt", flush=flush) as directory:
        directory.fail(errno.EIO, only={"flush"})
        descriptor = os.open(directory.path / "file", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"x")
        if flush:
            with pytest.raises(OSError) as caught:
                os.close(descriptor)
            assert caught.value.errno == errno.EIO
        else:
            os.close(descriptor)


def test_calls_take_longer(directory: HangingDirectory) -> None:
    directory.delay(0.2, only={"mkdir"})
    began = time.monotonic()
    (directory.path / "slow").mkdir()
    assert time.monotonic() - began >= 0.2
    directory.delay(200, only={"mkdir"})
    directory.release()
    began = time.monotonic()
    (directory.path / "fast").mkdir()
    assert time.monotonic() - began < 200


def test_what_cannot_be_meant_is_refused(directory: HangingDirectory) -> None:
    with pytest.raises(ValueError, match="no such operation: rmtree"):
        directory.hang(only={"rmtree"})
    with pytest.raises(ValueError, match="not an errno"):
        directory.fail(errno.ENOSYS)


@pytest.mark.parametrize("killable", [True, False])
def test_killed_tests_leave_nothing_behind(tmp_path: Path, killable: bool) -> None:
    require_root("mounting a directory that hangs")
    (tmp_path / "backing").mkdir()
    program = """
        import pathlib, signal, sys
        from tests.plugins.hang import HangingDirectory
        home = pathlib.Path(sys.argv[1])
        directory = HangingDirectory(home / "backing", home / "mnt")
        directory.start()
        directory.hang(killable=sys.argv[2] == "True")
        print(directory.pid, flush=True)
        signal.pause()
    """
    arguments = (sys.executable, "-c", textwrap.dedent(program), str(tmp_path), str(killable))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())
        assert is_mounted(tmp_path / "mnt")
        tests.kill()
        wait_until(lambda: not is_mounted(tmp_path / "mnt"), "the mount goes")
        wait_until(lambda: has_ended(pid), "its process ends, even a stopped one")
    assert list((tmp_path / "mnt").iterdir()) == []
