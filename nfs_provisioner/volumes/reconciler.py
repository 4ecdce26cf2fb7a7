"""Decides, acts and records, one volume at a time.

The only caller of `decisions.decide`. Before each act: the lease. What needs a file server runs in that
export's lane of the queue, so that a server that hangs holds up nobody else's claims.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nfs_provisioner.config import format_quantity, rough_size
from nfs_provisioner.errors import (
    Infeasible,
    LostLeadership,
    NfsProvisionerError,
    RefusedForSafety,
    RetryLater,
)
from nfs_provisioner.export.moves import GiveUp
from nfs_provisioner.export.paths import server_path
from nfs_provisioner.export.records import State, VolumeRecord
from nfs_provisioner.export.standing import CloneStanding
from nfs_provisioner.kube.api import (
    PV,
    Api,
    ApiError,
    Conflict,
    NotFound,
)
from nfs_provisioner.kube.reflector import Reflector
from nfs_provisioner.kube.workqueue import WorkQueue
from nfs_provisioner.volumes import adoption, growth
from nfs_provisioner.volumes.announcer import Announcer
from nfs_provisioner.volumes.decisions import QUIET, Decision, Situation, decide
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.finisher import Finisher, taken_back
from nfs_provisioner.volumes.objects import (
    Claim,
    JsonObject,
    Volume,
    claim_manifest,
    persistent_volume,
)
from nfs_provisioner.volumes.planner import SLOWLY, Planner
from nfs_provisioner.volumes.pvs import VolumeWriter
from nfs_provisioner.volumes.registry import Registry
from nfs_provisioner.volumes.room import NoRoom
from nfs_provisioner.volumes.waiting import Waiting

log = logging.getLogger(__name__)

LOOK_AT_COPY = 1.0  # seconds between looks at a clone that is copied
DECIDE = ""  # the lane of what needs no file server
_GIVEN_UP_FROM = frozenset({State.LIVE, State.ORPHANED})


@dataclass(frozen=True, slots=True)
class Caches:
    """What the API said, as far as we know."""

    claims: Reflector[Claim]
    volumes: Reflector[Volume]
    classes: Reflector[JsonObject]


class Reconciler:
    """`process` takes one key of the queue as far as it goes now. `check` raises LostLeadership."""

    def __init__(
        self,
        api: Api,
        caches: Caches,
        registry: Registry,
        queue: WorkQueue[str],
        announcer: Announcer,
        *,
        provisioner: str,
        adopt_from: frozenset[str],
        check: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._caches = caches
        self._registry = registry
        self._queue = queue
        self._announcer = announcer
        self._provisioner = provisioner
        self._adopt_from = adopt_from
        self._check = check
        self._clock = clock
        self._last_policy: dict[str, str] = {}
        self._pvs = VolumeWriter(api, caches.volumes, check)
        self.finisher = Finisher(
            registry,
            queue,
            check,
            look=self.look,
            due_act=lambda situation: decide(situation, adopt_from=adopt_from).act,
            look_at=self.look_at,
            failed=self._failed,
        )
        self.waiting = Waiting(registry, queue, self.look_at, lane=DECIDE)
        self._planner = Planner(registry, caches.classes.get, provisioner, find_volume=caches.volumes.get, clock=clock)

    # -- what is known --------------------------------------------------------------------------------------------

    def volume_went(self, volume: Volume) -> None:
        """A PV vanished; its policy tells later whether its directory is retained or orphaned."""
        self._pvs.went(volume)
        found = self._registry.find(volume.name)
        if found is None or found[1].state not in (State.ARCHIVED, State.DELETED):  # else it went as it should
            self._last_policy[volume.name] = volume.policy

    def look(self, name: str) -> Situation:
        """Everything that is known about one volume."""
        volume = self._caches.volumes.get(name)
        volume = volume and self._pvs.as_left(volume)
        found = self._registry.find(name, "" if volume is None else volume.export)
        claims = self._caches.claims.by_index(name)
        claim = next(iter(claims), None)
        if volume is not None and volume.claim is not None:
            claim = self._caches.claims.get(str(volume.claim)) or claim
        return Situation(
            name,
            claim,
            volume,
            None if found is None else found[1],
            None if found is None else found[0].name,
            self._last_policy.get(name, ""),
            looking=found is None and volume is not None and self._registry.looking,
        )

    def due(self, name: str) -> str | None:
        """The lane in which something is to be done about this volume, or said about it; None when nothing is."""
        situation = self.look(name)
        decision = decide(situation, adopt_from=self._adopt_from)
        if decision.act == "idle" and decision.error is None:
            return None
        if decision.error is None and decision.act == "make-live":
            self.finisher.soon(situation)
            return None
        if decision.error is None and decision.act in ("give-up", "grow") and situation.export is not None:
            return situation.export  # the longest way round is saved for what comes in thousands
        return DECIDE

    def look_at(self, name: str) -> None:
        """Queue a volume for which something is due. Most events are echoes of what was just done: they end here."""
        lane = self.due(name)
        if lane is not None:
            self._queue.add(name, lane)
        elif name in self._planner or name in self.waiting:
            self._settled(name)

    # -- one turn ---------------------------------------------------------------------------------------------------

    def process(self, key: str, lane: str) -> None:
        """Decide, and act if this is the right lane; otherwise hand the key over to it."""
        if self.finisher.process(key, lane) or self.waiting.process(key):
            return
        situation = self.look(key)
        try:
            decision = decide(situation, adopt_from=self._adopt_from)
            if decision.error is not None:
                raise decision.error
            if decision.act == "idle":
                self._settled(key)
                return
            self._check()
            export = self._export_for(situation, decision)
            if decision.act != "grow":  # a growth asks for its room last of all, and before that it still waits
                self.waiting.forget(key)
            wanted = DECIDE if export is None else export.name
            if wanted != lane:
                self._queue.add(key, wanted, low=decision.act in ("make-live", "follow", "disown"))
                return
            log.debug("%s: %s: %s", key, decision.act, decision.why)
            self._act(situation, decision, export)
            self.waiting.forget(key)
            if decision.act != "make-live":  # that was only noted: how often it failed is forgotten when it is done
                self._queue.forget(key)
        except NfsProvisionerError as error:
            self._failed(situation, error, lane)

    def _settled(self, key: str) -> None:
        self.waiting.forget(key)
        self._queue.forget(key)
        self._planner.finish(key)

    def _export_for(self, s: Situation, decision: Decision) -> Export | None:
        """The export whose server the act needs; None for what only the API server is needed for."""
        if decision.act in ("hold", "release", "remake"):
            return None
        if decision.act == "provision":
            return self._planner.plan(s).export
        if decision.act == "adopt":
            assert s.volume is not None
            export: Export | None = adoption.find_export(self._registry, s.volume)
        else:
            assert s.export is not None
            export = self._registry.get(s.export)
        if export is None:
            raise RetryLater(f"NFSExport {s.export} is gone")
        if (
            not export.ready
        ):  # when it is, every volume is looked at again: until then, asking costs the API server only
            raise RetryLater(f"export {export.name} cannot be used now: {export.message}", after=SLOWLY)
        return export

    def _act(self, s: Situation, decision: Decision, export: Export | None) -> None:
        match decision.act:
            case "provision":
                self._provision(s)
            case "give-up":
                self._give_up(s, decision, _there(export))
            case "make-live":
                self.finisher.soon(s)
            case "undo":
                self._undo(s, _there(export))
            case "grow":
                assert s.claim is not None and s.volume is not None and s.record is not None
                growth.grow(self._api, _there(export), s.claim, s.volume, s.record, self._announcer, self._check)
            case "follow":
                assert s.volume is not None
                self._update(s, _there(export), {"claim": s.volume.claim})
            case "disown":
                state = State.RETAINED if s.last_policy == "Retain" else State.ORPHANED
                log.warning("%s: %s; its directory stays, %s", s.name, decision.why, state)
                self._update(s, _there(export), {"state": state})
            case "repost":
                self._repost(s, _there(export))
            case "adopt":
                assert s.volume is not None
                adoption.adopt(
                    self._api, _there(export), s.volume, s.claim, self._caches.classes.get(s.volume.storage_class),
                    self._provisioner, self._check,
                )  # fmt: skip
            case "hold":
                self._pvs.hold(_of(s))
            case "release":
                self._pvs.release(_of(s))
            case "remake":
                self._pvs.release(_of(s))  # its deletion brings the key back, and the PV is posted again

    def _failed(self, s: Situation, error: NfsProvisionerError, lane: str) -> None:
        """Tell the person who can do something, and try again when that can help."""
        if isinstance(error, LostLeadership):
            raise error
        waiting = s.volume is None and s.claim is not None and not s.claim.volume
        if isinstance(error, Conflict):
            self._queue.retry(s.name, DECIDE)  # somebody changed it meanwhile: look again
            return
        if error.reason != QUIET and self._announcer.is_news(s, error):
            self._announcer.failed(s, error)
            log.info("%s: %s", s.name, error.message)
        if isinstance(error, NoRoom):
            self.waiting.add(s.name, error)
            return
        self.waiting.forget(s.name)
        if isinstance(error, RetryLater) and error.after is not None:
            self._queue.add_after(s.name, error.after, DECIDE)
        elif isinstance(error, Infeasible) and not isinstance(error, ApiError):
            self._planner.drop(s.name)
            if lane != DECIDE:  # what the server refuses can be mended on the server, and nobody tells us
                self._queue.add_after(s.name, SLOWLY, DECIDE)
            # Everything else needs a change of an object, and that brings the key back.
        else:
            if waiting and lane != DECIDE:
                self._planner.drop(s.name, failed=True)  # another export of the class may be better off
            self._queue.retry(s.name, DECIDE)

    # -- provisioning -----------------------------------------------------------------------------------------------

    def _provision(self, s: Situation) -> None:
        plan, claim = self._planner.plan(s), s.claim
        assert claim is not None
        export = plan.export
        server, root = export.client_mount()
        manifest = persistent_volume(
            s.name,
            claim,
            provisioner=self._provisioner,
            export=export.name,
            server=server,
            path=server_path(root, plan.directory),
            capacity=max(claim.requested, plan.record.requested),
            policy=plan.storage_class.reclaim_policy,
            mount_options=plan.storage_class.mount_options,
        )
        wanted = replace(plan.record, manifests={"pv": manifest, "claim": claim_manifest(claim)})
        if plan.restore_from is not None:
            record: VolumeRecord = export.call("restore", wanted, plan.restore_from)
            # The heir first: a standby that saw only the tombstone would remove what the heir is about to have.
            export.recorded(record.slim(), s.name)
            old = export.catalog.get(plan.restore_from)
            if old is not None and old.holds_directory:  # else that was noted by an attempt before this one
                export.recorded(old.advanced(state=State.DELETED, successor=s.name), plan.restore_from)
        elif plan.clone_from is not None:
            record = self._cloned(claim, export, wanted)
        else:
            record = export.call_each("provision", wanted)
            export.recorded(record.slim(), s.name)
        if record.directory != plan.directory:
            manifest["spec"]["nfs"]["path"] = server_path(root, record.directory)  # an earlier attempt's name counts
        self._pvs.post(s.name, manifest)
        self._announcer.provisioned(claim, s.name, export.name, record.directory, self._planner.finish(s.name))

    def _cloned(self, claim: Claim, export: Export, wanted: VolumeRecord) -> VolumeRecord:
        """The record of a clone that is copied. RetryLater while it is not: the lane is free meanwhile."""
        standing: CloneStanding = export.call("clone", wanted)
        export.copies.wrote(wanted.pv, standing.bytes)
        if export.catalog.get(wanted.pv) != standing.record:
            export.recorded(standing.record, wanted.pv)
        if standing.running:
            raise RetryLater(
                f"copying claim {claim.namespace}/{claim.clone_from}: {standing.files} files, "
                f"{rough_size(standing.bytes)} so far",
                after=LOOK_AT_COPY,
                reason="Provisioning",
            )
        if standing.skipped:
            named = "; ".join(f"{path}: {why}" for path, why in standing.skipped[:3])
            message = f"{len(standing.skipped)} entries of claim {claim.clone_from} were not carried in full: {named}"
            self._announcer.about_claim(claim, "CloneIncomplete", message, warning=True)
        if standing.record.state is not State.CREATING:
            return standing.record
        # Before the PV, not after it: a clone that is being made is taken back with all that is in it, and once there
        # is a PV that may be somebody's.
        record: VolumeRecord = export.call_each("make_live", wanted.pv)
        export.recorded(record, wanted.pv)
        return record

    def _undo(self, s: Situation, export: Export) -> None:
        """The claim is gone and there is no PV: look at the API itself before anything is taken back."""
        try:
            self._caches.volumes.put(self._api.get(PV, s.name))
            if self._caches.volumes.get(s.name) is None:  # somebody took our annotation off it, or it went just now
                raise RefusedForSafety(f"there is a PV {s.name} that is not ours: its directory is left alone")
            self._queue.add(s.name)
            return
        except NotFound:
            pass
        assert s.record is not None
        done = taken_back(export, s.record)
        export.recorded(None if done is None else done.slim(), s.name)
        self._settled(s.name)

    def _repost(self, s: Situation, export: Export) -> None:
        assert s.claim is not None
        full: VolumeRecord | None = export.call("read_many", [s.name])[s.name]
        if full is None or "pv" not in full.manifests:
            raise Infeasible(f"the record of {s.name} holds no PV to give back to claim {s.claim}")
        if full.claim.uid != s.claim.uid:
            raise RefusedForSafety(f"the record of {s.name} belongs to {full.claim} with uid {full.claim.uid}")
        manifest: JsonObject = copy.deepcopy(dict(full.manifests["pv"]))
        claim = full.claim  # what was recorded first may be of an earlier one, of a smaller size and another policy
        manifest["spec"]["claimRef"] |= {"namespace": claim.namespace, "name": claim.name, "uid": claim.uid}
        manifest["spec"]["capacity"]["storage"] = format_quantity(full.requested)
        if full.state is State.RETAINED or s.last_policy == "Retain":
            manifest["spec"]["persistentVolumeReclaimPolicy"] = "Retain"
        self._pvs.post(s.name, manifest)
        self._announcer.provisioned(s.claim, s.name, export.name, full.directory, 0.0)

    def _update(self, s: Situation, export: Export, changes: dict[str, Any]) -> None:
        record = export.call("update", s.name, changes, frozenset({State.LIVE, State.RETAINED, State.ORPHANED}))
        export.recorded(record, s.name)
        self._last_policy.pop(s.name, None)

    # -- giving up --------------------------------------------------------------------------------------------------

    def _give_up(self, s: Situation, decision: Decision, export: Export) -> None:
        """DELETE with preconditions first: it fails if the policy, the claim or the leader changed meanwhile (H61)."""
        began = self._clock()
        volume = s.volume
        if s.record is not None and not s.record.shared and s.record.state in _GIVEN_UP_FROM:
            # Only bound volumes of another provisioner are taken over; what a kept one of it names is its data, too.
            foreign = [pv for pv in self._caches.volumes.by_index(("export", "")) if pv.name != s.name]
            others = adoption.left_alone(export, s.record.directory, foreign)
            if others:
                log.warning("PV %s shares %s with %s: it is not moved", s.name, s.record.directory, others)
                self._update(s, export, {"shared": True})
        if volume is not None:
            self._pvs.begin_deletion(volume)
        self._check()
        uid = None if volume is None or volume.claim is None else volume.claim.uid
        wanted = GiveUp(s.name, decision.on_delete, uid, _GIVEN_UP_FROM, export.catalog.unavailable_names())
        record: VolumeRecord = export.call_each("give_up", wanted)
        export.recorded(record, s.name)
        if volume is not None:
            self._pvs.release(volume)
            self._announcer.deleted(volume, export.name, export.seen.uid, record, self._clock() - began)


def _there(export: Export | None) -> Export:
    assert export is not None
    return export


def _of(s: Situation) -> Volume:
    assert s.volume is not None
    return s.volume
