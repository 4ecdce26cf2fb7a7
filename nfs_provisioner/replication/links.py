"""Sets of hard links: which name shows which file on both sides, and making the target's the same.

Reads both sides, and writes through the copier. Keeps: a set is copied once and linked; of files that both sides have,
one inode of the target serves at most one inode of the source; what must go elsewhere is replaced, never written to.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from nfs_provisioner.replication import tree
from nfs_provisioner.replication.copier import Copier, Done
from nfs_provisioner.replication.entries import Rules, equal, parent, same_content
from nfs_provisioner.replication.inspection import Inspector


@dataclass(slots=True)
class _Set:
    """Names of one source inode, each with the target's inode (0: none); `equal`: they look it. `late`: the rest.

    `rules` are of the directory of the first.
    """

    nlink: int
    rules: Rules
    names: list[tuple[str, int]] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    equal: bool = True


@dataclass(slots=True)
class Plan:
    """`members` are to show the file staged as `staged` in `spool`, or the one at `model` on the target."""

    members: list[tuple[str, int]]
    inode: int
    model: str
    spool: int = -1
    staged: str = ""


class Links:
    """Collects names while the tree is walked; `plans` and `publish` are used afterwards, by one thread."""

    def __init__(
        self, source: int, target: int, rules: Rules, copier: Copier, inspector: Inspector, guard: Callable[[], None]
    ) -> None:
        self._source, self._target, self._rules = source, target, rules
        self._copier, self._inspector, self._guard = copier, inspector, guard
        self._sets: dict[int, _Set] = {}
        self._claimed: set[int] = set()

    def add(self, path: str, found: os.stat_result, was: os.stat_result | None, rules: Rules) -> None:
        """Note a name."""
        known = self._sets.get(found.st_ino)
        if known is None:
            known = self._sets[found.st_ino] = _Set(found.st_nlink, rules)
        known.names.append((path, was.st_ino if was is not None else 0))
        known.equal = known.equal and was is not None and equal(found, was, rules.holds)
        known.equal = known.equal and was is not None and not rules.checksum and not rules.suspicious(found, was)

    def add_late(self, path: str, found: os.stat_result) -> None:
        """Note a name whose place on the target a directory takes up yet."""
        self._sets.setdefault(found.st_ino, _Set(found.st_nlink, self._rules.strict)).late.append(path)

    def is_late(self, path: str, inode: int) -> bool:
        """Whether the name was noted as one of this file's."""
        return inode in self._sets and path in self._sets[inode].late

    def again(self, freed: Collection[str]) -> Links:
        """The sets of late names whose places were freed, as they are now."""
        links = Links(self._source, self._target, self._rules, self._copier, self._inspector, self._guard)
        for known in self._sets.values():
            late = [path for path in known.late if path in freed]
            for path in (*(path for path, _ in known.names), *late) if late else ():
                if (found := tree.look_at(self._source, path)) is not None and not tree.is_directory(found):
                    links.add(path, found, tree.look_at(self._target, path), self._rules.strict)
        return links

    def drop(self, directories: Collection[str]) -> None:
        """These directories are looked at once more: their names come again."""
        for inode, known in list(self._sets.items()):
            known.names = [(path, was) for path, was in known.names if parent(path) not in directories]
            known.late = [path for path in known.late if parent(path) not in directories]
            if not known.names and not known.late:
                del self._sets[inode]

    def incomplete(self) -> list[str]:
        """First names of sets of which not all names were seen: they lie elsewhere, or were not walked."""
        found = [([path for path, _ in known.names] + known.late, known.nlink) for known in self._sets.values()]
        return [names[0] for names, nlink in found if len(names) < nlink]

    def plans(self, done: Done) -> Iterator[Plan]:
        """What is to be linked, set by set; copies that are due are staged on the way."""
        due = []
        for inode, known in self._sets.items():
            targets = {was for _, was in known.names}
            if known.equal and len(targets) == 1 and not targets & self._claimed:
                self._claimed |= targets
            else:
                due.append(inode)
        for inode in due:
            plan = self._plan(inode, self._sets[inode], done)
            if plan is not None:
                yield plan
            if done.full:
                return

    def _plan(self, inode: int, known: _Set, done: Done) -> Plan | None:
        members, found = [], None
        for path, was in known.names:
            try:
                now = tree.look_at(self._source, path)
            except OSError as error:
                done.failed(path, error)
                continue
            if now is None or now.st_ino != inode:
                done.unstable.append(path)  # moved since it was listed
                continue
            members.append((path, was))
            found = now
        if found is None:
            return None
        model = members[0][0]
        try:
            rotten: set[int] = set()
            serving = self._serving(members, found, known.rules, rotten, done)
            if serving is not None:
                if all(was == serving[1] for _, was in members):
                    return None
                return Plan(members, serving[1], serving[0])
            if rotten:
                done.different.extend(path for path, was in members if was in rotten)
                return None
            if self._copier.dry_run:
                return Plan(members, 0, model)
            above = tree.open_directory(self._source, parent(model))
            try:
                staged = self._copier.stage_alone(above, model.rpartition("/")[2], found, model, done)
            finally:
                os.close(above)
            if staged is None:
                return None
            return Plan(members, 0, model, self._copier.spool(), staged)
        except OSError as error:
            done.failed(model, error)
            return None

    def _serving(
        self, members: list[tuple[str, int]], found: os.stat_result, rules: Rules, rotten: set[int], done: Done
    ) -> tuple[str, int] | None:
        """A name on the target, and its inode, that holds this file's content already, mended to be equal.

        `rotten` gets the inodes that look like it, and hold something else.
        """
        for inode, _ in Counter(was for _, was in members if was and was not in self._claimed).most_common(3):
            path = next(path for path, was in members if was == inode)
            now = tree.look_at(self._target, path)
            if now is None or now.st_ino != inode or not same_content(found, now, self._rules.holds):
                continue
            serves = self._inspector.same_or_mended(self._source, path, found, now, done)
            if serves:
                self._claimed.add(inode)
                return path, inode
            if serves is False and self._inspector.is_rot(found, now, rules):
                rotten.add(inode)
        return None

    def publish(self, plan: Plan, done: Done) -> list[str]:
        """Link every member that does not show the file yet; the directories that were changed."""
        changed = []
        for path, was in plan.members:
            if plan.inode and was == plan.inode:
                continue
            if self._copier.dry_run:
                done.log.append(f"copy {path}")
                continue
            self._guard()
            try:
                self._link(plan, path)
                done.linked += 1
                changed.append(parent(path))
            except OSError as error:
                done.failed(path, error)
        if plan.staged and plan.spool >= 0:
            tree.remove(plan.spool, plan.staged)
        return changed

    def _link(self, plan: Plan, path: str) -> None:
        spool, temporary = self._copier.spool(), f"l{self._copier.number()}"
        if plan.staged:
            os.link(plan.staged, temporary, src_dir_fd=plan.spool, dst_dir_fd=spool, follow_symlinks=False)
        else:
            above = tree.open_directory(self._target, parent(plan.model))
            try:
                name = plan.model.rpartition("/")[2]
                os.link(name, temporary, src_dir_fd=above, dst_dir_fd=spool, follow_symlinks=False)
            finally:
                os.close(above)
        directory, name = parent(path), path.rpartition("/")[2]
        above = tree.open_directory(self._target, directory)
        try:
            self._copier.trash.keep(above, directory, name)
            os.rename(temporary, name, src_dir_fd=spool, dst_dir_fd=above)
        finally:
            os.close(above)
