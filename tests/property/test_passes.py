"""Whatever happened to a tree, and however the passes over it ended: one quiet pass, and the two sides are equal."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from nfs_provisioner.errors import LostLeadership, NfsProvisionerError, RetryLater
from tests.plugins.packages import require_root
from tests.plugins.passes import SECOND, Cut, Sides, Steps, digests, exchange, no_margin
from tests.property.tenant import Tenant, is_directory

pytestmark = pytest.mark.timeout(1800)  # for all of its rounds together: each waits for the disk

NAMES = st.sampled_from(
    (
        "a",
        "b",
        "c",
        "d",
        "new\nline",
        os.fsdecode(b"\xff\xfe not utf-8"),
        "ünï",
        ".hidden",
        "-dash",
        "a.~1~",
        "*",
        "l" * 255,
    )
)
CONTENTS = st.sampled_from((b"", b"one", b"two", b"three", b"x" * 5000, b"y" * 200_000, os.urandom(140_000)))
PICKS = st.integers(0, 1000)
MODES = st.sampled_from((0o644, 0o600, 0o755, 0o000, 0o4755, 0o2770, 0o1777))
OWNERS = st.sampled_from((0, 1000, 65533))
TIMES = st.sampled_from((0, 1, 86_400 * SECOND, 1_700_000_000_123_456_789, 4_102_444_800 * SECOND))
ATTRIBUTES = st.sampled_from(("user.one", "user.two", "trusted.three"))
KINDS = st.sampled_from((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR))
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in (
        (1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF),
    )
)  # fmt: skip


class Histories(Tenant, RuleBasedStateMachine):
    """The rules are what tenants do, and passes; the end is a quiet pass, judged by rsync."""

    def __init__(self) -> None:
        super().__init__()
        require_root("files of other owners")
        self.home = Path(tempfile.mkdtemp(prefix="histories-"))
        self.sides = Sides(self.home)
        self.source = self.sides.source
        self.closing = contextlib.ExitStack()
        self.steps = self.closing.enter_context(Steps().counted())
        self.clean: set[bytes] = set()

    @initialize(trusting=st.booleans(), threads=st.sampled_from((1, 2, 4, 8)))
    def begin(self, trusting: bool, threads: int) -> None:
        """Half of the histories trust time stamps to the tick, else nothing in them would ever be old."""
        self.threads = threads
        if trusting:
            self.closing.enter_context(no_margin())
        for path in ("d1/d2", "d3"):
            (self.source / path).mkdir(parents=True)

    # What tenants do

    @rule(pick=PICKS, name=NAMES, content=CONTENTS)
    def write(self, pick: int, name: str, content: bytes) -> None:
        """Make a file, overwrite one, or put one where there was something else."""
        path = self.directory(pick) / name
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            self.remove(path)
        path.write_bytes(content)

    @rule(pick=PICKS, name=NAMES, content=CONTENTS)
    def replace(self, pick: int, name: str, content: bytes) -> None:
        """As editors save."""
        path = self.directory(pick) / name
        if is_directory(path):
            return
        (self.source / "saving").write_bytes(content)
        (self.source / "saving").rename(path)

    @rule(pick=PICKS, size=st.sampled_from((0, 1, 4096, 300_000)))
    def truncate(self, pick: int, size: int) -> None:
        if path := self.file(pick):
            os.truncate(path, size)

    @rule(pick=PICKS, at=st.sampled_from((0, 2, 3 << 20)))
    def write_somewhere(self, pick: int, at: int) -> None:
        """Beyond the end leaves a hole."""
        if path := self.file(pick):
            with path.open("r+b") as file:
                file.seek(at)
                file.write(b"somewhere")

    @rule(pick=PICKS)
    def rewrite_keeping_size_and_times(self, pick: int) -> None:
        if path := self.file(pick):
            found, content = path.stat(), path.read_bytes()
            path.write_bytes(bytes(byte ^ 1 for byte in content[:100]) + content[100:])
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    @rule(pick=PICKS, ns=TIMES)
    def set_times(self, pick: int, ns: int) -> None:
        if path := self.any_of(pick):
            os.utime(path, ns=(ns, ns), follow_symlinks=False)

    @rule(pick=PICKS, where=PICKS, name=NAMES)
    def rename(self, pick: int, where: int, name: str) -> None:
        """Files and directories, over whatever rename(2) replaces."""
        if path := self.any_of(pick):
            with contextlib.suppress(OSError):
                path.rename(self.directory(where) / name)

    @rule(one=PICKS, other=PICKS)
    def swap(self, one: int, other: int) -> None:
        first, second = self.any_of(one), self.any_of(other)
        if first and second and first != second:
            with contextlib.suppress(OSError):
                exchange(first, second)

    @rule(pick=PICKS, where=PICKS, name=NAMES)
    def link(self, pick: int, where: int, name: str) -> None:
        path = self.any_of(pick, lambda path: not is_directory(path))
        place = self.directory(where) / name
        if path and not os.path.lexists(place):
            os.link(path, place, follow_symlinks=False)

    @rule(pick=PICKS, mode=MODES)
    def chmod(self, pick: int, mode: int) -> None:
        if path := self.any_of(pick, lambda path: not path.is_symlink()):
            path.chmod(mode)

    @rule(pick=PICKS, uid=OWNERS, gid=OWNERS)
    def chown(self, pick: int, uid: int, gid: int) -> None:
        if path := self.any_of(pick):
            os.chown(path, uid, gid, follow_symlinks=False)

    @rule(pick=PICKS, name=ATTRIBUTES, value=st.sampled_from((b"", b"1", b"2" * 300)))
    def set_attribute(self, pick: int, name: str, value: bytes) -> None:
        plain = (stat.S_IFREG, stat.S_IFDIR)  # others may have none of user's
        if path := self.any_of(pick, lambda path: stat.S_IFMT(path.lstat().st_mode) in plain):
            os.setxattr(path, name, value)

    @rule(pick=PICKS)
    def remove_attributes(self, pick: int) -> None:
        if path := self.any_of(pick, lambda path: not path.is_symlink()):
            for name in os.listxattr(path):
                os.removexattr(path, name)

    @rule(pick=PICKS, default=st.booleans())
    def set_acl(self, pick: int, default: bool) -> None:
        if path := self.any_of(pick, lambda path: not path.is_symlink() and (is_directory(path) or not default)):
            with contextlib.suppress(OSError):
                os.setxattr(path, f"system.posix_acl_{'default' if default else 'access'}", ACL)

    @rule(pick=PICKS, name=NAMES, aim=st.sampled_from(("a", "../d3", "/etc/passwd", "nowhere" * 100)))
    def symlink(self, pick: int, name: str, aim: str) -> None:
        path = self.directory(pick) / name
        self.remove(path)
        path.symlink_to(aim)

    @rule(pick=PICKS, name=NAMES, kind=KINDS)
    def node(self, pick: int, name: str, kind: int) -> None:
        path = self.directory(pick) / name
        self.remove(path)
        os.mknod(path, kind | 0o640, os.makedev(1, 3) if kind == stat.S_IFCHR else 0)

    @rule(pick=PICKS, name=NAMES, depth=st.integers(1, 3))
    def directories(self, pick: int, name: str, depth: int) -> None:
        path = self.directory(pick) / name
        if not is_directory(path):
            self.remove(path)
        for _ in range(depth):
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                path.mkdir()
                (path / "in").write_bytes(os.fsencode(name))
            path /= "below"

    @rule(pick=PICKS, linked=st.booleans(), swapped=st.booleans())
    def directory_takes_anothers_place(self, pick: int, linked: bool, swapped: bool) -> None:
        """Both were copied, and what lies in them looks the same in all that lstat says of it."""
        above = self.directory(pick)
        for name, content in (("twin", b"one"), ("other", b"two")):
            self.remove(above / name)
            (above / name).mkdir()
            (above / name / "in").write_bytes(content)
            os.utime(above / name / "in", ns=(SECOND, SECOND))
            if linked:
                (above / name / "linked").hardlink_to(above / name / "in")
        self.run()
        if swapped:
            exchange(above / "twin", above / "other")
        else:
            shutil.rmtree(above / "twin")
            (above / "other").rename(above / "twin")

    @rule(pick=PICKS, link=st.booleans())
    def directory_becomes_something_else(self, pick: int, link: bool) -> None:
        if path := self.any_of(pick, is_directory):
            if not link:
                shutil.rmtree(path)
                path.write_bytes(b"was a directory")
                return
            away = self.source / "moved away"
            self.remove(away)
            if path.exists() and path not in away.parents and path != away:
                path.rename(away)
                path.symlink_to(away)

    @rule(pick=PICKS)
    def delete(self, pick: int) -> None:
        if path := self.any_of(pick):
            self.remove(path)

    # Passes

    @rule()
    def run(self) -> None:
        """Nobody writes now, so it is clean, and what it leaves is what nothing may take away again."""
        assert self.sides.run(threads=self.threads).clean
        self.clean = digests(self.sides.target)

    @rule(pick=PICKS)
    def run_of_some_directories(self, pick: int) -> None:
        only = {str(path.relative_to(self.source)) for path in (self.directory(pick), self.directory(pick + 1))}
        self.sides.run(threads=self.threads, only=frozenset({"" if path == "." else path for path in only}))
        self.nothing_is_lost()

    @rule(at=st.integers(0, 120))
    def run_that_is_killed(self, at: int) -> None:
        self.steps.cut(at)
        with contextlib.suppress(Cut):
            self.sides.run(threads=self.threads)
        self.steps.restart()
        self.nothing_is_lost()

    @rule(at=st.integers(0, 60), error=st.sampled_from((RetryLater, LostLeadership)))
    def run_that_is_stopped(self, at: int, error: type[NfsProvisionerError]) -> None:
        """By its guard, as when the lease is lost."""
        left = at

        def guard() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise error("stop")

        with contextlib.suppress(error):
            self.sides.run(threads=self.threads, guard=guard)
        self.nothing_is_lost()

    @rule(at=st.integers(0, 120), number=st.sampled_from((errno.EIO, errno.ENOSPC, errno.EACCES)))
    def run_with_an_error(self, at: int, number: int) -> None:
        self.steps.fail(at, number)
        with contextlib.suppress(NfsProvisionerError, OSError):
            result = self.sides.run(threads=self.threads)
            assert not result.clean or self.sides.differences() == ""
        self.steps.restart()
        self.nothing_is_lost()

    def nothing_is_lost(self) -> None:
        """Of what the last clean state had: it is in place, or in trash."""
        assert self.clean <= digests(self.sides.target, self.sides.trash)

    @rule()
    def run_twice(self) -> None:
        """The second finds nothing to do.

        No precondition: where a cut falls differs with the threads, and a history must be drawn the same again.
        """
        if self.sides.base is None:
            return
        self.sides.run(threads=self.threads)
        counts = self.sides.run(threads=self.threads).counts
        assert (counts.copied_files, counts.mended, counts.renamed, counts.linked, counts.deleted) == (0, 0, 0, 0, 0)

    def teardown(self) -> None:
        try:
            self.nothing_is_lost()
            self.sides.quiet(threads=getattr(self, "threads", 2))
        finally:
            self.closing.close()
            shutil.rmtree(self.home)


Histories.TestCase.settings = settings(
    max_examples=int(os.environ.get("HX", "100")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestHistories = Histories.TestCase
