"""Which replica is which, and whether it may be written to. Pure: facts in, a verdict out.

The invariant: a replica is attached only with an identity that was proven (its own `export.json`, the partner's, and
the NFSExport's status agree) or with a first identity on a replica that cannot hold anybody's data of ours. Wherever
they disagree, the verdict says what was found and what a person can do; it never guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nfs_provisioner.export.records import Identity
from nfs_provisioner.export.root import Facts


@dataclass(frozen=True, slots=True)
class View:
    """What is known of one replica: `facts`, or the reason why it could not be looked at."""

    name: str
    facts: Facts | None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the NFSExport's status says; empty before the first start."""

    active: str = ""
    epoch: int = 0
    promotion: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`attach` maps replicas that may be used to the identity they get; `active` is None when nothing may happen."""

    phase: str
    message: str
    active: str | None = None
    attach: Mapping[str, Identity] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)  # replica -> why it is left out


def judge(
    export: str,
    cluster: str,
    status: Remembered,
    views: tuple[View, ...],
    *,
    accepted: str | None = None,
    new_id: Callable[[], str],
) -> Verdict:
    """Decide. `views` are in the order of the spec; `accepted` is the replica that a person vouched for."""
    if accepted not in {view.name for view in views}:
        accepted = None  # it was taken out of the spec since
    problems = {view.name: problem for view in views if (problem := _unusable(view, export, cluster, accepted))}
    seen = [view for view in views if view.facts is not None]
    if len({view.facts.place for view in seen if view.facts is not None}) < len(seen):
        names = " and ".join(view.name for view in seen)
        return _stop(
            "Halted", f"replicas {names} are the same directory; a copy needs another server or disk", problems
        )
    if accepted is not None and _one_tree(seen):
        return _stop(
            "Halted",
            f"every replica shows the same export.json and root: one server is mounted twice. "
            f"'accept {export} --replica {accepted}' cannot make two of it; correct spec.replicas[].mountPath",
            problems,
        )
    views = _taken_over(export, cluster, views, accepted)
    if accepted is not None:
        without = judge(export, cluster, status, views, new_id=new_id)
        if without.active == accepted:
            return without  # proven as it is: vouching for it changes nothing
        problems = {view.name: problem for view in views if (problem := _unusable(view, export, cluster, accepted))}
    usable = {view.name: view.facts for view in views if view.facts is not None and view.name not in problems}
    if status.promotion:
        return _known(export, cluster, status, views, usable, problems, accepted, new_id)
    return _first(export, cluster, views, usable, problems, accepted, new_id)


def _taken_over(export: str, cluster: str, views: tuple[View, ...], accepted: str | None) -> tuple[View, ...]:
    """After the loss of a cluster a person vouches for the active only: what agrees with it in everything comes along.

    Returns the views as if both had been of this cluster; attaching writes it down.
    """
    chosen = next((view.facts for view in views if view.name == accepted), None)
    lead = None if chosen is None else chosen.identity
    if chosen is None or lead is None or lead.root != chosen.handle:
        return views
    if (lead.export, lead.replica, lead.active) != (export, accepted, accepted):
        return views

    def moved(view: View) -> View:
        found = None if view.facts is None else view.facts.identity
        if view.facts is None or found is None or found.cluster == cluster:
            return view
        # While the active is being attached it is of this cluster already; its list of members still tells who is who.
        partner = found.cluster == lead.cluster or lead.members.get(view.name) == found.replica_id
        same = partner and _follows(found, lead)
        return replace(view, facts=replace(view.facts, identity=replace(found, cluster=cluster))) if same else view

    return tuple(moved(view) for view in views)


def _one_tree(seen: list[View]) -> bool:
    """Whether two replicas are mounts of one server that have different device numbers (as NFS gives them)."""
    trees = [(v.facts.identity, v.facts.handle) for v in seen if v.facts is not None and v.facts.identity is not None]
    return any(tree in trees[:number] for number, tree in enumerate(trees))


def _unusable(view: View, export: str, cluster: str, accepted: str | None) -> str:
    """Why this replica alone, without a look at the others, must be left alone; empty when it need not."""
    facts = view.facts
    if facts is None:
        return view.message or "not reachable"
    if facts.unmounted:
        return "nothing is mounted at its mountPath (it is the container's own file system)"
    found = facts.identity
    if found is None or accepted == view.name:
        return ""
    remedy = f"If this disk is the right one: request 'accept {export} --replica {view.name}'."
    if found.cluster != cluster:
        return f"its export.json is of another cluster ({found.cluster}; this is {cluster}). {remedy}"
    if found.export != export:
        return f"its export.json is of NFSExport {found.export!r}. Two exports cannot share a directory. {remedy}"
    if found.replica != view.name:
        return (
            f"its export.json is replica {found.replica!r}'s: two mounts are swapped, or it was copied here. "
            f"Check spec.replicas[].mountPath. {remedy}"
        )
    if found.root != facts.handle:
        return (
            f"its tree was copied or restored to another place since (root {facts.handle}, was {found.root}). {remedy}"
        )
    return ""


def _known(
    export: str,
    cluster: str,
    status: Remembered,
    views: tuple[View, ...],
    usable: Mapping[str, Facts],
    problems: dict[str, str],
    accepted: str | None,
    new_id: Callable[[], str],
) -> Verdict:
    """The export has run before: the active must prove itself against the status, the standby against the active."""
    name = status.active
    if name not in {view.name for view in views}:
        return _stop(
            "Halted",
            f"the active replica {name!r} is not in spec.replicas any more; put it back or switch over first",
            problems,
        )
    if name in problems:
        reachable = next(view.facts is not None for view in views if view.name == name)
        return _stop("Halted" if reachable else "Degraded", f"active replica {name}: {problems[name]}", problems)
    mine = usable[name].identity
    blank = accepted == name and mine is None and usable[name].empty
    if blank and (held := _held_elsewhere(export, cluster, name, views)):
        return _stop("Halted", f"active replica {name}: {held}", problems)
    if accepted == name:
        mine = _vouched(export, cluster, name, usable[name], mine, status, new_id)
    if mine is None:
        problems[name] = (
            "its export.json is gone: it is not mounted, or another disk is. "
            f"If this disk is the right one: request 'accept {export} --replica {name}'."
        )
        return _stop("Halted", f"active replica {name}: {problems[name]}", problems)
    if accepted != name and (mine.epoch, mine.promotion, mine.active) != (status.epoch, status.promotion, name):
        problems[name] = (
            f"its export.json says epoch {mine.epoch}, promotion {mine.promotion}, active {mine.active!r}; the status "
            f"says epoch {status.epoch}, promotion {status.promotion}, active {name!r}. "
            f"If this disk is the right one: request 'accept {export} --replica {name}'."
        )
        return _stop("Halted", f"active replica {name}: {problems[name]}", problems)
    return _with_standby(export, mine, usable, views, problems, accepted, new_id)


def _held_elsewhere(export: str, cluster: str, name: str, views: tuple[View, ...]) -> str:
    """Why an empty disk must not take the active's place: another replica has, or may have, the volumes (H37)."""
    for other in views:
        found = other.facts.identity if other.facts is not None else None
        unseen = other.facts is None or other.facts.unmounted
        if other.name != name and (unseen or (found and (found.export, found.cluster) == (export, cluster))):
            return (
                f"it is empty, and replica {other.name} {'may have' if unseen else 'has'} the volumes of this export. "
                f"Fill {name} first, from a backup or with all that {other.name} has (.nfs-provisioner too), then "
                f"'accept' it. To begin with nothing: take {other.name} out of spec.replicas, then 'accept' {name}."
            )
    return ""


def _first(
    export: str,
    cluster: str,
    views: tuple[View, ...],
    usable: Mapping[str, Facts],
    problems: dict[str, str],
    accepted: str | None,
    new_id: Callable[[], str],
) -> Verdict:
    """No status yet: everything must be seen before anything is claimed."""
    for view in views:
        if view.name in problems:
            phase = "Halted" if view.facts is not None else "Initializing"
            return _stop(
                phase, f"replica {view.name}: {problems[view.name]}; a first start needs every replica", problems
            )
    known = {name: facts.identity for name, facts in usable.items() if facts.identity is not None}
    full = [name for name, facts in usable.items() if not facts.empty or facts.identity is not None]
    blank = accepted if accepted not in full and full else None  # vouched for as new, not as the one with the data
    if known and accepted == blank:
        actives = {identity.active for identity in known.values()}
        promotions = {(identity.pair, identity.epoch, identity.promotion) for identity in known.values()}
        active = next(iter(actives))
        if len(actives) > 1 or len(promotions) > 1 or active not in known:
            return _stop(
                "Halted",
                f"the replicas disagree: {_describe(known)}. "
                f"Request 'accept {export} --replica NAME' for the one with the right data.",
                problems,
            )
        unseen = sorted(set(known[active].members) - {*known, blank})
        if unseen:  # it may have been promoted since: a side that is alone cannot know whether it is the old one (H46)
            return _stop(
                "Halted",
                f"replica {active} says that {' and '.join(unseen)} belongs to this pair, which shows no export.json "
                f"now (not mounted?) and may have newer data. "
                f"If it has not: request 'accept {export} --replica {active}'.",
                problems,
            )
        return _with_standby(export, known[active], usable, views, problems, accepted, new_id)
    if len(full) > 1 and accepted == blank:
        return _stop(
            "Halted",
            f"replicas {' and '.join(full)} both hold data and neither is known. "
            f"Request 'accept {export} --replica NAME' for the one with the right data.",
            problems,
        )
    active = full[0] if blank else accepted or (full[0] if full else views[0].name)
    mine = _vouched(export, cluster, active, usable[active], usable[active].identity, Remembered(), new_id)
    return _with_standby(export, mine, usable, views, problems, accepted, new_id)


def _vouched(
    export: str,
    cluster: str,
    name: str,
    facts: Facts,
    found: Identity | None,
    status: Remembered,
    new_id: Callable[[], str],
) -> Identity:
    """An identity for a replica that is empty, first of all, or vouched for by a person.

    One of another promotion than the status says gets a new one, so that no partner of either line is taken for its
    standby.
    """
    if found is not None and status.promotion and (found.epoch, found.promotion) != (status.epoch, status.promotion):
        own = _vouched(export, cluster, name, facts, found, Remembered(name, found.epoch, found.promotion), new_id)
        return _promoted(own, status.epoch, new_id())
    return Identity(
        pair=found.pair if found else new_id(),
        cluster=cluster,
        export=export,
        replica=name,
        replica_id=new_id(),
        root=facts.handle,
        epoch=status.epoch or (found.epoch if found else 1),
        promotion=status.promotion or new_id(),
        active=name,
        seq=found.seq if found else 0,
        # Nobody vouched for the partner: one that is empty now may be unmounted (H46).
        members={other: known for other, known in found.members.items() if other != name} if found else {},
        parents=found.parents if found else (),
    )


def _with_standby(
    export: str,
    mine: Identity,
    usable: Mapping[str, Facts],
    views: tuple[View, ...],
    problems: dict[str, str],
    accepted: str | None,
    new_id: Callable[[], str],
) -> Verdict:
    """The active is proven; add the standby if it is proven too, or new and empty."""
    for view in views:
        found = None if view.facts is None or view.name == mine.replica else view.facts.identity
        contradiction = _contradiction(export, mine, view.name, found)
        if contradiction and accepted != mine.replica:
            return _stop("Diverged", contradiction, problems)
        if contradiction and found is not None:
            mine = _promoted(mine, found.epoch, new_id())
    attach: dict[str, Identity] = {}
    for view in views:
        if view.name == mine.replica or view.name in problems:
            continue
        facts = usable[view.name]
        found = facts.identity
        joining = found is None and facts.empty and view.name not in mine.members
        if found is not None and found.replica_id == mine.replica_id and facts.handle == mine.root:
            problems[view.name] = f"it shows the very tree of replica {mine.replica}: mount the other server's there"
        elif found is not None and _follows(found, mine):
            attach[view.name] = _own(found, export, mine.cluster, view.name, facts, new_id)
        elif joining or (accepted == view.name and facts.empty):
            attach[view.name] = replace(
                mine, replica=view.name, replica_id=new_id(), root=facts.handle, seq=0, members={}
            )
        else:
            problems[view.name] = _refused_standby(export, view.name, facts)
    members = {mine.replica: mine.replica_id} | {name: identity.replica_id for name, identity in attach.items()}
    attach = {name: replace(identity, members=members) for name, identity in attach.items()}
    # The active learns of a new partner only when that one has its identity on disk: a crash in between must not
    # make an empty newcomer look like a known replica that lost its disk.
    kept = {name: known for name, known in mine.members.items() if name in {view.name for view in views}}
    attach[mine.replica] = replace(mine, members=kept | {mine.replica: mine.replica_id})
    if problems:
        message = "; ".join(f"replica {name}: {problem}" for name, problem in sorted(problems.items()))
        return Verdict("Degraded", message, mine.replica, attach, problems)
    return Verdict("Ready", "", mine.replica, attach, problems)


def _follows(found: Identity, mine: Identity) -> bool:
    """Whether a replica's own identity says that it is this active's standby."""
    return (found.pair, found.epoch, found.promotion, found.active) == (
        mine.pair, mine.epoch, mine.promotion, mine.replica,
    )  # fmt: skip


def _own(found: Identity, export: str, cluster: str, name: str, facts: Facts, new_id: Callable[[], str]) -> Identity:
    """A standby's identity with its own name and root. They differ only when somebody vouched for a copied tree."""
    mine = found if found.replica == name else replace(found, replica=name, replica_id=new_id())
    return replace(mine, cluster=cluster, export=export, root=facts.handle)


def _promoted(mine: Identity, above: int, promotion: str) -> Identity:
    """The active that a person preferred to its partner: its epoch says so, also after the next restart."""
    parent = {"epoch": mine.epoch, "promotion": mine.promotion, "seq": mine.seq}
    return replace(mine, epoch=max(above, mine.epoch) + 1, promotion=promotion, parents=(*mine.parents, parent))


def _contradiction(export: str, mine: Identity, name: str, found: Identity | None) -> str:
    """Why the partner's identity makes it doubtful that the active has the newest data; empty when it does not.

    Its name and root do not matter here: wherever such a tree turns up, somebody promoted it or wrote it later.
    """
    if found is None or (found.pair, found.cluster, found.export) != (mine.pair, mine.cluster, mine.export):
        return ""
    remedy = (
        f"If {mine.replica} has the right data: request 'accept {export} --replica {mine.replica}'; {name} is left as "
        f"it is. If {name} has it, restore {mine.replica} from it first."
    )
    if found.epoch > mine.epoch or (found.epoch == mine.epoch and not _follows(found, mine)):
        return (
            f"{_describe({name: found})}, promotion {found.promotion}; {_describe({mine.replica: mine})}, "
            f"promotion {mine.promotion}: {name} may have newer data. {remedy}"
        )
    if found.promotion == mine.promotion and found.seq > mine.seq:
        return (
            f"replica {name} has seen seq {found.seq}, the active {mine.replica} says {mine.seq}: the active was "
            f"rolled back (restored from a backup or a snapshot?). {remedy}"
        )
    return ""


def _refused_standby(export: str, name: str, facts: Facts) -> str:
    if facts.identity is not None:
        found = facts.identity
        return (
            f"its export.json is of pair {found.pair}, epoch {found.epoch}, promotion {found.promotion}, "
            "not this pair's: it holds other or older data and is not written to. When all that is needed of it was "
            f"saved elsewhere: empty it, .nfs-provisioner too, and request 'accept {export} --replica {name}'; "
            "then it is filled again"
        )
    if facts.empty:
        return (
            "it was part of this pair and is empty now: it is not mounted, or its disk was replaced. "
            f"If it was replaced: request 'accept {export} --replica {name}', and it is filled again"
        )
    return "it holds data that is not this pair's; empty it, and it joins"


def _describe(known: Mapping[str, Identity]) -> str:
    return ", ".join(
        f"{name} says pair {i.pair}, epoch {i.epoch}, active {i.active!r}" for name, i in sorted(known.items())
    )


def _stop(phase: str, message: str, problems: Mapping[str, str]) -> Verdict:
    return Verdict(phase, message, None, {}, dict(problems))
