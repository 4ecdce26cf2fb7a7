"""A pass between two directories: what it copies, what it keeps, what it refuses."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.errors import RefusedForSafety, RetryLater
from nfs_provisioner.replication import plain, tree
from nfs_provisioner.replication.passes import Job, Result, run_pass
from nfs_provisioner.replication.usage import UsageIndex
from tests.plugins.packages import unavailable
from tests.plugins.passes import descriptors

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can mount, chown and make devices")


@dataclass
class Sides:
    """Source, target, staging and trash, and what the last clean pass left."""

    base: Path
    job: Job

    @property
    def source(self) -> Path:
        return self.base / "source"

    @property
    def target(self) -> Path:
        return self.base / "target"

    @property
    def trash(self) -> Path:
        return self.base / "trash"

    def run(self, **changes: Any) -> Result:
        result = run_pass(replace(self.job, **changes))
        if result.clean and not changes.get("dry_run"):
            self.job = replace(self.job, base=result.began, directories=result.directories)
        self.job = replace(self.job, missed=result.deferred)
        return result

    def differences(self) -> str:
        """What rsync would still do; it reads everything on both sides."""
        found = subprocess.run(
            ["rsync", "-aHAXnc", "--delete", "--itemize-changes", f"{self.source}/", f"{self.target}/"],
            capture_output=True,
            check=True,
        )
        return found.stdout.decode(errors="replace")


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Sides]:
    fds = []
    for name in ("source", "target", "staging", "trash"):
        (tmp_path / name).mkdir()
        fds.append(os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY))
    before = descriptors((str(tmp_path),))
    source, target, staging, trash = fds
    yield Sides(tmp_path, Job(source=source, target=target, staging=staging, trash=trash, base=None))
    assert len(descriptors((str(tmp_path),))) <= len(before), "descriptors leaked"
    for fd in fds:
        os.close(fd)


def everything(root: Path) -> None:
    """One of each kind of entry."""
    (root / "a/b").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o2755)
    (root / "a/file").write_bytes(b"content")
    (root / "a/b/large").write_bytes(os.urandom(3_000_000))
    (root / "suid").write_bytes(b"x")
    (root / "suid").chmod(0o4755)
    os.setxattr(root / "a", "user.note", b"1")
    os.setxattr(root / "suid", "user.note", b"2")
    os.link(root / "a/file", root / "a/b/linked")
    (root / "link").symlink_to("/nonexistent/\n")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root)
        server.bind("socket")
        os.chdir(here)
    os.close(os.open(os.fsencode(root) + b"/\xff\xfe\n", os.O_CREAT, 0o640))
    with open(root / "sparse", "wb") as file:
        file.seek(20_000_000)
        file.write(b"end")
        file.truncate(40_000_000)
    os.utime(root / "suid", ns=(1, 1))
    os.utime(root / "a/b", ns=(4_000_000_000_123_456_789, 4_000_000_000_123_456_789))
    os.utime(root / "link", ns=(5, 123_456_789), follow_symlinks=False)
    if ROOT:
        os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(root / "suid", 77, 88)
        (root / "suid").chmod(0o6755)
        os.lchown(root / "link", 77, 88)


@pytest.mark.parametrize("threads", [1, 4, 16])
def test_every_kind_of_entry_arrives_and_a_second_pass_finds_nothing(sides: Sides, threads: int) -> None:
    everything(sides.source)
    first = sides.run(threads=threads)
    assert first.clean and not first.skipped
    assert sides.differences() == ""
    assert (sides.target / "sparse").stat().st_blocks * 512 < 1_000_000
    writes: list[int] = []
    second = sides.run(threads=threads, guard=lambda: writes.append(1))
    assert second.clean and (second.counts.copied_files, second.counts.mended, second.counts.linked) == (0, 0, 0)
    assert len(writes) == 1  # the one at the beginning: nothing was about to be written
    assert os.listdir(sides.base / "staging") == []


def test_usage_is_what_du_says(sides: Sides) -> None:
    everything(sides.source)
    index = UsageIndex()
    index.replace(sides.run().usage)
    said = [
        int(subprocess.run(["du", "-s", *how, sides.source], capture_output=True, check=True).stdout.split()[0])
        for how in (["--block-size=1"], ["--inodes"])
    ]
    assert [index.bytes, index.inodes] == said


def test_h42_what_is_replaced_or_deleted_is_in_trash(sides: Sides) -> None:
    (sides.source / "d").mkdir()
    (sides.source / "d/f").write_text("old")
    (sides.source / "gone").mkdir()
    (sides.source / "gone/g").write_text("g")
    sides.run()
    (sides.source / "d/f").write_text("newer")
    shutil.rmtree(sides.source / "gone")
    assert sides.run().counts.deleted == 1
    assert (sides.target / "d/f").read_text() == "newer"
    assert (sides.trash / "d/f").read_text() == "old"
    assert (sides.trash / "gone/g").read_text() == "g"
    (sides.source / "d/f").write_text("newest")
    sides.run()
    assert sorted(path.read_text() for path in (sides.trash / "d").iterdir()) == ["newer", "old"]


def test_h24_a_rewrite_that_keeps_size_and_mtime_is_copied(sides: Sides) -> None:
    file = sides.source / "f"
    file.write_text("aaaa")
    sides.run()
    was = file.stat()
    file.write_text("bbbb")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    sides.run()
    assert (sides.target / "f").read_text() == "bbbb"


def test_owner_mode_and_attributes_are_mended_in_place(sides: Sides) -> None:
    (sides.source / "f").write_text("f")
    sides.run()
    inode = (sides.target / "f").stat().st_ino
    (sides.source / "f").chmod(0o4711)
    os.setxattr(sides.source / "f", "user.new", b"1")
    (sides.source).chmod(0o750)
    result = sides.run()
    assert (result.counts.mended, result.counts.copied_files) == (2, 0)
    assert (sides.target / "f").stat().st_ino == inode
    assert sides.differences() == ""


def test_h25_a_file_that_never_holds_still_keeps_its_old_copy(sides: Sides) -> None:
    file = sides.source / "f"
    file.write_bytes(b"a" * 300_000)
    sides.run()

    def write() -> None:
        with file.open("ab") as grown:
            grown.write(b"b")

    write()
    result = sides.run(guard=write)
    assert not result.clean and result.unstable == ("f",)
    assert (sides.target / "f").read_bytes() == b"a" * 300_000
    assert sides.run().clean
    assert sides.differences() == ""


def test_h25_a_torn_copy_without_an_older_one_is_copied_again(sides: Sides) -> None:
    (sides.source / "d").mkdir()
    file = sides.source / "d/f"
    file.write_bytes(b"a" * 300_000)

    def write() -> None:
        with file.open("ab") as grown:
            grown.write(b"b")

    assert not sides.run(guard=write).clean
    assert (sides.target / "d/f").stat().st_mtime_ns == 1
    assert sides.run().clean
    assert sides.differences() == ""


def test_h44_a_deletion_waits_when_its_directory_changed_during_the_pass(sides: Sides) -> None:
    for name in "ab":
        (sides.source / name).write_text(name)
    sides.run()
    os.unlink(sides.source / "a")
    (sides.source / "b").write_text("changed")
    result = sides.run(guard=lambda: (sides.source / f"c{random.random()}").touch())
    assert not result.clean and result.deferred == {"a"}
    assert (sides.target / "a").exists()
    again = sides.run(guard=lambda: (sides.source / f"x{random.random()}").touch())
    assert again.counts.deleted == 1  # missed twice: it is gone, however busy the directory


def test_h44_what_the_listing_missed_is_not_deleted(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (sides.source / name).write_text(name)
    sides.run()
    honest = tree.list_directory

    def blind(fd: int, **how: Any) -> tree.Listing:
        listing = honest(fd, **how)
        if how["until_settled"] and listing.stats:
            listing.stats.pop("a", None)
        return listing

    with monkeypatch.context() as patched:
        patched.setattr(tree, "list_directory", blind)
        result = sides.run()
    assert (sides.target / "a").exists() and not result.clean


def test_deletions_above_the_limit_wait_while_copies_go_on(sides: Sides) -> None:
    (sides.source / "d").mkdir()
    for name in range(10):
        (sides.source / f"d/{name}").touch()
    sides.run()
    shutil.rmtree(sides.source / "d")
    (sides.source / "new").touch()
    asked: list[tuple[int, int]] = []

    def limit(deletions: int, entries: int) -> bool:
        asked.append((deletions, entries))
        return False

    result = sides.run(delete_limit=limit)
    assert asked == [(11, 11)] and result.waiting == 11 and not result.clean
    assert (sides.target / "d/3").exists() and (sides.target / "new").exists()


def test_h20_no_deletion_without_a_second_proof(sides: Sides) -> None:
    (sides.source / "a").touch()
    sides.run()
    os.unlink(sides.source / "a")
    proofs: list[int] = []

    def prove() -> None:
        proofs.append(1)
        if len(proofs) > 1:
            raise RefusedForSafety("another disk is mounted")

    with pytest.raises(RefusedForSafety):
        sides.run(prove=prove)
    assert (sides.target / "a").exists()


def test_h28_a_renamed_directory_is_renamed(sides: Sides) -> None:
    (sides.source / "old/sub").mkdir(parents=True)
    (sides.source / "old/sub/f").write_bytes(b"f" * 1000)
    sides.run()
    inode = (sides.target / "old/sub/f").stat().st_ino
    (sides.source / "new").mkdir()
    os.rename(sides.source / "old", sides.source / "new/place")
    os.rename(sides.source / "new/place/sub", sides.source / "new/place/bus")
    result = sides.run()
    assert result.clean and (result.counts.renamed, result.counts.copied_files, result.counts.deleted) == (2, 0, 0)
    assert (sides.target / "new/place/bus/f").stat().st_ino == inode
    assert sides.differences() == ""


def test_h53_an_inode_number_used_again_is_no_rename(sides: Sides) -> None:
    (sides.source / "old").mkdir()
    (sides.source / "old/f").write_text("other")
    result = sides.run()
    inode, born = result.directories["old"]
    sides.job = replace(sides.job, directories={"old": (inode, 1)})
    os.rename(sides.source / "old", sides.source / "new")
    assert sides.run().counts.renamed == 0
    assert sides.differences() == "" and born != 1


def test_hard_links_follow_every_regrouping(sides: Sides) -> None:
    for name in "ac":
        (sides.source / name).write_text("same")
        os.utime(sides.source / name, ns=(7, 7))
    os.link(sides.source / "a", sides.source / "b")
    os.link(sides.source / "c", sides.source / "d")
    sides.run()
    assert sides.differences() == ""
    for old, new in (("a", "x"), ("b", "y"), ("c", "b"), ("x", "c"), ("y", "a")):
        os.rename(sides.source / old, sides.source / new)
    os.unlink(sides.source / "a")
    (sides.source / "a").write_text("alone")
    sides.run()
    assert sides.differences() == ""
    assert sides.run().counts.linked == 0


def test_h26_directories_files_and_links_take_each_others_place(sides: Sides) -> None:
    (sides.source / "dir/sub").mkdir(parents=True)
    (sides.source / "dir/sub/f").touch()
    (sides.source / "file").write_text("file")
    (sides.source / "tree").mkdir()
    sides.run()
    shutil.rmtree(sides.source / "dir")
    (sides.source / "dir").write_text("a file now")
    (sides.source / "file").unlink()
    (sides.source / "file").mkdir()
    (sides.source / "file/f").touch()
    (sides.source / "tree").rmdir()
    (sides.source / "tree").symlink_to("/etc")
    assert sides.run(delete_limit=lambda deletions, entries: deletions == 4).clean
    assert sides.differences() == ""
    assert (sides.trash / "dir/sub/f").exists() and (sides.trash / "file").read_text() == "file"


def test_h11_a_directory_swapped_for_a_link_leads_nowhere(sides: Sides) -> None:
    outside = sides.base / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (sides.source / "a").mkdir()
    (sides.source / "a/f").write_text("f")
    (sides.source / "b").write_text("b")

    def swap() -> None:
        if (sides.source / "a").is_dir() and not (sides.source / "a").is_symlink():
            shutil.rmtree(sides.source / "a")
            (sides.source / "a").symlink_to(outside)

    sides.run(guard=swap)
    sides.run()
    assert not list(sides.target.rglob("secret"))
    assert (sides.target / "a").is_symlink() and (outside / "secret").exists()


@pytest.mark.parametrize("step_by_step", [False, True])
def test_paths_are_opened_below_the_root_only(
    sides: Sides, monkeypatch: pytest.MonkeyPatch, step_by_step: bool
) -> None:
    if step_by_step:
        monkeypatch.setattr(tree, "_resolve", tree._step)
    (sides.source / "real").mkdir()
    (sides.source / "link").symlink_to("real")
    os.close(tree.open_directory(sides.job.source, "real"))
    for path in ("link", "..", "real/../..", "/etc", "missing", "link/x"):
        with pytest.raises(OSError):
            os.close(tree.open_directory(sides.job.source, path))


@pytest.mark.parametrize("threads", [4, 16])
def test_h31_paths_longer_than_a_system_call_takes(sides: Sides, threads: int) -> None:
    fd, part = os.dup(sides.job.source), "d" * 250
    for _ in range(20):
        os.mkdir(part, dir_fd=fd)
        below = os.open(part, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("f" * 255, os.O_CREAT, dir_fd=fd))
    os.close(fd)
    assert sides.run(threads=threads).clean
    below = tree.open_directory(sides.job.target, "/".join([part] * 20))
    assert os.listdir(below) == ["f" * 255]
    os.close(below)


def test_h31_a_large_directory_is_compared_in_parts(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfs_provisioner.replication.changes.SMALL", 50)
    for number in range(500):
        (sides.source / f"{number}").write_text(str(number))
    assert sides.run().counts.copied_files == 500
    for number in range(0, 500, 7):
        os.unlink(sides.source / f"{number}")
        (sides.source / f"new{number}").touch()
    assert sides.run().counts.deleted == 72
    assert sides.differences() == ""


def test_h30_other_content_under_equal_metadata_is_named_and_kept(sides: Sides) -> None:
    (sides.source / "f").write_text("good")
    sides.run()
    later = (sides.source / "f").stat().st_ctime_ns + 3_000_000_000
    was = (sides.target / "f").stat()
    (sides.target / "f").write_text("rot!")
    os.utime(sides.target / "f", ns=(was.st_atime_ns, was.st_mtime_ns))
    assert sides.run(base=later).clean
    result = sides.run(base=later, checksum=True)
    assert result.different == ("f",) and not result.clean
    assert (sides.target / "f").read_text() == "rot!"


def test_a_dry_run_says_what_a_pass_would_do_and_does_nothing(sides: Sides) -> None:
    (sides.source / "moved/d").mkdir(parents=True)
    for name in ("mended", "deleted", "kept"):
        (sides.source / name).touch()
    sides.run()
    os.rename(sides.source / "moved", sides.source / "renamed")
    (sides.source / "mended").chmod(0o600)
    (sides.source / "deleted").unlink()
    (sides.source / "new").mkdir()
    (sides.source / "new/f").touch()
    before = sorted(sides.target.rglob("*"))
    log = sides.run(dry_run=True, staging=-1).log
    assert set(log) == {
        "copy new",
        "copy new/f",
        "mend mended",
        "mend .",
        "delete deleted",
        "rename moved -> renamed",
    }
    assert sorted(sides.target.rglob("*")) == before
    sides.run()
    assert sides.differences() == ""


def test_only_dirty_directories_are_looked_at(sides: Sides) -> None:
    for name in ("a", "b"):
        (sides.source / name / "sub").mkdir(parents=True)
    sides.run()
    for name in ("a", "b"):
        (sides.source / name / "f").write_text("new")
    (sides.source / "a/fresh/deep").mkdir(parents=True)
    (sides.source / "a/fresh/deep/f").touch()
    os.rename(sides.source / "a/sub", sides.source / "a/bus")
    result = sides.run(only=frozenset({"a", "a/fresh/deep", "a/gone/away"}))
    assert (sides.target / "a/f").exists() and not (sides.target / "b/f").exists()
    assert (sides.target / "a/fresh/deep/f").exists()
    assert result.counts.renamed == 1
    assert set(result.directories) == {"", "a", "a/bus", "a/fresh", "a/fresh/deep", "b", "b/sub"}
    sides.run()
    assert sides.differences() == ""


def test_files_that_an_nfs_client_keeps_open_are_left_out(sides: Sides) -> None:
    (sides.source / "f").touch()
    silly = f".nfs{(sides.source / 'f').stat().st_ino:016x}0000002a"
    os.rename(sides.source / "f", sides.source / silly)
    (sides.source / ".nfs000000000000000000000001").touch()
    assert sides.run().clean
    assert os.listdir(sides.target) == [".nfs000000000000000000000001"]


def test_a_stop_leaves_nothing_half_published(sides: Sides) -> None:
    for number in range(50):
        (sides.source / f"d{number}").mkdir()
        (sides.source / f"d{number}/f").write_text("content")
    for stop in range(1, 120, 7):
        left = [stop]

        def guard(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise RetryLater("the lease is lost")

        with pytest.raises(RetryLater):
            sides.run(guard=guard)
        for name in os.listdir(sides.target):
            assert (sides.target / name / "f").read_text() == "content"
        shutil.rmtree(sides.base / "staging", ignore_errors=True)
        (sides.base / "staging").mkdir()
        anew = os.open(sides.base / "staging", os.O_RDONLY)
        os.dup2(anew, sides.job.staging)  # the same number: it is the fixture's to close
        os.close(anew)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    places: list[Path] = []

    def mount(place: Path, options: str) -> None:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=False).returncode:
            unavailable("mounts nothing")
        places.append(place)

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", "-l", place], check=True)


@needs_root
def test_nothing_passes_a_mount_point_on_either_side(sides: Sides, mounted: Callable[[Path, str], None]) -> None:
    for root in (sides.source, sides.target):
        (root / "here").mkdir()
        (root / "there/deep").mkdir(parents=True)
    mounted(sides.source / "here", "size=1m")
    (sides.source / "here/f").touch()
    mounted(sides.target / "there/deep", "size=1m")
    (sides.target / "there/deep/precious").touch()
    (sides.source / "there/deep").rmdir()
    result = sides.run()
    assert [name for name, _ in result.skipped] == ["here"]
    assert [name for name, _ in result.errors] == ["there/deep"]
    assert not (sides.target / "here/f").exists() and (sides.target / "there/deep/precious").exists()


@needs_root
def test_h51_a_full_target_still_deletes_and_then_recovers(
    tmp_path: Path, mounted: Callable[[Path, str], None]
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "disk").mkdir()
    mounted(tmp_path / "disk", "size=4m")
    for name in ("target", "staging", "trash"):
        (tmp_path / "disk" / name).mkdir()
    fds = [os.open(tmp_path / name, os.O_RDONLY) for name in ("source", "disk/target", "disk/staging", "disk/trash")]
    job = Job(source=fds[0], target=fds[1], staging=fds[2], trash=fds[3], base=None)
    (tmp_path / "source/old").write_bytes(os.urandom(3_000_000))
    assert run_pass(job).clean
    (tmp_path / "source/old").unlink()
    (tmp_path / "source/new").write_bytes(os.urandom(2_000_000))
    with pytest.raises(RetryLater, match="full") as refused:
        run_pass(job)
    assert refused.value.reason == "TargetFull"
    assert os.listdir(tmp_path / "disk/trash") == ["old"]
    (tmp_path / "disk/trash/old").unlink()
    assert run_pass(job).clean
    assert os.listdir(tmp_path / "disk/target") == ["new"]
    for fd in fds:
        os.close(fd)


@needs_root
def test_a_staging_directory_of_another_file_system_is_refused(
    sides: Sides, mounted: Callable[[Path, str], None]
) -> None:
    (sides.base / "elsewhere").mkdir()
    mounted(sides.base / "elsewhere", "size=1m")
    fd = os.open(sides.base / "elsewhere", os.O_RDONLY)
    try:
        with pytest.raises(RefusedForSafety, match="EXDEV"):
            sides.run(staging=fd)
    finally:
        os.close(fd)


def test_sync_of_plain_directories(sides: Sides) -> None:
    everything(sides.source)
    (sides.target / "surplus").mkdir()
    (sides.target / "surplus/f").touch()
    assert plain.sync(str(sides.source), str(sides.target)).clean
    assert sides.differences() == ""
    again = plain.sync(str(sides.source), str(sides.target))
    assert again.clean and again.counts.copied_files == 0
    assert plain.verify(str(sides.source), str(sides.target), checksum=True).log == ()


def test_sync_refuses_what_would_destroy(sides: Sides) -> None:
    (sides.target / "precious").touch()
    (sides.source / "d").mkdir()
    for source, target in (
        (sides.source, sides.source),
        (sides.source, sides.source / "d"),
        (sides.source / "d", sides.source),
    ):
        with pytest.raises(RefusedForSafety, match="inside"):
            plain.sync(str(source), str(target))
    (sides.source / "d").rmdir()
    with pytest.raises(RefusedForSafety, match="empty"):
        plain.sync(str(sides.source), str(sides.target))
    assert (sides.target / "precious").exists()
    assert plain.sync(str(sides.source), str(sides.target), allow_empty=True).counts.deleted == 1


def test_sync_clears_up_after_a_killed_run_but_not_after_a_running_one(sides: Sides) -> None:
    (sides.source / "f").touch()
    left = ".nfs-provisioner-sync-0123456789abcdef"
    (sides.target / left).mkdir()
    (sides.target / left / "junk").touch()
    with plain._staging(sides.job.target, "target"), pytest.raises(RefusedForSafety, match="running"):
        plain.sync(str(sides.source), str(sides.target))
    (sides.source / left).mkdir()
    result = plain.sync(str(sides.source), str(sides.target))
    assert os.listdir(sides.target) == ["f"] and [name for name, _ in result.skipped] == [left]


def test_verify_names_what_differs(sides: Sides) -> None:
    for name in ("same", "other"):
        (sides.source / name).write_text("content")
    plain.sync(str(sides.source), str(sides.target))
    was = (sides.target / "other").stat()
    (sides.target / "other").write_text("tnetnoc")
    os.utime(sides.target / "other", ns=(was.st_atime_ns, was.st_mtime_ns))
    result = plain.verify(str(sides.source), str(sides.target), checksum=True)
    assert result.different == ("other",) and not result.clean
