"""`sync` and `verify` as a person meets them: what they print, and their exit codes."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nfs_provisioner.cli import main
from tests.plugins.hang import HangingDirectory
from tests.plugins.loopfs import MIB, LoopFileSystem


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("content")
    target.mkdir()
    return source, target


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_sync_makes_equal_and_verify_says_so(sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", *sides) == 1
    assert "copy sub/file" in capsys.readouterr().out
    assert run("sync", *sides) == 0
    assert "1 files (7 bytes) copied" in capsys.readouterr().out
    assert run("verify", "--checksum", *sides) == 0
    assert capsys.readouterr().out == "the two sides are equal\n"
    assert run("sync", "-o", "json", *sides) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clean"], found["counts"]["copied_files"], found["counts"]["files"]) == (True, 0, 1)
    assert "sub" not in str(found), "a summary has nothing of each directory"


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    target = sides[1]
    (target / "old").write_text("x")
    assert run("sync", "--dry-run", *sides) == 0
    printed = capsys.readouterr().out
    assert "copy sub/file\n" in printed and "delete old\n" in printed and "1 would be deleted" in printed
    assert os.listdir(target) == ["old"]


def test_h30_other_content_under_equal_times_is_told_and_kept_on_both_sides(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = sides
    assert run("sync", *sides) == 0
    file = target / "sub" / "file"
    times = file.stat()
    file.write_text("rotten!")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    capsys.readouterr()
    assert run("verify", "--checksum", *sides) == 1
    assert "same size and times, other content (kept on both sides): sub/file" in capsys.readouterr().err
    assert (file.read_text(), (source / "sub" / "file").read_text()) == ("rotten!", "content")


def test_h20_an_empty_source_does_not_empty_the_target(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run("sync", *sides)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("sync", empty, sides[1]) == 3
    assert "is it mounted?" in capsys.readouterr().err
    assert (sides[1] / "sub" / "file").exists()
    assert run("sync", "--allow-empty", empty, sides[1]) == 0
    assert os.listdir(sides[1]) == []


def test_directories_that_are_one_or_not_there_are_refused(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = sides
    assert run("sync", source, source / "sub") == 3
    assert run("sync", source, source / "missing") == 2
    assert "missing cannot be opened as a directory: No such file" in capsys.readouterr().err


def test_h31_names_that_no_terminal_can_print_are_escaped(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (sides[0] / os.fsdecode(b"\xff\n")).write_text("x")
    assert run("verify", *sides) == 1
    assert "copy \\xff\\n\n" in capsys.readouterr().out


def test_a_terminal_sees_progress_and_a_pipe_does_not(sides: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "nfs_provisioner", "sync", *map(str, sides)]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    told = [line for line in piped.stderr.splitlines() if not line.startswith("not compared: ")]
    assert told == []
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end was closed
                break
        assert process.wait() == 0
    os.close(ours)
    assert re.search(rb"\d+ files, [\d.]+(B|Ki), [\d.]+(B|Ki)/s", shown), shown


def test_h22_a_target_that_cannot_be_written_is_named_with_what_would_help(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with LoopFileSystem(tmp_path / "disk", 4 * MIB) as disk:
        disk.unmount()
        disk.mount(read_only=True)
        assert run("sync", sides[0], disk.path) == 1
        told = capsys.readouterr().err
        assert (
            f"nothing can be written in {disk.path} (Read-only file system)" in told and "mount it read-write" in told
        )
        assert told.count("\n") == 1
    with HangingDirectory(sides[1], tmp_path / "mount") as target:
        target.fail(errno.EACCES, only={"mkdir"})
        assert run("sync", sides[0], target.path) == 1
        told = capsys.readouterr().err
        assert f"nothing can be written in {target.path} (Permission denied)" in told and "no_root_squash" in told
        assert told.count("\n") == 1
        target.fail(errno.ENOSPC, only={"create"})
        assert run("sync", sides[0], target.path) == 1
        assert "(No space left on device): make room" in capsys.readouterr().err
    assert os.listdir(sides[1]) == []


def test_h55_after_a_sync_to_whole_seconds_the_sides_verify_as_equal(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with LoopFileSystem(tmp_path / "disk", 4 * MIB, options=("-I", "128")) as disk:
        assert run("sync", sides[0], disk.path) == 0
        assert "not compared: parts of a second in times" in capsys.readouterr().err
        assert run("verify", "--checksum", sides[0], disk.path) == 0
        printed = capsys.readouterr()
        assert printed.out == "the two sides are equal\n"
        assert printed.err.startswith("not compared: parts of a second in times")
        assert run("sync", "--dry-run", sides[0], disk.path) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1  # nothing to do
        os.utime(disk.path / "sub" / "file", (1, 1))
        assert run("verify", sides[0], disk.path) == 1


def test_a_target_of_an_archives_whole_seconds_is_compared_to_the_nanosecond(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sync", *sides) == 0
    for path in (sides[1] / "sub" / "file", sides[1] / "sub", sides[1]):
        os.utime(path, (path.stat().st_mtime // 1, path.stat().st_mtime // 1))
    capsys.readouterr()
    assert run("verify", *sides) == 1
    assert "parts of a second" not in capsys.readouterr().err


def test_h55_a_target_without_extended_attributes_is_compared_by_the_rest(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    os.setxattr(sides[0] / "sub" / "file", "user.note", b"x")
    with HangingDirectory(sides[1], tmp_path / "mount") as target:
        calls = {"getxattr", "setxattr", "listxattr"}
        target.fail(errno.EOPNOTSUPP, only=calls)
        assert run("sync", sides[0], target.path) == 0
        capsys.readouterr()
        assert run("verify", sides[0], target.path) == 0
        assert "not compared: extended attributes, POSIX ACLs" in capsys.readouterr().err
    assert run("verify", *sides) == 1


def test_h30_verify_does_not_vouch_for_what_it_left_out(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (sides[0] / "mount").mkdir()
    (sides[0] / ".nfs-provisioner").mkdir()
    assert run("sync", *sides) == 0
    capsys.readouterr()
    assert run("verify", *sides) == 0  # a name of ours is no part of the tree
    assert capsys.readouterr().out == "the two sides are equal, but for what was left out: .nfs-provisioner\n"
    with LoopFileSystem(tmp_path / "disk", 4 * MIB, mountpoint=sides[0] / "mount"):
        assert run("verify", "--checksum", *sides) == 1
    printed = capsys.readouterr()
    assert printed.out == "the two sides are equal, but for what was left out: .nfs-provisioner, mount\n"
    assert "skipped: mount: something is mounted here" in printed.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_h27_a_sync_that_is_told_to_end_leaves_nothing_of_its_own(
    number: signal.Signals, sides: tuple[Path, Path], tmp_path: Path
) -> None:
    (sides[0] / "large").write_bytes(b"x" * 30_000_000)
    with HangingDirectory(sides[0], tmp_path / "mount") as source:
        source.delay(0.5, only={"read"})  # the copy takes minutes, and is not waited for
        command = [sys.executable, "-m", "nfs_provisioner", "sync", str(source.path), str(sides[1])]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            end = time.monotonic() + 120
            while not list(sides[1].glob(".nfs-provisioner-sync-*/staged-*/*")):
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.01)
            process.send_signal(number)
            try:
                told = process.communicate(timeout=120)[1]
            finally:
                source.release()
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert b"Traceback" not in told
    assert os.listdir(sides[1]) == []
