"""Servers, installations and broken disks that end with their test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfs_provisioner.export import attachment
from nfs_provisioner.export.replica import Replica
from nfs_provisioner.kube import workqueue
from nfs_provisioner.replication import mirror
from nfs_provisioner.volumes import decisions, exports
from tests.nfs.ganesha import HOST, Export, Ganesha
from tests.nfs.stand import CALL_DEADLINE, Stand
from tests.plugins.hang import HangingDirectory
from tests.plugins.loopfs import MIB, LoopFileSystem

ServerFactory = Callable[..., Ganesha]
MakeHanging = Callable[[str, str], HangingDirectory]


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    """`start_server(Export(directory), ..., host=, port=)`: a running server, stopped at the end of the test."""
    numbers = itertools.count()
    with ExitStack() as servers:

        def start(*exports: Export, host: str = HOST, port: int | None = None) -> Ganesha:
            home = tmp_path_factory.mktemp(f"ganesha-{next(numbers)}")
            return servers.enter_context(Ganesha(home, exports, host=host, port=port))

        yield start


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An empty local directory to export."""
    directory = tmp_path / "export"
    directory.mkdir()
    return directory


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    """An installation without exports, whose controller is not started yet."""
    with Stand(tmp_path / "stand") as made:
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The product's own rules with shorter times: what is waited for here is that things happen, not how late."""
    give_calls_up_after(CALL_DEADLINE, monkeypatch)
    monkeypatch.setattr(workqueue.exponential, "__defaults__", (0.1, 1.0))
    monkeypatch.setattr(attachment, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(attachment, "LONGEST_PAUSE", 1.0)
    monkeypatch.setattr(exports, "FIRST_LOOK", 1.0)
    monkeypatch.setattr(decisions, "LOOK_AGAIN", 0.5)
    monkeypatch.setattr(mirror, "LONGEST_PAUSE", 1.0)


def give_calls_up_after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the deadline of every look at a replica."""
    assert Replica.call.__kwdefaults__ is not None
    monkeypatch.setitem(Replica.call.__kwdefaults__, "deadline", seconds)


def never_give_calls_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline for looks, and for what is done for volumes, that no busy machine reaches by being slow."""
    for method in (Replica.call, Replica.call_all, exports.Export.call):
        assert method.__kwdefaults__ is not None
        monkeypatch.setitem(method.__kwdefaults__, "deadline", 600.0)


@pytest.fixture
def hanging(stand: Stand, tmp_path: Path) -> Iterator[MakeHanging]:
    """`hanging(export, replica)`: a directory below the mount root that does what it is told."""
    with ExitStack() as mounts:

        def make(export: str, replica: str) -> HangingDirectory:
            backing = tmp_path / "backing" / export / replica
            backing.mkdir(parents=True)
            return mounts.enter_context(HangingDirectory(backing, stand.exports / export / replica))

        yield make
        stand.stop_controller()


@pytest.fixture
def disk(stand: Stand, tmp_path: Path) -> Iterator[LoopFileSystem]:
    """A small file system of its own, mounted where replica a of export `disk` is expected."""
    mountpoint = stand.exports / "disk" / "a"
    with LoopFileSystem(tmp_path / "image", 16 * MIB, mountpoint=mountpoint) as found:
        yield found
        stand.stop_controller()
