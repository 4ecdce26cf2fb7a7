"""Records and identities survive being written and read; damage is noticed, never guessed around."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nfs_provisioner.errors import RefusedForSafety
from nfs_provisioner.export.records import (
    ClaimRef,
    Identity,
    Policy,
    State,
    VolumeRecord,
    decode_identity,
    decode_record,
    encode_identity,
    encode_record,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.dictionaries(TEXT, inner), max_leaves=5
)
POLICIES = st.builds(
    Policy,
    on_delete=st.sampled_from(["archive", "delete", "retain"]),
    archive_retention=st.none() | st.floats(0, 1e9),
    directory_mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    quota=st.sampled_from(["none", "soft"]),
)
RECORDS = st.builds(
    VolumeRecord,
    pv=TEXT,
    tree=TEXT,
    claim=st.builds(ClaimRef, TEXT, TEXT, TEXT),
    directory=TEXT,
    state=st.sampled_from(State),
    rev=st.integers(1, 2**40),
    since=TEXT,
    target=st.none() | TEXT,
    inode=st.none() | st.integers(0, 2**64 - 1),
    requested=st.integers(0, 2**60),
    policy=POLICIES,
    storage_class=TEXT,
    former=st.none() | TEXT,
    shared=st.booleans(),
    origin=st.none() | TEXT,
    successor=st.none() | TEXT,
    manifests=st.dictionaries(TEXT, JSON, max_size=2),
    clone_of=st.none() | TEXT,
    copied=st.booleans(),
)
IDENTITIES = st.builds(
    Identity,
    pair=TEXT,
    cluster=TEXT,
    export=TEXT,
    replica=TEXT,
    replica_id=TEXT,
    root=TEXT,
    epoch=st.integers(1, 2**40),
    promotion=TEXT,
    active=TEXT,
    seq=st.integers(0, 2**40),
    members=st.dictionaries(TEXT, TEXT, max_size=2),
    parents=st.lists(st.dictionaries(TEXT, st.integers() | TEXT, max_size=3), max_size=2).map(tuple),
)


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: VolumeRecord) -> None:
    assert decode_record(encode_record(record), source="x") == record
    assert decode_record(encode_record(record), source="x", manifests=False) == record.slim()


@given(IDENTITIES)
def test_an_identity_is_read_as_it_was_written(identity: Identity) -> None:
    assert decode_identity(encode_identity(identity), source="x") == identity


@given(RECORDS, st.data())
def test_a_record_cut_off_anywhere_is_refused(record: VolumeRecord, data: st.DataObject) -> None:
    """Half a write must not read as a smaller record."""
    encoded = encode_record(record)
    end = data.draw(st.integers(0, len(encoded) - 2))
    with pytest.raises(RefusedForSafety, match="volumes/x"):
        decode_record(encoded[:end], source="volumes/x")


REQUIRED = (
    "version",
    "pv",
    "tree",
    "rev",
    "state",
    "since",
    "claim",
    "directory",
    "target",
    "inode",
    "requested",
    "policy",
)


@given(RECORDS, st.sampled_from(REQUIRED))
def test_a_record_without_a_field_is_refused(record: VolumeRecord, key: str) -> None:
    raw = json.loads(encode_record(record))
    del raw[key]
    with pytest.raises(RefusedForSafety):
        decode_record(json.dumps(raw), source="x")


WRONG: list[tuple[str, Any]] = [
    ("version", 2), ("state", "lost"), ("rev", "x"), ("claim", "ns/name"), ("policy", None),
    ("directory", None), ("directory", 5), ("pv", ["x"]), ("inode", "12"), ("target", 7), ("tree", None),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_h02_a_field_of_a_wrong_type_is_refused_when_it_is_read(key: str, value: Any) -> None:
    record = VolumeRecord("pv", "tree", ClaimRef("ns", "name", "uid"), "app", State.LIVE)
    raw = json.loads(encode_record(record))
    raw[key] = value
    with pytest.raises(RefusedForSafety):
        decode_record(json.dumps(raw), source="x")
