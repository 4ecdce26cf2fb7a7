"""Ways in which one replica's root could be damaged, each with its number."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.errors import Infeasible, LostLeadership, RefusedForSafety, RetryLater
from nfs_provisioner.export import filesystem as fs
from nfs_provisioner.export import moves, standby
from nfs_provisioner.export.records import ClaimRef, Policy, State, VolumeRecord, encode_record
from nfs_provisioner.export.store import Store
from tests.crash.steps import Power
from tests.unit.export.world import MARKER, World, identity, volume

ALIVE = (State.LIVE, State.ORPHANED)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a directory, with contents, modes, owners and times."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
    return found


@pytest.fixture
def outside(world: World) -> Path:
    """A directory beside the export, that nothing may ever reach."""
    place = world.root.parent / "outside"
    (place / "sub").mkdir(parents=True)
    (place / MARKER).write_text("outside")
    os.chown(place, 1234, 1234)
    return place


# -- records and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "directory", ["", ".", "..", "/", "/outside", "../outside", "a/../../outside", "a//b", "a/.", "./a", "a\0b", "a/"]
)
def test_h02_a_damaged_record_never_leads_outside(world: World, outside: Path, directory: str) -> None:
    store = world.start()
    good = world.make(store, "pv", "app")
    for state in (State.LIVE, State.CREATING, State.ARCHIVED):
        damaged = replace(good, directory=directory, state=state, inode=outside.stat().st_ino)
        (world.control / "volumes/pv.json").write_bytes(encode_record(damaged))
        before = tree(world.root), tree(outside)
        followed = standby.Step("make", replace(damaged, pv="q", state=State.LIVE))
        attempts: list[Callable[[], object]] = [
            lambda: moves.give_up(store, "pv", "delete", claim_uid=None, states=(State.LIVE, State.ARCHIVED)),
            lambda: moves.give_up(store, "pv", "archive", claim_uid=None, states=(State.LIVE, State.ARCHIVED)),
            lambda: moves.restore(store, volume("new", "new"), "pv"),
            lambda step=followed: standby.take(store, step),  # type: ignore[misc]
        ]
        if state is State.CREATING:
            attempts += [lambda: store.undo("pv"), lambda: store.provision(volume("pv", "app"))]
        for attempt in attempts:
            with pytest.raises(RefusedForSafety):
                attempt()
        after = tree(world.root), tree(outside)
        assert set(after[0]) == set(before[0])
        assert after[1] == before[1]


@pytest.mark.parametrize("target", ["../outside", "/outside", "..", "", "app/../../outside"])
def test_h02_a_damaged_target_never_leads_outside(world: World, outside: Path, target: str) -> None:
    store = world.start()
    good = world.make(store, "pv", "app")
    damaged = replace(good, state=State.ARCHIVING, target=target)
    (world.control / "volumes/pv.json").write_bytes(encode_record(damaged))
    before = tree(outside)
    with pytest.raises(RefusedForSafety):
        moves.give_up(store, "pv", "archive", claim_uid=None, states=ALIVE)
    assert tree(outside) == before
    assert sorted(os.listdir(outside.parent)) == ["export", "outside"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"version": 2}', b"\xff\xfe", b'{"version": 1}'])
def test_h02_a_record_that_cannot_be_read_stops_its_volume_only(world: World, damage: bytes) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    world.make(store, "other", "other")
    (world.control / "volumes/pv.json").write_bytes(damage)
    attempts: list[Callable[[], object]] = [
        lambda: moves.give_up(store, "pv", "delete", claim_uid=None, states=ALIVE),
        lambda: store.provision(volume("pv", "app")),
        lambda: store.undo("pv"),
    ]
    for attempt in attempts:
        with pytest.raises(RefusedForSafety, match=r"pv\.json"):
            attempt()
    moves.give_up(store, "other", "archive", claim_uid=None, states=ALIVE)
    assert (world.root / "app" / MARKER).exists()


def test_h02_a_record_under_another_name_is_refused(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    os.link(world.control / "volumes/pv.json", world.control / "volumes/other.json")
    with pytest.raises(RefusedForSafety, match="belongs to pv, not to other"):
        moves.give_up(store, "other", "delete", claim_uid=None, states=ALIVE)


def test_h63_names_at_the_limits_are_made_and_archived(world: World) -> None:
    store = world.start()
    pv, directory = "p" * 253, "d" * 228
    for number in range(3):
        record = world.make(store, f"{number}{pv}"[:253], directory)
        done = moves.give_up(store, record.pv, "archive", claim_uid=None, states=ALIVE)
        assert len(done.directory.encode()) <= 255
    nested = "/".join(["é" * 114] * 4)
    world.make(store, "nested", nested)
    assert moves.give_up(store, "nested", "archive", claim_uid=None, states=ALIVE).state is State.ARCHIVED
    assert world.broken_promises() == []
    for record in list(world.records().values()):
        moves.give_up(store, record.pv, "delete", claim_uid=None, states=(State.ARCHIVED,))
    assert store.empty_trash(lambda: False)
    assert sorted(os.listdir(world.root)) == [".nfs-provisioner"]


# -- making -----------------------------------------------------------------------------------------------------------


def test_h05_a_directory_that_exists_already_is_not_adopted(world: World) -> None:
    store = world.start()
    full = world.stranger("full")
    empty = world.root / "empty"
    empty.mkdir(mode=0o750)
    (world.root / "file").write_text("x")
    (world.root / "link").symlink_to(full)
    before = tree(full), tree(empty)
    for name in ("full", "empty", "file", "link"):
        for _ in range(2):  # the second try must not take it for its own
            with pytest.raises(Infeasible, match="exists already"):
                store.provision(volume("pv", name))
        assert world.records() == {}
        assert store.undo("pv") is None
    assert (tree(full), tree(empty)) == before


def test_h05_a_directory_that_appears_meanwhile_is_not_adopted(world: World, power: Power) -> None:
    """Somebody makes it between the look and our mkdir."""
    store = world.start()

    def race(name: str) -> None:
        if name == "rename":  # the record was written
            power.after = lambda name: None
            (world.root / "app").mkdir(mode=0o750)

    power.after = race
    with pytest.raises(Infeasible, match="exists already"):
        store.provision(volume("pv", "app"))
    assert world.records() == {}
    assert (world.root / "app").is_dir()
    with pytest.raises(Infeasible, match="exists already"):
        store.provision(volume("pv", "app"))


def test_h08_provisioning_that_failed_takes_back_only_what_it_made(world: World, power: Power) -> None:
    """At each step once: the server said EIO, the claim went away. What was there before is there still."""
    store = world.start()
    before_dir = world.stranger("team")
    failed = 0
    for at in range(40):
        power.fail(at)
        try:
            store.provision(volume("pv", "team/new/app"))
        except OSError:
            failed += 1
        power.restore()
        store.undo("pv")
        assert world.records() == {}, at
        assert sorted(os.listdir(before_dir)) == [MARKER], at
    assert failed > 8


def test_h13_a_volume_that_somebody_wrote_to_is_not_taken_back(world: World) -> None:
    store = world.start()
    store.provision(volume("pv", "app"))
    (world.root / "app" / "file").write_text("x")
    orphan = store.undo("pv")
    assert orphan is not None and orphan.state is State.ORPHANED
    assert (world.root / "app" / "file").exists()
    with pytest.raises(RefusedForSafety, match="only a volume being created"):
        store.undo("pv")


@pytest.fixture
def public() -> Iterator[World]:
    """An export that a process without privileges can reach."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        (root := Path(place) / "export").mkdir()
        made = World(root)
        yield made
        made.stop()


def test_h62_a_refused_chown_is_an_error_only_when_it_was_asked_for(public: World) -> None:
    """In a child process without privileges: the server squashes root."""
    world = public
    os.chown(world.root, 65534, 65534)

    def unprivileged() -> list[str]:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        store = world.start()
        assert not store.abilities.chown
        problems = []
        store.provision(volume("plain", "plain"))
        store.provision(replace(volume("own", "own"), policy=Policy(uid=65534, gid=65534)))
        for name, policy in {
            "owned": Policy(uid=1000, gid=1000),
            "group": Policy(gid=1000),
        }.items():
            try:
                store.provision(replace(volume(name, f"team/{name}"), policy=policy))
            except Infeasible as error:
                problems.append(error.message)
        return problems

    problems = in_child(unprivileged)
    assert len(problems) == 2
    assert "no_root_squash" in problems[0] and "1000:1000" in problems[0]
    assert {pv: state for pv, (state, _) in world.states().items()} == {"plain": State.CREATING, "own": State.CREATING}
    assert stat.S_IMODE((world.root / "plain").stat().st_mode) == 0o777
    assert not (world.root / "team").exists()


def test_h62_a_setgid_bit_that_is_dropped_is_reported(public: World) -> None:
    """fchmod succeeds and drops it, for a process that is not in the directory's group and has no CAP_FSETID."""
    world = public
    os.chown(world.root, 65534, 100)
    os.chmod(world.root, 0o2777)  # what is made in it belongs to group 100

    def unprivileged() -> list[str]:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        store = world.start()
        try:
            store.provision(volume("pv", "app", mode=0o2770))
        except Infeasible as error:
            return [error.message]
        return []

    assert "directoryMode 2770 became 0770" in in_child(unprivileged)[0]
    assert not (world.root / "app").exists()
    store = World(world.root).start()
    store.provision(volume("pv", "app", mode=0o2770))
    assert stat.S_IMODE((world.root / "app").stat().st_mode) == 0o2770
    store.close()


def in_child(work: Callable[[], list[str]]) -> list[str]:
    """What `work` returns in a forked child, which may throw its privileges away."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        with suppress(BaseException):
            try:
                os.write(theirs, "\n".join(work()).encode())
                code = 0
            except BaseException as error:
                os.write(theirs, repr(error).encode())
                raise
        os._exit(code)
    os.close(theirs)
    with open(ours) as pipe:
        output = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, output
    return output.splitlines()


# -- moving -----------------------------------------------------------------------------------------------------------


def emptied(store: Store, pv: str, directory: str) -> VolumeRecord:
    """An empty volume with mode 0700: what a plain rename would replace, and what our own mkdir looks like."""
    store.provision(volume(pv, directory, mode=0o700))
    return store.make_live(pv)


def test_h09_archives_of_one_name_do_not_replace_each_other(world: World) -> None:
    store = world.start()
    for number in range(4):
        world.make(store, f"pv{number}", "app")
        world.archive(store, f"pv{number}")
    directories = {record.directory for record in world.records().values()}
    assert len(directories) == 4
    assert world.broken_promises() == []


def test_h09_the_name_of_an_archive_may_be_a_strangers(world: World) -> None:
    store = world.start()
    world.stranger("archived-app")
    (world.root / "archived-link").symlink_to(world.root / "archived-app")
    (world.root / "archived-file").write_text("x")
    for name in ("app", "link", "file"):
        record = world.make(store, name, name)
        archive = world.archive(store, name)
        assert archive.directory.startswith(f"archived-{name}-")
        assert (world.root / archive.directory / MARKER).read_text() == record.tree
    assert (world.root / "archived-file").read_text() == "x"


def test_h54_an_empty_archive_is_not_replaced(world: World) -> None:
    """A plain rename would: it replaces an empty directory, and NFS knows no other."""
    store = world.start()
    emptied(store, "first", "app")
    first = world.archive(store, "first")
    world.make(store, "second", "app")
    second = world.archive(store, "second")
    assert first.directory == "archived-app" and second.directory != first.directory
    assert world.broken_promises() == []


@pytest.mark.parametrize("name", ["archived-app", "archived-x"])
def test_h54_what_appears_between_look_and_rename_is_not_replaced(world: World, power: Power, name: str) -> None:
    store = world.start()
    record = world.make(store, "pv", "app")

    def race(call: str) -> None:
        if call == "rename" and store.read("pv") != record:  # the record names its target now
            power.after = lambda call: None
            (world.root / name).mkdir()
            (world.root / name).chmod(0o700)
            world.strangers.add(name)

    power.after = race
    archive = world.archive(store, "pv")
    assert (world.root / name).stat().st_ino != archive.inode
    assert os.listdir(world.root / name) == []
    (world.root / name / MARKER).touch()
    assert world.broken_promises() == []


def test_h54_two_archives_cut_off_with_one_target_do_not_meet_in_it(world: World) -> None:
    """Both had chosen the name, one had claimed it; both volumes are empty and private."""
    store = world.start()
    for pv in ("one", "two"):
        record = emptied(store, pv, f"{pv}/app")
        store.write(record.advanced(state=State.ARCHIVING, target="archived-app"))
    (world.root / "archived-app").mkdir(mode=0o700)
    world.stop()
    world.start()
    assert world.broken_promises() == []
    assert {state for state, _ in world.states().values()} == {State.ARCHIVED}


def test_h54_only_plain_renames_are_made() -> None:
    """renameat2's flags fail with EINVAL on NFS; nothing in the product may depend on them."""
    source = "".join(path.read_text() for path in Path(fs.__file__).parent.glob("*.py"))
    assert "renameat2" not in source


def test_h34_a_missing_directory_is_an_error_not_a_success(world: World) -> None:
    store = world.start()
    for action in ("archive", "delete"):
        record = world.make(store, f"pv-{action}", "app")
        (world.root / "app").rename(world.root.parent / "elsewhere")
        for _ in range(2):
            with pytest.raises(RefusedForSafety, match="is not there"):
                moves.give_up(store, record.pv, action, claim_uid=None, states=ALIVE)
        assert store.read(record.pv) == record
        (world.root.parent / "elsewhere").rename(world.root / "app")
        moves.give_up(store, record.pv, action, claim_uid=None, states=ALIVE)


def test_h53_another_directory_in_its_place_is_not_taken_for_it(world: World) -> None:
    store = world.start()
    for action in ("archive", "delete"):
        world.make(store, f"pv-{action}", "app")
        (world.root / "app").rename(world.root / "moved")
        impostor = world.stranger("app")
        with pytest.raises(RefusedForSafety, match="is another directory now"):
            moves.give_up(store, f"pv-{action}", action, claim_uid=None, states=ALIVE)
        assert (impostor / MARKER).read_text() == "a stranger's"
        (impostor / MARKER).unlink()
        impostor.rmdir()
        (world.root / "moved").rename(world.root / "app")
        moves.give_up(store, f"pv-{action}", action, claim_uid=None, states=ALIVE)


def test_h53_a_directory_swapped_in_during_the_move_is_put_back(world: World) -> None:
    """After its inode was compared, and before the rename."""
    store = world.start()
    record = world.make(store, "pv", "app")

    def swap() -> None:
        if store.read("pv") != record and not world.strangers:
            (world.root / "app").rename(world.root / "moved")
            world.stranger("app")

    world.guard = swap
    with pytest.raises(RefusedForSafety, match="is another directory now"):
        world.archive(store, "pv")
    assert (world.root / "app" / MARKER).read_text() == "a stranger's"
    assert (world.root / "moved" / MARKER).read_text() == "tree-pv"


def test_h40_what_no_record_names_is_kept_by_everything(world: World) -> None:
    store = world.start()
    world.stranger("stranger")
    world.make(store, "kept", "kept")
    (world.control / "volumes/kept.json").unlink()  # a record that was lost
    world.strangers.add("kept")
    assert len(store.unmanaged(frozenset())) == 2
    with pytest.raises(RefusedForSafety, match="no record says that kept owns"):
        moves.give_up(store, "kept", "delete", claim_uid=None, states=ALIVE)
    assert store.undo("kept") is None
    world.stop()
    store = world.start()
    assert store.empty_trash(lambda: False)
    assert (world.root / "kept" / "sub" / "file").read_text() == "data"
    assert (world.root / "stranger" / MARKER).exists()


def test_h40_another_claim_of_the_same_name_gives_up_nothing(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    with pytest.raises(RefusedForSafety, match="not to uid other"):
        moves.give_up(store, "pv", "delete", claim_uid="other", states=ALIVE)
    with pytest.raises(RefusedForSafety, match="is recorded for claim"):
        store.provision(replace(volume("pv", "app"), claim=ClaimRef("ns", "pv", "other")))
    assert (world.root / "app" / MARKER).exists()


def test_an_archive_is_restored_once_however_many_ask(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    world.archive(store, "pv")
    results: list[VolumeRecord | Exception] = []
    start = threading.Barrier(4)

    def ask(name: str) -> None:
        start.wait()
        try:
            results.append(moves.restore(store, replace(volume(name, name), claim=ClaimRef("ns", name, name)), "pv"))
        except RefusedForSafety as error:
            results.append(error)

    threads = [threading.Thread(target=ask, args=(f"new{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    restored = [result for result in results if isinstance(result, VolumeRecord)]
    assert len(restored) == 1
    assert set(world.states()) == {"pv", restored[0].pv}, "the others left no record behind"
    assert (world.root / restored[0].directory / MARKER).read_text() == "tree-pv"


def test_h34_an_archive_that_is_not_there_is_not_restored(world: World) -> None:
    """And no record is left that waits for it for ever."""
    store = world.start()
    world.make(store, "pv", "app")
    world.archive(store, "pv")
    (world.root / "archived-app").rename(world.root.parent / "elsewhere")
    with pytest.raises(RefusedForSafety, match="is not there"):
        moves.restore(store, volume("new", "new"), "pv")
    assert world.states() == {"pv": (State.ARCHIVED, "archived-app")}


def test_an_archive_of_another_namespace_is_not_restored(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    world.archive(store, "pv")
    with pytest.raises(RefusedForSafety, match="belonged to namespace"):
        moves.restore(store, replace(volume("new", "new"), claim=ClaimRef("other", "new", "uid")), "pv")
    (world.root / "new").mkdir()
    with pytest.raises(Infeasible, match="exists already"):
        moves.restore(store, volume("new", "new"), "pv")
    assert world.states() == {"pv": (State.ARCHIVED, "archived-app")}


# -- links ------------------------------------------------------------------------------------------------------------


def test_h11_a_link_in_the_place_of_a_parent_leads_nowhere(world: World, outside: Path) -> None:
    store = world.start()
    world.make(store, "pv", "team/app")
    (world.root / "team").rename(world.root / "moved")
    (world.root / "team").symlink_to(outside)
    (outside / "app").mkdir()
    before = tree(outside)
    attempts: list[Callable[[], object]] = [
        lambda: store.provision(volume("new", "team/new")),
        lambda: moves.give_up(store, "pv", "delete", claim_uid=None, states=ALIVE),
        lambda: moves.give_up(store, "pv", "archive", claim_uid=None, states=ALIVE),
        lambda: store.adopt(volume("adopted", "team/app")),
        lambda: moves.move_to(store, world.records()["pv"], State.ARCHIVING, "team/moved"),
    ]
    for attempt in attempts:
        with pytest.raises((OSError, RefusedForSafety, Infeasible)):
            attempt()
    assert tree(outside) == before
    assert (world.root / "moved" / "app" / MARKER).exists()


def test_h11_a_link_in_the_place_of_a_volume_is_not_followed(world: World, outside: Path) -> None:
    store = world.start()
    record = volume("pv", "app")
    store.provision(record)
    (world.root / "app").rmdir()
    (world.root / "app").symlink_to(outside)
    before = tree(outside)
    with pytest.raises((OSError, RefusedForSafety)):
        store.provision(record)
    with pytest.raises((OSError, RefusedForSafety)):
        store.make_live("pv")
    with pytest.raises((OSError, RefusedForSafety)):
        store.adopt(volume("adopted", "app"))
    assert tree(outside) == before


def test_a_pv_of_before_a_restored_cluster_does_not_become_ours_without_its_directory(world: World) -> None:
    """Its record says that the data was archived since: who took it over would have a volume of nothing."""
    store = world.start()
    (world.root / "app").mkdir()
    adopted = store.adopt(volume("pv", "app"))
    assert store.adopt(volume("pv", "app")) == adopted, "cut off before the PV was changed, it is done again"
    archive = world.archive(store, "pv")
    with pytest.raises(RefusedForSafety, match=f"is archived in '{archive.directory}'"):
        store.adopt(volume("pv", "app"))


def test_h11_a_link_swapped_in_before_chmod_is_not_followed(world: World, outside: Path, power: Power) -> None:
    """Between our mkdir and our chown and chmod."""
    store = world.start()
    before = tree(outside)

    def swap(call: str) -> None:
        if call == "mkdir":
            power.after = lambda call: None
            (world.root / "app").rmdir()
            (world.root / "app").symlink_to(outside)

    power.after = swap
    with pytest.raises(OSError):
        store.provision(replace(volume("pv", "app"), policy=Policy(uid=4321, gid=4321)))
    assert tree(outside) == before


def test_h11_a_link_swapped_in_during_a_removal_is_not_followed(world: World, outside: Path) -> None:
    """A tenant's directory becomes a link after it was listed and before it is opened."""
    store = world.start()
    world.make(store, "pv", "app")
    for number in range(5):
        (world.root / f"app/d{number}/deep").mkdir(parents=True)
        (world.root / f"app/d{number}/file").write_text("x")
    (world.root / "app/link").symlink_to(outside)
    (world.root / "app/broken").symlink_to("/nowhere")
    moves.give_up(store, "pv", "delete", claim_uid=None, states=ALIVE)
    (trashed,) = (world.control / "trash").iterdir()
    before = tree(outside)
    looked = 0

    def stop() -> bool:
        nonlocal looked
        looked += 1
        for path in trashed.glob("d*"):
            if not path.is_symlink():
                path.rename(world.root.parent / f"gone-{path.name}")
                path.symlink_to(outside)
        return False

    with suppress(OSError):  # it may notice; it may not follow
        store.empty_trash(stop)
    assert looked > 0
    assert tree(outside) == before
    assert store.empty_trash(lambda: False)
    assert tree(outside) == before


@pytest.mark.parametrize("place", ["volumes", "work", "trash", "lost", "sync", ""])
def test_h11_our_own_directories_are_never_links(world: World, outside: Path, place: str) -> None:
    if place:
        world.control.mkdir()
    (world.control / place if place else world.control).symlink_to(outside)
    before = tree(outside)
    with pytest.raises(OSError):
        world.start()
    assert tree(outside) == before


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_h11_a_record_that_is_not_a_file_is_not_read(world: World, outside: Path, kind: str) -> None:
    store = world.start()
    (outside / "record").write_bytes(encode_record(replace(volume("pv", "app"), state=State.LIVE)))
    place = world.control / "volumes/pv.json"
    if kind == "link":
        place.symlink_to(outside / "record")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises((OSError, RefusedForSafety)):
        store.read("pv")


# -- deleting much ----------------------------------------------------------------------------------------------------


def test_h14_giving_up_takes_as_many_calls_for_a_huge_volume_as_for_an_empty_one(world: World, power: Power) -> None:
    store = world.start()
    counts = set()
    for number, files in enumerate((0, 2000)):
        for action in ("archive", "delete"):
            pv = f"{action}{number}"
            world.make(store, pv, pv)
            for file in range(files):
                (world.root / pv / "sub" / f"{file}").touch()
            power.restore()
            moves.give_up(store, pv, action, claim_uid=None, states=ALIVE)
            counts.add((action, len(power.changes), power.looks))
    assert len(counts) == 2, counts


def test_h14_emptying_the_trash_can_be_interrupted_at_every_entry(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    for number in range(50):
        (world.root / f"app/d{number}").mkdir()
        (world.root / f"app/d{number}/file").touch()
    moves.give_up(store, "pv", "delete", claim_uid=None, states=ALIVE)
    (trashed,) = (world.control / "trash").iterdir()
    rounds, left = 0, len(list(trashed.rglob("*")))
    while True:
        asked = iter([False, False, False, False])
        if store.empty_trash(lambda asked=asked: next(asked, True)):  # type: ignore[misc]
            break
        now = len(list(trashed.rglob("*")))
        assert left - now <= 8
        left, rounds = now, rounds + 1
        assert rounds < 1000
    assert rounds > 10
    assert list((world.control / "trash").iterdir()) == []


def test_h14_a_tree_deeper_than_any_path_is_removed(world: World) -> None:
    store = world.start()
    world.make(store, "pv", "app")
    fd = os.open(world.root / "app", os.O_RDONLY)
    for _ in range(1500):  # 1500 levels of 5 bytes: longer than PATH_MAX, deeper than the limit of descriptors
        os.mkdir("level", dir_fd=fd)
        below = os.open("level", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    moves.give_up(store, "pv", "delete", claim_uid=None, states=ALIVE)
    assert store.empty_trash(lambda: False)
    assert os.listdir(store.trash) == []


def test_h14_trash_is_kept_until_its_record_says_deleted(world: World) -> None:
    """Otherwise a cut between the two leaves a volume that is nowhere."""
    store = world.start()
    record = world.make(store, "pv", "app")
    deleting = store.write(record.advanced(state=State.DELETING, target=".nfs-provisioner/trash/pv~1"))
    (world.root / "app").rename(world.control / "trash/pv~1")
    assert store.empty_trash(lambda: False)
    assert (world.control / "trash/pv~1" / MARKER).exists()
    assert moves.finish(store, deleting).state is State.DELETED
    assert store.empty_trash(lambda: False)
    assert os.listdir(store.trash) == []


@pytest.mark.parametrize(("kept", "since"), [(60.0, "2126-05-01T00:00:00Z"), (None, "2026-05-01T00:00:00Z")])
def test_h56_an_archive_made_while_one_clock_is_behind_is_dated_by_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch, kept: float | None, since: str
) -> None:
    """It would count as old at once. (Of one that is kept for ever nobody asks the server.)"""
    store = world.start()
    world.make(store, "pv", "app", policy=Policy(archive_retention=kept))
    store.now = lambda: "2026-05-01T00:00:00Z"
    monkeypatch.setattr(store, "server_time", lambda: 4_933_267_200.9)
    archive = moves.give_up(store, "pv", "archive", claim_uid=None, states=ALIVE)
    assert (archive.state, archive.since) == (State.ARCHIVED, since)
    assert store.read("pv") == archive


@pytest.mark.parametrize("server", [0.0, 1e18])
def test_h56_a_servers_clock_that_is_far_off_does_not_keep_a_volume_from_being_archived(
    world: World, monkeypatch: pytest.MonkeyPatch, server: float
) -> None:
    store = world.start()
    world.make(store, "pv", "app", policy=Policy(archive_retention=60.0))
    monkeypatch.setattr(store, "server_time", lambda: server)
    before = store.now()
    assert moves.give_up(store, "pv", "archive", claim_uid=None, states=ALIVE).since >= before


# -- who may act ------------------------------------------------------------------------------------------------------


def operations(store: Store) -> dict[str, Callable[[], object]]:
    """Everything that changes an export, on volumes that `prepared` made."""
    archived = replace(volume("live", "archived-live"), state=State.ARCHIVED, rev=9)
    return {
        "provision": lambda: store.provision(volume("new", "new")),
        "make_live": lambda: store.make_live("creating"),
        "undo": lambda: store.undo("creating"),
        "update": lambda: store.update("live", {"requested": 5}, states=ALIVE),
        "adopt": lambda: store.adopt(volume("adopted", "stranger")),
        "forget": lambda: store.forget("deleted"),
        "archive": lambda: moves.give_up(store, "live", "archive", claim_uid=None, states=ALIVE),
        "delete": lambda: moves.give_up(store, "live", "delete", claim_uid=None, states=ALIVE),
        "retain": lambda: moves.give_up(store, "live", "retain", claim_uid=None, states=ALIVE),
        "restore": lambda: moves.restore(store, volume("restored", "restored"), "archived"),
        "follow": lambda: standby.take_all(store, [standby.Step("move", archived, "live")], 9),
        "raise_seq": lambda: store.raise_seq(),
        "set_members": lambda: store.set_members({"b": "x"}),
        "server_time": lambda: store.server_time(),
    }


def prepared(world: World) -> Store:
    store = world.start()
    store.provision(volume("creating", "creating"))
    world.make(store, "live", "live")
    for pv in ("archived", "deleted"):
        world.make(store, pv, pv)
    world.archive(store, "archived")
    moves.give_up(store, "deleted", "delete", claim_uid=None, states=ALIVE)
    world.stranger("stranger")
    return store


def test_h16_nothing_is_changed_after_the_lease_ended(world: World, power: Power) -> None:
    store = prepared(world)
    before = tree(world.root)

    def ended() -> None:
        raise LostLeadership("ended")

    world.guard = ended
    for name, operation in operations(store).items():
        power.restore()
        with pytest.raises(LostLeadership):
            operation()
        assert power.changes == [], name
    assert {path: entry[5] for path, entry in tree(world.root).items()} == {p: e[5] for p, e in before.items()}


def test_h16_a_lease_that_ends_in_the_middle_stops_at_the_next_step(world: World, power: Power) -> None:
    """Stopped and continued between two steps: at most what one check allowed is done, and a restart goes on."""
    for number in range(12):
        store = world.start()
        pv = f"pv{number}"
        world.make(store, pv, pv)
        left = iter(range(number))

        def ending(left: object = left) -> None:
            if next(left, None) is None:  # type: ignore[call-overload]
                raise LostLeadership("ended")

        world.guard = ending
        power.restore()
        with suppress(LostLeadership):
            moves.give_up(store, pv, "archive", claim_uid=None, states=ALIVE)
        world.guard = lambda: None
        world.stop()
        store = world.start()
        assert moves.give_up(store, pv, "archive", claim_uid=None, states=ALIVE).state is State.ARCHIVED
        assert world.broken_promises() == []
        world.stop()


def test_h16_a_superseded_worker_changes_nothing_any_more(world: World, power: Power) -> None:
    old = prepared(world)
    new = world.start()
    for name, operation in operations(old).items():
        power.restore()
        with pytest.raises((RetryLater, OSError)):
            operation()
        assert not set(power.changes) & {"rename", "mkdir", "rmdir", "unlink"}, name
    for operation in (operations(new)[name] for name in ("make_live", "archive", "restore", "raise_seq")):
        operation()
    assert world.broken_promises() == []


def test_h41_a_late_call_of_a_killed_worker_finds_nothing_to_hit(world: World) -> None:
    """The renames that a server may still carry out have one end in the older term's directory, which is gone."""
    old = world.start()
    record = world.make(old, "pv", "app")
    other = world.make(old, "other", "other")
    (other_slot := world.root / "slot").mkdir()
    os.rename("slot", "slot", src_dir_fd=old.root, dst_dir_fd=old.work)
    fd = os.open("r99", os.O_WRONLY | os.O_CREAT, dir_fd=old.work)
    os.close(fd)
    del other_slot
    term = os.listdir(world.control / "work")
    old.write(record.advanced(state=State.ARCHIVING, target="archived-app"))
    new_world = World(world.root)
    store = new_world.opened()
    store.identity = store.facts().identity
    store.activate(identity(), "later")
    assert set(term).isdisjoint(os.listdir(world.control / "work"))
    before = tree(world.root / "app"), tree(world.root / "other")
    late: list[Callable[[], None]] = [
        lambda: os.rename("app", "pv", src_dir_fd=old.root, dst_dir_fd=old.work),  # taking a volume out
        lambda: os.rename("slot", "archived-app", src_dir_fd=old.work, dst_dir_fd=old.root),  # putting it there
        lambda: os.rename("slot", "slot", src_dir_fd=old.work, dst_dir_fd=old.trash),  # deleting it
        lambda: os.rename("r99", "pv.json", src_dir_fd=old.work, dst_dir_fd=old.volumes),  # a record
        lambda: os.rename("r99", "export.json", src_dir_fd=old.work, dst_dir_fd=old.control),  # an identity
    ]
    for call in late:
        with pytest.raises(FileNotFoundError):
            call()
    assert (tree(world.root / "app"), tree(world.root / "other")) == before
    assert store.read("other") == replace(other)
    assert moves.finish(store, world.records()["pv"]).state is State.ARCHIVED
    new_world.stop()


def test_h38_a_root_that_is_mounted_over_is_noticed(world: World) -> None:
    store = world.start()
    store.space()
    world.root.rename(world.root.parent / "away")
    world.root.mkdir()
    with pytest.raises(RefusedForSafety, match="another file system"):
        store.space()
    world.root.rmdir()
    (world.root.parent / "away").rename(world.root)


def test_h09_of_two_moves_to_one_target_the_second_does_not_take_the_first_for_its_own(world: World) -> None:
    """Cut off between the first one's rename and its record, and met in the other order."""
    store = world.start()
    records = []
    for pv, directory in (("pv1", "x/v"), ("pv2", "y/v")):
        store.provision(volume(pv, directory, mode=0o700))
        live = store.make_live(pv)
        records.append(store.write(live.advanced(state=State.ARCHIVING, target="archived-v")))
    os.rename("x/v", "archived-v", src_dir_fd=store.root, dst_dir_fd=store.root)
    settled, problems = moves.recover(store, reversed(records))
    assert problems == []
    assert {record.state for record in settled} == {State.ARCHIVED}
    places = {record.pv: record.directory for record in settled}
    assert places["pv1"] == "archived-v" and places["pv2"].startswith("archived-v-")
    assert {pv: (world.root / place).stat().st_ino for pv, place in places.items()} == {
        record.pv: record.inode for record in records
    }


def test_a_tree_that_was_copied_here_has_its_inodes_noted_but_for_moves_under_way(world: World) -> None:
    """Of a move only the inode tells how far it got: a name that is there may be the one that was claimed for it."""
    store = world.start()
    kept, moving = world.make(store, "kept", "a/kept"), world.make(store, "moving", "moving")
    store.write(replace(moving, state=State.ARCHIVING, target="archived-moving"))
    world.stop()
    for record in (kept, moving):
        place = world.root / record.directory
        place.rename(world.root.parent / record.pv)
        shutil.copytree(world.root.parent / record.pv, place)
    store = world.opened()
    store.identity = store.facts().identity
    assert store.identity is not None
    store.activate(replace(store.identity, root="another"), "term")
    assert world.records()["kept"].inode == (world.root / "a/kept").stat().st_ino != kept.inode
    assert world.records()["moving"].inode == moving.inode
    again = world.opened()
    again.identity = again.facts().identity
    before = (world.control / "volumes/kept.json").stat().st_ino
    again.activate(replace(identity(), root="another"), "later")
    assert (world.control / "volumes/kept.json").stat().st_ino == before, "nothing is written when nothing moved"


def test_a_restore_that_failed_before_anything_moved_leaves_no_second_owner_of_the_archive(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is purged then is the archive alone, and the restore hears that it is gone."""
    store = world.start()
    world.make(store, "old", "app")
    archive = world.archive(store, "old")
    rename, failures = os.rename, iter(range(1))

    def full(name: str, *arguments: Any, **options: Any) -> None:
        if name == archive.directory and next(failures, None) is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(name, *arguments, **options)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        moves.restore(store, volume("new", "again"), "old")
    assert world.states() == {"old": (State.ARCHIVED, archive.directory)}
    assert (world.root / archive.directory / MARKER).exists()
    assert moves.restore(store, volume("new", "again"), "old").directory == "again"
    assert (world.root / "again" / MARKER).exists() and world.broken_promises() == []
