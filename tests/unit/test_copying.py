"""`sync` and `verify` as a person meets them: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from nfs_provisioner.cli import main


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
    assert piped.stderr == ""
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
    assert b"files" in shown
