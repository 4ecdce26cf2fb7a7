"""What a replica can look like when a controller starts: the rows and columns of the table of identities."""

from __future__ import annotations

from dataclasses import replace

from nfs_provisioner.export.identity import Remembered, View
from nfs_provisioner.export.records import Identity
from nfs_provisioner.export.store import Facts

EXPORT, CLUSTER = "web", "cluster"
KNOWN = Remembered("a", 2, "p2")
EMPTY = Remembered()

#: Kinds of replicas. The pair is at epoch 2, a is active.
KINDS = (
    "unreachable",  # a damaged export.json counts as this, too: nothing is known
    "unmounted",  # the container's own file system
    "empty",
    "foreign",  # holds something, and no identity
    "right",
    "other-cluster",
    "other-export",
    "swapped",  # the other replica's mount
    "copied",  # right, but on another file system than it was written on
    "other-pair",
    "older",  # as it was before the last promotion
    "newer-seq",
    "promoted",  # made active itself, one epoch later
)


def right(name: str) -> Identity:
    """What export.json of a replica says when all is well."""
    return Identity(
        pair="pair",
        cluster=CLUSTER,
        export=EXPORT,
        replica=name,
        replica_id=f"id-{name}",
        root=f"root-{name}",
        epoch=2,
        promotion="p2",
        active="a",
        seq=5,
        members={"a": "id-a", "b": "id-b"},
        parents=({"epoch": 1, "promotion": "p1", "seq": 3},),
    )


def facts(name: str, identity: Identity | None, *, empty: bool = False, unmounted: bool = False) -> Facts:
    """A replica that was looked at."""
    return Facts(identity, empty, f"root-{name}", "ext4", f"{name}:2", unmounted)


def view(name: str, kind: str) -> View:
    """A replica of one of KINDS."""
    mine, other = right(name), right("b" if name == "a" else "a")
    identities = {
        "right": mine,
        "other-cluster": replace(mine, cluster="another"),
        "other-export": replace(mine, export="another"),
        "swapped": replace(other, root=f"root-{name}"),
        "copied": replace(mine, root="root-elsewhere"),
        "other-pair": replace(mine, pair="another", promotion="another"),
        "older": replace(mine, epoch=1, promotion="p1", seq=3, parents=()),
        "newer-seq": replace(mine, seq=9),
        "promoted": replace(mine, epoch=3, promotion="p3", active=name),
    }
    if kind == "unreachable":
        return View(name, None, "no answer")
    if kind in identities:
        return View(name, facts(name, identities[kind]))
    return View(name, facts(name, None, empty=kind != "foreign", unmounted=kind == "unmounted"))
