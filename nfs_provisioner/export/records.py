"""What is written on an export: the identity of a replica and one record per volume.

Pure: dataclasses and their JSON. Reading and writing files is `store.py`. A record is the only thing that makes a
directory ours; `inode` is local to the replica that the record lies on, everything else is equal on both.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from nfs_provisioner.errors import RefusedForSafety

VERSION = 1
CONTROL_DIRECTORY = ".nfs-provisioner"
IDENTITY_FILE = "export.json"
MOMENT = "%Y-%m-%dT%H:%M:%SZ"  # as records say when something happened; what is later sorts behind
LATEST = 253_402_300_799.0  # the last Unix time that can be said so


class State(StrEnum):
    """Where a volume is in its life; `docs/design.md` has the ways between them."""

    CREATING = "creating"
    LIVE = "live"
    ARCHIVING = "archiving"
    ARCHIVED = "archived"
    RESTORING = "restoring"
    DELETING = "deleting"
    DELETED = "deleted"
    RETAINED = "retained"
    ORPHANED = "orphaned"


#: A move was begun and its target is in the record.
MOVING = frozenset({State.ARCHIVING, State.DELETING, State.RESTORING})
#: The record counts against what the export has promised.
RESERVING = frozenset({State.CREATING, State.LIVE, State.RESTORING, State.ORPHANED, State.RETAINED})
#: States that both replicas hold alike; the others belong to an act in progress on the active one.
SETTLED = frozenset({State.LIVE, State.ARCHIVED, State.DELETED, State.RETAINED, State.ORPHANED})


_NOTHING: Mapping[str, Any] = {}


def _values(instance: Any) -> tuple[Any, ...]:
    """For pickling between the processes: several times faster than what a frozen dataclass does by itself."""
    return tuple(getattr(instance, name) for name in instance.__slots__)


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """The claim a volume belongs to. `uid` is empty only for volumes recovered without one."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _claim_ref, _values(self)


@dataclass(frozen=True, slots=True)
class Policy:
    """StorageClass parameters as they were when the volume was made; later edits of the class change nothing."""

    on_delete: str = "archive"
    archive_retention: float | None = None  # seconds; None keeps archives for ever
    directory_mode: int = 0o777
    uid: int = 0
    gid: int = 0
    quota: str = "none"

    def __reduce__(self) -> tuple[Any, ...]:
        return _policy, _values(self)


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """One volume. `directory` and `target` are relative to the export's root, `requested` is in bytes.

    `rev` rises by one with each change, so that two replicas can tell which of them is behind. `tree` names the data
    and survives archiving and restoring. `since` is the UTC time of the last change of state, RFC 3339.
    """

    pv: str
    tree: str
    claim: ClaimRef
    directory: str
    state: State
    rev: int = 1
    since: str = ""
    target: str | None = None
    inode: int | None = None
    requested: int = 0
    policy: Policy = Policy()
    storage_class: str = ""
    former: str | None = None  # directory that the last move gave up
    shared: bool = False  # taken over from another provisioner with a second PV on the same directory: never moved
    origin: str | None = None  # PV whose archive this volume was restored from
    successor: str | None = None  # PV that took this record's tree over (only in a tombstone)
    manifests: Mapping[str, Any] = field(default_factory=dict)  # {"pv": ..., "claim": ...}: enough for `recover`
    clone_of: str | None = None  # PV whose files this volume began as a copy of
    copied: bool = False  # of a clone: the copy is finished, and is never written to again

    @property
    def holds_directory(self) -> bool:
        """Whether `directory` is this record's own (a tombstone's is not)."""
        return self.state is not State.DELETED

    def advanced(self, **changes: Any) -> VolumeRecord:
        """The next revision."""
        return replace(self, rev=self.rev + 1, **changes)

    def slim(self) -> VolumeRecord:
        """Without the manifests, for the controller's memory."""
        return replace(self, manifests=_NOTHING)

    def __reduce__(self) -> tuple[Any, ...]:
        return _volume_record, _values(self)


# What another process sent: texts that thousands of records, the other replica and the caches have too are kept once.


def _claim_ref(*texts: str) -> ClaimRef:
    return ClaimRef(*map(sys.intern, texts))


@functools.lru_cache(maxsize=1024)
def _same_policy(*values: Any) -> Policy:
    return Policy(*values)


def _policy(*values: Any) -> Policy:
    return _same_policy(*values)


def _volume_record(*values: Any) -> VolumeRecord:
    same: Any = (sys.intern(value) if type(value) is str else value for value in values)
    return VolumeRecord(*same)


@dataclass(frozen=True, slots=True)
class Identity:
    """`export.json`: which pair, cluster and replica this is, and how new it is.

    `root` is the file handle of the export's root when this was written: a tree that was copied, cloned or restored
    to another place carries the old handle and is noticed. `parents` lists earlier promotions, oldest first.
    """

    pair: str
    cluster: str
    export: str
    replica: str
    replica_id: str
    root: str
    epoch: int
    promotion: str
    active: str
    seq: int = 0
    members: Mapping[str, str] = field(default_factory=dict)  # replica name -> replica id, as far as known
    parents: tuple[Mapping[str, Any], ...] = ()


def encode_record(record: VolumeRecord) -> bytes:
    """JSON that a person can read at night with `cat`."""
    return _dump(
        {
            "version": VERSION,
            "pv": record.pv,
            "tree": record.tree,
            "rev": record.rev,
            "state": str(record.state),
            "since": record.since,
            "claim": {"namespace": record.claim.namespace, "name": record.claim.name, "uid": record.claim.uid},
            "directory": record.directory,
            "target": record.target,
            "inode": record.inode,
            "former": record.former,
            "requested": record.requested,
            "storageClass": record.storage_class,
            "shared": record.shared,
            "origin": record.origin,
            "successor": record.successor,
            **({"cloneOf": record.clone_of} if record.clone_of is not None else {}),
            **({"copied": True} if record.copied else {}),
            "policy": {
                "onDelete": record.policy.on_delete,
                "archiveRetention": record.policy.archive_retention,
                "directoryMode": f"{record.policy.directory_mode:04o}",
                "uid": record.policy.uid,
                "gid": record.policy.gid,
                "quota": record.policy.quota,
            },
            "manifests": dict(record.manifests),
        }
    )


def decode_record(data: bytes | str, *, source: str, manifests: bool = True) -> VolumeRecord:
    """Parse a record. RefusedForSafety, naming `source`, when it is damaged or of a newer version."""
    try:
        raw = json.loads(data)
        _check_version(raw, source)
        _check_types(raw)
        claim, policy = raw["claim"], raw["policy"]
        same = sys.intern  # thousands are read at once, and sent to the controller, which keeps each text once anyway
        return VolumeRecord(
            pv=same(raw["pv"]),
            tree=same(raw["tree"]),
            rev=int(raw["rev"]),
            state=State(raw["state"]),
            since=same(raw["since"]),
            claim=_claim_ref(claim["namespace"], claim["name"], claim["uid"]),
            directory=same(raw["directory"]),
            target=raw["target"],
            inode=raw["inode"],
            requested=int(raw["requested"]),
            storage_class=same(raw.get("storageClass", "")),
            former=raw.get("former"),
            shared=bool(raw.get("shared", False)),
            origin=raw.get("origin"),
            successor=raw.get("successor"),
            clone_of=raw.get("cloneOf"),
            copied=bool(raw.get("copied", False)),
            policy=Policy(
                on_delete=policy["onDelete"],
                archive_retention=policy["archiveRetention"],
                directory_mode=int(policy["directoryMode"], 8),
                uid=policy["uid"],
                gid=policy["gid"],
                quota=policy["quota"],
            ),
            manifests=raw.get("manifests", {}) if manifests else _NOTHING,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedForSafety(
            f"{source}: this record cannot be read ({type(error).__name__}: {error}); its volume is left alone. "
            "Restore it from a backup of this replica; of the other replica's file, all but the inode is the same."
        ) from error


def encode_identity(identity: Identity) -> bytes:
    """JSON of `export.json`."""
    return _dump(
        {
            "version": VERSION,
            "pair": identity.pair,
            "cluster": identity.cluster,
            "export": identity.export,
            "replica": identity.replica,
            "replicaId": identity.replica_id,
            "root": identity.root,
            "epoch": identity.epoch,
            "promotion": identity.promotion,
            "active": identity.active,
            "seq": identity.seq,
            "members": dict(identity.members),
            "parents": [dict(parent) for parent in identity.parents],
        }
    )


def decode_identity(data: bytes | str, *, source: str) -> Identity:
    """Parse `export.json`. RefusedForSafety, naming `source`, when it is damaged or of a newer version."""
    try:
        raw = json.loads(data)
        _check_version(raw, source)
        return Identity(
            pair=raw["pair"],
            cluster=raw["cluster"],
            export=raw["export"],
            replica=raw["replica"],
            replica_id=raw["replicaId"],
            root=raw["root"],
            epoch=int(raw["epoch"]),
            promotion=raw["promotion"],
            active=raw["active"],
            seq=int(raw["seq"]),
            members=dict(raw["members"]),
            parents=tuple(raw["parents"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedForSafety(
            f"{source}: the identity of this replica cannot be read ({type(error).__name__}: {error}); "
            "nothing on it is touched. Restore the file from a backup or from the other replica's history."
        ) from error


_TYPES = (
    ("pv", str), ("tree", str), ("since", str), ("directory", str), ("target", (str, type(None))),
    ("inode", (int, type(None))), ("claim", dict), ("policy", dict),
)  # fmt: skip


def _check_types(raw: Mapping[str, Any]) -> None:
    for key, kind in _TYPES:
        if not isinstance(raw[key], kind):
            raise TypeError(f"{key} is {raw[key]!r}")


def _check_version(raw: Mapping[str, Any], source: str) -> None:
    if raw["version"] != VERSION:
        raise RefusedForSafety(
            f"{source}: version {raw['version']!r} is not one this program knows ({VERSION}); "
            "it was written by a newer nfs-provisioner: upgrade this one."
        )


def _dump(raw: Mapping[str, Any]) -> bytes:
    return (json.dumps(raw, ensure_ascii=False, separators=(", ", ": ")) + "\n").encode("utf-8", "surrogatepass")
