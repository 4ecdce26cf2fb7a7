"""What a replica can look like when a controller starts: the rows and columns of the table of identities."""

from __future__ import annotations

from dataclasses import replace

from nfs_provisioner.export.identity import Remembered, View
from nfs_provisioner.export.records import Identity
from nfs_provisioner.export.root import Facts

EXPORT, CLUSTER = "web", "cluster"
KNOWN = Remembered("a", 2, "p2")
EMPTY = Remembered()


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


def kinds(name: str) -> dict[str, View]:
    """What a replica of this name can show. The pair is at epoch 2, a is active."""
    mine, other = right(name), right("b" if name == "a" else "a")
    found = {
        "unmounted": facts(name, None, empty=True, unmounted=True),  # the container's own file system
        "empty": facts(name, None, empty=True),
        "foreign": facts(name, None),  # holds something, and no identity
        "right": facts(name, mine),
        "other-cluster": facts(name, replace(mine, cluster="another")),
        "other-export": facts(name, replace(mine, export="another")),
        "swapped": facts(name, replace(other, root=f"root-{name}")),  # the other replica's mount
        "copied": facts(name, replace(mine, root="root-elsewhere")),  # right, but written on another file system
        "other-pair": facts(name, replace(mine, pair="another", promotion="another")),
        "older": facts(name, replace(mine, epoch=1, promotion="p1", seq=3, parents=())),  # before the last promotion
        "newer-seq": facts(name, replace(mine, seq=9)),
        "promoted": facts(name, replace(mine, epoch=3, promotion="p3", active=name)),  # made active itself since
    }
    # A damaged export.json counts as unreachable, too: nothing is known.
    return {"unreachable": View(name, None, "no answer")} | {kind: View(name, seen) for kind, seen in found.items()}


KINDS = tuple(kinds("a"))


def view(name: str, kind: str) -> View:
    """A replica of one of KINDS."""
    return kinds(name)[kind]
