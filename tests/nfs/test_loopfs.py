"""The harness of full and read-only disks: they are what they claim to be, and nothing of them stays."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugins.hang import is_mounted
from tests.plugins.loopfs import MIB, SMALLEST, FileSystemType, LoopFileSystem
from tests.plugins.packages import find, require_root


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LoopFileSystem]:
    fstype: FileSystemType = request.param
    with LoopFileSystem(tmp_path, max(SMALLEST[fstype], 16 * MIB), fstype) as file_system:
        yield file_system


def loop_devices_of(image: Path) -> str:
    command = (find("losetup"), "--noheadings", "--output", "NAME", "--associated", str(image))
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_it_is_a_file_system_of_its_own(disk: LoopFileSystem, tmp_path: Path) -> None:
    assert disk.path.stat().st_dev != tmp_path.stat().st_dev
    assert disk.free() < SMALLEST["xfs"]


def test_a_full_disk_has_no_room_until_something_goes(disk: LoopFileSystem) -> None:
    ballast = disk.fill()
    with pytest.raises(OSError) as caught:
        (disk.path / "data").write_bytes(b"x" * MIB)
    assert caught.value.errno == errno.ENOSPC
    ballast.unlink()
    (disk.path / "data").write_bytes(b"x" * MIB)


def test_some_room_can_be_left(disk: LoopFileSystem) -> None:
    disk.fill(leave=2 * MIB)
    assert MIB < disk.free() <= 2 * MIB
    (disk.path / "data").write_bytes(b"x" * MIB)
    assert disk.free() <= MIB


def test_a_read_only_disk_can_be_made_writable_again(disk: LoopFileSystem) -> None:
    (disk.path / "data").write_text("kept")
    disk.read_only()
    with pytest.raises(OSError) as caught:
        (disk.path / "other").write_text("")
    assert caught.value.errno == errno.EROFS
    assert (disk.path / "data").read_text() == "kept"
    disk.read_only(False)
    (disk.path / "other").write_text("")


def test_a_disk_goes_and_comes_back(disk: LoopFileSystem) -> None:
    (disk.path / "data").write_text("kept")
    disk.unmount()
    assert list(disk.path.iterdir()) == []
    disk.mount(read_only=True)
    assert (disk.path / "data").read_text() == "kept"
    with pytest.raises(OSError) as caught:
        (disk.path / "data").unlink()
    assert caught.value.errno == errno.EROFS


def test_nothing_stays_mounted(tmp_path: Path) -> None:
    with LoopFileSystem(tmp_path, 4 * MIB) as disk:
        assert is_mounted(disk.path)
        assert loop_devices_of(disk.image)
    assert not is_mounted(disk.path)
    deadline = time.monotonic() + 60
    while loop_devices_of(disk.image):  # whoever looks at every new device, as udev does, holds it for a moment
        assert time.monotonic() < deadline, "the loop device stays"
        time.sleep(0.005)


def test_killed_tests_leave_no_mount(tmp_path: Path) -> None:
    program = """
        import pathlib, signal, sys
        from tests.plugins.loopfs import MIB, LoopFileSystem
        disk = LoopFileSystem(pathlib.Path(sys.argv[1]), 4 * MIB)
        disk.format()
        disk.mount()
        print("mounted", flush=True)
        signal.pause()
    """
    require_root("mounting a file system")
    arguments = (sys.executable, "-c", textwrap.dedent(program), str(tmp_path))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as tests:
        assert tests.stdout is not None
        assert tests.stdout.readline() == "mounted\n"
        assert is_mounted(tmp_path / "mnt")
        tests.kill()
        deadline = time.monotonic() + 60
        while is_mounted(tmp_path / "mnt"):
            assert time.monotonic() < deadline, "the guard does not unmount"
            time.sleep(0.005)
