"""Names and patterns to paths, and whose directory is whose."""

from __future__ import annotations

import re
import time
import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest

from nfs_provisioner.config import DEFAULT_PATH_PATTERN, parse_pattern
from nfs_provisioner.errors import Infeasible, RefusedForSafety, RetryLater
from nfs_provisioner.export import paths
from nfs_provisioner.export.paths import (
    ClaimNames,
    OwnedDirectories,
    archive_name,
    conflict_key,
    contains,
    record_file_name,
    relative_of,
    server_path,
)

PV = "pvc-8d3c1f6e-0000-4000-8000-1234567890ab"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STAMP = "20260102T030405Z"
APP = "${.PVC.namespace}/${.PVC.labels.app}"
FREE = "${.PVC.annotations.nfs.io/path}"


def claim(namespace: str = "team", name: str = "data", **names: str) -> ClaimNames:
    return ClaimNames(namespace, name, labels=names)


def annotated(value: str) -> ClaimNames:
    return ClaimNames("team", "data", annotations={"nfs.io/path": value})


def resolve(pattern: str, names: ClaimNames, pv: str) -> str:
    return paths.resolve(parse_pattern(pattern), names, pv)


def refusal(pattern: str, names: ClaimNames) -> str:
    with pytest.raises(Infeasible) as caught:
        resolve(pattern, names, PV)
    assert caught.value.reason == "ProvisioningFailed"
    assert len(caught.value.message) < 600
    return caught.value.message


@pytest.mark.parametrize(
    ("pattern", "names", "directory"),
    [
        (DEFAULT_PATH_PATTERN, claim(), f"team-data-{PV}"),
        ("${.PVC.namespace}/${.PVC.name}", claim(), "team/data"),
        (APP, claim(app="web"), "team/web"),
        ("${.PVC.labels.app.kubernetes.io/name}.d", ClaimNames("n", "c", {"app.kubernetes.io/name": "x"}), "x.d"),
        (FREE, annotated("projects/2026/Müller"), "projects/2026/Müller"),
        (FREE, annotated("two words"), "two words"),
        (FREE, annotated("..."), "..."),
        (FREE, annotated(".hidden"), ".hidden"),
        (FREE, annotated("archived-of-mine"), "archived-of-mine"),
        # What a tenant writes is never read as a pattern.
        (FREE, annotated("${.PVC.name}"), "${.PVC.name}"),
        ("k8s/${.PV.name}", claim(), f"k8s/{PV}"),
    ],
)
def test_patterns_that_resolve(pattern: str, names: ClaimNames, directory: str) -> None:
    assert resolve(pattern, names, PV) == directory


@pytest.mark.parametrize("labels", [{}, {"App": "web"}, {"app": ""}])
def test_h01_a_missing_or_empty_label_is_refused_by_name(labels: dict[str, str]) -> None:
    message = refusal(APP, ClaimNames("team", "data", labels))
    assert "needs the label 'app' of claim team/data, which is missing or empty" in message
    # Also where something would be left: all claims without the label would share it.
    assert "label 'app'" in refusal("${.PVC.namespace}-${.PVC.labels.app}", ClaimNames("team", "data", labels))


def test_h01_a_missing_annotation_is_not_taken_from_the_labels() -> None:
    message = refusal("x/${.PVC.annotations.app}", claim(app="web"))
    assert "needs the annotation 'app'" in message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("/", "is absolute"),
        ("/etc", "is absolute"),
        ("//etc", "is absolute"),
        (".", "'.' or '..' component"),
        ("..", "'.' or '..' component"),
        ("../other", "'.' or '..' component"),
        ("a/../../b", "'.' or '..' component"),
        ("a/./b", "'.' or '..' component"),
        ("a//b", "component ('')"),
        ("a/", "component ('')"),
        ("a/..", "'.' or '..' component"),
        (".nfs-provisioner", "is reserved"),
        (".nfs-provisioner/volumes", "is reserved"),
        ("a/.nfs-provisioner", "is reserved"),
        (".NFS-Provisioner", "is reserved"),
        ("lost+found", "is reserved"),
        ("Lost+Found/x", "is reserved"),
        (".snapshot/x", "is reserved"),
        (".snapshots", "is reserved"),
        (".zfs", "is reserved"),
        (f".nfs{'0123456789abcdef' * 2}"[:28], "is reserved"),
        ("a\x00b", "no directory should have"),
        ("a\nb", "no directory should have"),
        ("a\x7fb", "no directory should have (U+007F)"),
        ("a\u202eb", "RIGHT-TO-LEFT OVERRIDE"),
        ("a\u200bb", "ZERO WIDTH SPACE"),
        ("a\u2028b", "LINE SEPARATOR"),
        ("a\ud800b", "U+D800"),
        ("\ufdd0", "U+FDD0"),
        ("\ue000", "U+E000"),
        # Full-width dots and slashes turn into real ones on a file system that normalises.
        ("．．", "which some servers read as '..'"),
        ("a／b", "which some servers read as 'a/b'"),
        ("．nfs-provisioner", "is reserved"),
    ],
)
def test_h02_what_would_not_be_a_directory_of_its_own_below_the_root_is_refused(value: str, says: str) -> None:
    message = refusal(FREE, annotated(value))
    assert "claim team/data" in message
    assert says in message
    assert message.isprintable()


def test_h02_names_that_only_look_reserved_are_fine() -> None:
    for name in (".nfs", ".nfs0123", "nfs-provisioner", ".nfs-provisioner2", "lost", f".nfs{'g' * 24}"):
        assert resolve(FREE, annotated(name), PV) == name


def test_h03_an_ambiguous_pattern_gives_a_conflict_and_not_a_shared_directory() -> None:
    pattern = "${.PVC.namespace}-${.PVC.name}"
    first = resolve(pattern, claim("a-b", "c"), "pv-1")
    second = resolve(pattern, claim("a", "b-c"), "pv-2")
    assert first == second == "a-b-c"
    owned = OwnedDirectories()
    assert owned.conflict(first) is None
    owned.add(first, "pv-1")
    assert owned.conflict(second, besides="pv-2") == "pv-1"
    assert owned.conflict(first, besides="pv-1") is None


@pytest.mark.parametrize(
    ("owned", "wanted"),
    [
        ("Data", "data"),
        ("straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("K", "\u212a"),  # the sign for Kelvin
        ("team/Data", "TEAM/data/x"),
        ("ﬁle", "file"),
    ],
)
def test_h03_spellings_that_a_folding_file_system_takes_for_one_directory_conflict(owned: str, wanted: str) -> None:
    index = OwnedDirectories()
    index.add(owned, "first")
    assert index.conflict(wanted) == "first"
    assert conflict_key(owned) == conflict_key(wanted)[: len(conflict_key(owned))]


def test_h03_the_key_does_not_depend_on_normalisation_before_or_after_folding() -> None:
    for text in ("ΐ", "ǰ", "İstanbul", "Å", "ᾳ", "ﬆ", "\u0345\u0301α"):
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            assert conflict_key(unicodedata.normalize(form, text)) == conflict_key(text)
            assert conflict_key(unicodedata.normalize(form, text).casefold()) == conflict_key(text)


@pytest.mark.parametrize(
    ("outer", "inner", "inside"),
    [
        ("team", "team/a", True),
        ("team", "team/a/b", True),
        ("team", "team", False),
        ("team", "team-b", False),
        ("team", "teams/a", False),
        ("team/a", "team", False),
        ("/srv/nfs", "/srv/nfs/web", True),
        ("/srv/nfs/", "/srv/nfs/web", True),
        ("/srv/nfs", "/srv/nfs2/web", False),
        ("/", "/srv", True),
        ("", "team", True),
    ],
)
def test_h04_contains_goes_by_components(outer: str, inner: str, inside: bool) -> None:
    assert contains(outer, inner) is inside


@pytest.mark.parametrize(
    ("wanted", "owner"),
    [
        ("team/a", "pv-a"),  # the same
        ("team/a/b", "pv-a"),  # inside it
        ("team/a/b/c/d", "pv-a"),
        ("team", "pv-a"),  # around it
        ("team/ab", None),
        ("team/b", None),
        ("tea", None),
        ("other/team/a", None),
        ("deep", "pv-deep"),
        ("deep/er/still", "pv-deep"),
        ("deep/er/no", None),
    ],
)
def test_h04_a_directory_the_same_as_inside_or_around_anothers_conflicts(wanted: str, owner: str | None) -> None:
    owned = OwnedDirectories()
    owned.add("team/a", "pv-a")
    owned.add("deep/er/still/x", "pv-deep")
    assert owned.conflict(wanted) == owner


def test_directories_that_are_given_back_conflict_no_more() -> None:
    owned = OwnedDirectories()
    owned.add("team/a", "one")
    owned.add("team/b", "two")
    owned.add("team/a", "one")
    assert len(owned) == 2
    owned.discard("team/a", "nobody")
    owned.discard("team", "one")
    owned.discard("team/a/x", "one")
    owned.discard("none", "one")
    assert (len(owned), owned.conflict("team/a")) == (2, "one")
    owned.discard("TEAM/A", "one")
    assert (len(owned), owned.conflict("team/a"), owned.conflict("team")) == (1, None, "two")
    owned.discard("team/b", "two")
    assert (len(owned), owned.conflict("team"), owned.conflict("team/b/c")) == (0, None, None)


def test_what_was_given_back_costs_nothing_later() -> None:
    owned = OwnedDirectories()
    for number in range(100_000):
        owned.add(f"team/claim-{number}", "pv")
        owned.discard(f"team/claim-{number}", "pv")
    began = time.thread_time()
    for _ in range(100):
        assert owned.conflict("team") is None
    assert time.thread_time() - began < 0.5


def test_adopted_volumes_may_share_or_nest_and_each_sees_the_other() -> None:
    owned = OwnedDirectories()
    owned.add("shared", "one")
    owned.add("shared", "two")
    owned.add("team", "outer")
    owned.add("team/inner", "inner")
    assert (owned.conflict("shared", besides="one"), owned.conflict("shared", besides="two")) == ("two", "one")
    assert (owned.conflict("team", besides="outer"), owned.conflict("team/inner", besides="inner")) == (
        "inner",
        "outer",
    )
    owned.discard("team", "outer")
    assert owned.conflict("team/inner", besides="inner") is None
    assert owned.conflict("team") == "inner"
    owned.discard("shared", "one")
    assert owned.conflict("shared") == "two"


def test_an_owner_of_several_directories_is_not_in_its_own_way() -> None:
    owned = OwnedDirectories()
    owned.add("team", "one")
    owned.add("team/old", "one")
    assert owned.conflict("team", besides="one") is None
    owned.add("team/other", "two")
    assert owned.conflict("team", besides="one") == "two"


def test_a_question_costs_the_same_among_100_000_directories() -> None:
    owned = OwnedDirectories()
    for number in range(100_000):
        owned.add(f"namespace-{number % 100}/claim-{number}/volume", f"pv-{number}")
    began = time.thread_time()
    for number in range(1000):
        assert owned.conflict(f"namespace-{number % 100}/new-{number}/volume") is None
        assert owned.conflict(f"namespace-{number % 100}") is not None
    # Going over all directories even once for each question takes a hundred times as long.
    assert time.thread_time() - began < 1.0


@pytest.mark.parametrize(
    ("export", "directory", "path"),
    [
        ("/srv/nfs/web", "team/data", "/srv/nfs/web/team/data"),
        ("/", "team", "/team"),
        # The export's path occurs again below it: replacing text would find the wrong place.
        ("/nfs", "nfs/x/nfs", "/nfs/nfs/x/nfs"),
        ("/a", "a", "/a/a"),
    ],
)
def test_h06_a_servers_path_and_back(export: str, directory: str, path: str) -> None:
    assert server_path(export, directory) == path
    assert relative_of(export, path) == directory


@pytest.mark.parametrize(
    ("export", "path"),
    [
        ("/srv/nfs", "/srv/nfs2/data"),
        ("/srv/nfs", "/srv/nfs-old/data"),
        ("/srv/nfs", "/srv/nfs"),
        ("/srv/nfs", "/srv/nfs/"),
        ("/srv/nfs", "/srv"),
        ("/srv/nfs", "/other/srv/nfs/data"),
        ("/srv/nfs", "srv/nfs/data"),
        ("/srv/nfs", "/srv/nfs/../other/data"),
        ("/srv/nfs", "/srv/nfs/./data"),
        ("/srv/nfs", "/srv/nfs//data"),
        ("/srv/nfs", "/srv/nfs/data/"),
        ("/srv/nfs", "/srv/nfs/da\x00ta"),
        ("/srv/nfs", "/SRV/NFS/data"),
        ("/srv/nfs", ""),
        ("/", "/"),
        ("/", ""),
        ("/", "//data"),
        ("/", "data"),
    ],
)
def test_h06_a_volume_that_does_not_lie_below_the_export_is_not_touched(export: str, path: str) -> None:
    with pytest.raises(RefusedForSafety, match="does not lie below"):
        relative_of(export, path)


@pytest.mark.parametrize("directory", ["", ".", "..", "/a", "a/", "a//b", "a/../b", "a\x00"])
def test_h06_no_volume_gets_a_servers_path_that_is_not_below_the_export(directory: str) -> None:
    with pytest.raises(RefusedForSafety, match="not a path below an export"):
        server_path("/srv/nfs", directory)


def test_h09_archives_of_one_name_get_the_time_and_then_a_number() -> None:
    taken: set[str] = set()
    names = []
    for _ in range(4):
        names.append(archive_name("team/data", taken, NOW))
        taken.add(names[-1])
    assert names == [
        "archived-data",
        f"archived-data-{STAMP}",
        f"archived-data-{STAMP}-2",
        f"archived-data-{STAMP}-3",
    ]


def test_h09_what_is_taken_may_be_asked_of_a_function() -> None:
    asked: list[str] = []

    def taken(name: str) -> bool:
        asked.append(name)
        return len(asked) < 3

    assert archive_name("data", taken, NOW) == f"archived-data-{STAMP}-2" == asked[-1]


def test_h09_the_time_in_an_archives_name_is_utc() -> None:
    east = NOW.astimezone(timezone(timedelta(hours=9)))
    assert archive_name("data", {"archived-data"}, east) == f"archived-data-{STAMP}"


def test_h09_giving_up_on_a_name_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(RetryLater, match="no free name for the archive of 'data'"):
        archive_name("data", lambda _: True, NOW)


@pytest.mark.parametrize("length", [1, 227, 228, 229, 246, 247, 255, 300])
@pytest.mark.parametrize("taken", [0, 1, 2, 20])
def test_h63_the_name_of_an_archive_fits(length: int, taken: int) -> None:
    names: set[str] = set()
    for _ in range(taken + 1):
        name = archive_name(f"team/{'ü' * (length // 2)}{'x' * (length % 2)}", names, NOW)
        assert len(name.encode()) <= 255
        assert name.startswith("archived-")
        assert name not in names
        names.add(name)


def test_h63_archives_of_different_long_directories_are_different() -> None:
    assert archive_name("x" * 255, (), NOW) != archive_name("x" * 254 + "y", (), NOW)


@pytest.mark.parametrize(
    ("length", "shortened"),
    [(1, False), (63, False), (227, False), (228, False), (229, True), (253, True), (5000, True)],
)
def test_h63_a_component_has_at_most_228_bytes(length: int, shortened: bool) -> None:
    name = "x" * length
    directory = resolve("${.PVC.namespace}/${.PVC.name}", claim("team", name), PV)
    component = directory.removeprefix("team/")
    assert (component != name) is shortened
    assert len(component) == min(length, 228)
    if shortened:
        assert re.fullmatch(r"x{207}-[0-9a-f]{20}", component)


def test_h63_the_longest_names_there_are_fit_and_stay_apart() -> None:
    namespace, name = "n" * 63, "c" * 252
    one = resolve(DEFAULT_PATH_PATTERN, claim(namespace, name + "1"), PV)
    other = resolve(DEFAULT_PATH_PATTERN, claim(namespace, name + "2"), PV)
    assert one != other
    assert len(one) == len(other) == 228
    assert one == resolve(DEFAULT_PATH_PATTERN, claim(namespace, name + "1"), PV)


def test_h63_shortening_does_not_change_from_one_version_to_the_next() -> None:
    # A claim whose PV is made again after an upgrade must find its directory.
    assert resolve("${.PVC.name}", claim("team", "c" * 253), PV) == "c" * 207 + "-4b4e34eb907bea94a445"


@pytest.mark.parametrize("character", ["ü", "語", "😀"])
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_h19_shortening_never_splits_a_character(character: str, offset: int) -> None:
    value = "x" * offset + character * 200
    directory = resolve(FREE, annotated(value), PV)
    head, _, digest = directory.rpartition("-")
    assert 224 <= len(directory.encode()) <= 228
    assert value.startswith(head)
    assert re.fullmatch("[0-9a-f]{20}", digest)


def test_h19_a_path_of_more_than_1024_bytes_is_refused() -> None:
    assert len(resolve(FREE, annotated("/".join(["x" * 204] * 5)), PV)) == 1024
    assert "is longer than 1024 bytes" in refusal(FREE, annotated("/".join(["x" * 204] * 5) + "y"))
    assert "is longer than 1024 bytes" in refusal(FREE, annotated("/".join(["ü"] * 400)))
    assert "is longer than 1024 bytes" in refusal(FREE, annotated("/".join(["x" * 300] * 5)))


@pytest.mark.parametrize(
    "value", ["a:b", "a b", "a'b\"c", "100%", "-rf", "~", "a\\b", "*?[]", "#x", "é", "e\u0301", "名前"]
)
def test_h19_unusual_names_are_names(value: str) -> None:
    assert resolve(FREE, annotated(value), PV) == value


def test_the_record_of_a_pv_is_named_after_it() -> None:
    assert record_file_name(PV) == f"{PV}.json"
    assert record_file_name("a" * 200) == f"{'a' * 200}.json"


def test_h19_the_record_of_a_pv_with_the_longest_name_fits_and_is_its_own() -> None:
    names = {record_file_name("a" * length) for length in range(1, 254)}
    assert len(names) == 253
    # Room for the suffixes of temporary files.
    assert max(len(name) for name in names) == 205
    # No PV has a "_" in its name, so none has the name that another one's was shortened to.
    assert all("_" in name for name in names if len(name) == 205 and name != f"{'a' * 200}.json")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", ".a", "a\x00"])
def test_what_cannot_be_a_pv_has_no_record(name: str) -> None:
    with pytest.raises(Infeasible, match="not the name of a PersistentVolume"):
        record_file_name(name)
