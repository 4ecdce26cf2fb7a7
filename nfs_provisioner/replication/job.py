"""What one pass is asked to do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nfs_provisioner.replication.entries import FULL, DirectoryId, Holds
from nfs_provisioner.replication.tally import Counts

LOCAL_THREADS = 4
"""Up to so many, one thread walks and the others copy; more pay where every call waits for a network."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to pass, and how. Descriptors stay the caller's.

    `source`, `target`: open directories. `staging`: an empty private directory of the target's file system (any number
    in a dry run). `trash`: where what is replaced or deleted goes, by its relative path; None: it is not kept.
    `base`: start (ns, source clock) of the last clean pass; None: there was none. `missed`: paths whose deletion the
    last pass put off. `directories`: the index it left. `only`: dirty directories, with their entries and new subtrees;
    None: everything. `delete_limit`: may so many of so many target entries go? `skip`: names at the root that are not
    part of the tree. `threads`: 4 where both sides are local, 32 over a network. `guard` raises to stop; `prove` raises
    RefusedForSafety when a side is not what it should be. `clock` gives the source's time (ns); None: this machine's.
    `one_clock`: without a base, both sides' ctimes can be compared. `wrote`: when we last wrote on the target, by its
    own clock (ns); None: not known, and nothing there is taken for somebody else's. `foreign`: what
    was, in the last pass; `forgiven`: what of that may be replaced and deleted like our own. `deleted` is told, from
    any thread, how many entries went with a name, when it is gone.
    """

    source: int
    target: int
    staging: int
    trash: int | None
    base: int | None
    holds: Holds = FULL
    missed: frozenset[str] = frozenset()
    directories: Mapping[str, DirectoryId] = field(default_factory=dict)
    only: frozenset[str] | None = None
    delete_limit: Callable[[int, int], bool] = lambda deletions, entries: True
    skip: frozenset[str] = frozenset()
    threads: int = LOCAL_THREADS
    dry_run: bool = False
    checksum: bool = False
    guard: Callable[[], None] = lambda: None
    prove: Callable[[], None] = lambda: None
    progress: Callable[[Counts], None] = lambda counts: None
    clock: Callable[[], int] | None = None
    one_clock: bool = False
    wrote: int | None = None
    foreign: frozenset[str] = frozenset()
    forgiven: frozenset[str] = frozenset()
    deleted: Callable[[int], None] = lambda entries: None
