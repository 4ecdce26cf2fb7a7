"""The composition root: threads, processes, signals. No rule of the business is in here.

Order of a start: configuration, caches, HTTP, lease; with the lease, the exports and the workers. Order of an end: no
new work, what is under way ends, the lease is given back. A process that lost
its lease ends: the next one starts clean.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal
from uuid import uuid4

from prometheus_client import CollectorRegistry

from nfs_provisioner import memory
from nfs_provisioner.config import ControllerConfig, ReplicationSpec
from nfs_provisioner.export.attachment import Attachment
from nfs_provisioner.export.catalog import Catalog
from nfs_provisioner.export.records import VolumeRecord
from nfs_provisioner.export.usage import Usage
from nfs_provisioner.export.worker import LeaseEnd
from nfs_provisioner.kube.api import NAMESPACE, NFS_EXPORT, Api, ApiError, JsonObject, load
from nfs_provisioner.kube.events import EventWriter
from nfs_provisioner.kube.lease import LeaseElector
from nfs_provisioner.kube.reflector import Reflector
from nfs_provisioner.kube.workers import Workers
from nfs_provisioner.kube.workqueue import WorkQueue
from nfs_provisioner.metrics import Metrics, Snapshot
from nfs_provisioner.overview import overview, snapshot
from nfs_provisioner.process import configure_logging, follow_config, own_namespace
from nfs_provisioner.replication.driver import Around, Driver
from nfs_provisioner.replication.measuring import REPLICA_COMMAND
from nfs_provisioner.volumes.announcer import Announcer
from nfs_provisioner.volumes.exports import Export
from nfs_provisioner.volumes.lookout import Lookout
from nfs_provisioner.volumes.measuring import LAST_WRITE
from nfs_provisioner.volumes.objects import Claim, Volume
from nfs_provisioner.volumes.reconciler import DECIDE, Reconciler
from nfs_provisioner.volumes.registry import ExportObject, Registry, export_from
from nfs_provisioner.volumes.services import Services
from nfs_provisioner.volumes.status import ExportStatus
from nfs_provisioner.web import WebServer

log = logging.getLogger(__name__)

LEASE_NAME = "nfs-provisioner"
QUIET_AFTER = 0.25  # seconds without work after which a burst counts as over
TRIM_EVERY = 10.0  # seconds between two times that free memory is given back to the system
STUCK = 60.0  # seconds without a turn, with work waiting, after which the process is not healthy

Ending = Literal["stopped", "lost", "reload"]


class Daemon:
    """The controller. `run` returns why it ended."""

    def __init__(
        self,
        config: ControllerConfig,
        *,
        kubeconfig: str | None = None,
        config_file: Path | None = None,
        identity: str | None = None,
        worker_command: tuple[str, ...] = REPLICA_COMMAND,
        poll: float = 10.0,
        measure_every: float = 600.0,
    ) -> None:
        self.config = config
        self.metrics = Metrics(CollectorRegistry(auto_describe=True))
        self.identity = identity or f"{socket.gethostname()}_{uuid4()}"
        self.registry: Registry | None = None
        self._config_file = config_file
        self._worker_command = worker_command
        self._poll = poll
        self._measure_every = measure_every
        self._ending: Ending = "stopped"
        self._end = threading.Event()
        self._term = 0
        self._lapsed = False
        self._exports_lock = threading.Lock()  # what the start read must not overtake what the watch brings
        self._lease_end = LeaseEnd()
        self.api: Api = load(kubeconfig, observe=self._observe_api)
        self.queue: WorkQueue[str] = WorkQueue(on_retry=lambda _lane: self.metrics.workqueue_retries_total.inc())
        self.events = EventWriter(self.api, busy=self._busy, may=lambda: self.leading)
        self.announcer = Announcer(self.events, self.metrics, config.provisioner)
        provisioners = frozenset({config.provisioner, *config.adopt_from})
        self._lookout = Lookout(self.api, provisioners, on_class=self.metrics.expect_class)
        self.caches = self._lookout.caches
        self.exports: Reflector[ExportObject] = Reflector(
            self.api, NFS_EXPORT, slim=export_from, on_change=self._export_changed
        )
        self._workers: Workers | None = None
        self.elector = self._elector()
        self.web = WebServer(
            config.http.bind,
            config.http.port,
            metrics=self.metrics.render,
            healthy=self.unhealthy,
            ready=self.unready,
            status=self.status,
        )
        self.metrics.provide(self._snapshot)

    # -- life -------------------------------------------------------------------------------------------------------

    def run(self) -> Ending:
        """Work until `stop`, a lost lease or a changed configuration."""
        self.start()
        try:
            while not self._end.wait(TRIM_EVERY):
                memory.trim()
        finally:
            self.shut_down()
        return self._ending

    def start(self) -> None:
        """Caches, HTTP and election; returns when the caches are filled or `stop` was called."""
        self.web.start()
        for reflector in self._reflectors():
            reflector.start()
        if self._config_file is not None:
            threading.Thread(target=self._follow_config, args=(self._config_file,), name="config", daemon=True).start()
        for reflector in self._reflectors():
            while not reflector.synced.wait(0.2):
                if self._end.is_set():
                    return
        log.info("caches are filled: %d claims, %d volumes", len(self.caches.claims), len(self.caches.volumes))
        if self.config.leader_election.enabled:
            self.elector.start()
        else:
            self._lease_end.set(math.inf)
            self._started(0)

    def stop(self, ending: Ending = "stopped") -> None:
        """Ask `run` to end."""
        self._ending = ending
        self._end.set()

    def shut_down(self) -> None:
        """End everything, in order; what hangs is left behind."""
        self._end.set()
        self.queue.shutdown(timeout=5.0)
        with self._exports_lock:  # what the watch brings from here on starts nothing any more
            exports, _ = self._exports()
        for export in exports:
            export.measuring.stop()  # what was measured is written while there are children to do it
        end = time.monotonic() + LAST_WRITE
        for export in exports:
            export.measuring.join(max(0.0, end - time.monotonic()))
        for export in exports:
            export.close()  # all at once: waiting for each that hangs before the next is ended would take too long
        if self.registry is not None:
            self.registry.stop()
        self.events.stop()
        self._lease_end.set(0.0)
        if self.config.leader_election.enabled:
            self.elector.stop()
        for reflector in self._reflectors():
            reflector.stop()
        self.web.stop()
        self.api.close()

    def _reflectors(self) -> tuple[Reflector[Claim], Reflector[Volume], Reflector[JsonObject], Reflector[ExportObject]]:
        return self.caches.claims, self.caches.volumes, self.caches.classes, self.exports

    # -- leadership -------------------------------------------------------------------------------------------------

    def _elector(self) -> LeaseElector:
        settings = self.config.leader_election
        return LeaseElector(
            self.api,
            settings.namespace or own_namespace(),
            LEASE_NAME,
            self.identity,
            lease_duration=settings.lease_duration,
            renew_deadline=settings.renew_deadline,
            retry_period=settings.retry_period,
            on_started=self._started,
            on_stopped=self._lost,
            on_until=self._act_until,
        )

    def check(self) -> None:
        """Raise LostLeadership unless this process may act now."""
        if self.config.leader_election.enabled:
            self.elector.check(self._term)

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        if not self.config.leader_election.enabled:
            return self.registry is not None
        return self.registry is not None and self.elector.may_act(self._term)

    def _act_until(self, moment: float) -> None:
        # The elector goes on until it is stopped: what a lapsed term began must not go on in a later one.
        self._lease_end.set(0.0 if self._lapsed else moment)

    def _started(self, term: int) -> None:
        if self._lapsed or self._end.is_set():
            return
        self._term = term
        threading.Thread(target=self._lead_or_end, name="lead", daemon=True).start()

    def _lost(self) -> None:
        self._lapsed = True
        if not self._end.is_set():
            log.warning("the lease is lost: ending")
            self.stop("lost")

    def _lead_or_end(self) -> None:
        try:
            self._lead()
        except Exception:  # to hold the lease and do nothing would be worse than to end and be started again
            log.exception("this controller leads, and could not begin")
            self.stop("lost")

    def _lead(self) -> None:
        log.info("%s leads (term %d)", self.identity, self._term)
        cluster = self._cluster_id()
        if cluster is None:
            return
        services = Services(
            cluster=cluster,
            lease=self._lease_end,
            term=lambda: f"{self._term:08d}",
            partner=self._partner,
            on_ready=self._export_ready,
            on_status=lambda name: self.registry.publish(name) if self.registry else None,
            on_event=self._export_event,
            observe=lambda export, replica, seconds: self.metrics.replica_operation_duration_seconds.labels(
                export, replica
            ).observe(seconds),
            on_room=self._lookout.room_appeared,
            on_exceeded=self._quota_exceeded,
            busy=self._busy,
            measure_every=self._measure_every,
            worker_command=self._worker_command,
            poll=self._poll,
        )
        self.registry = Registry(
            self.api,
            services,
            mount_root=self.config.mount_root,
            has_volumes=lambda export: bool(self.caches.volumes.by_index(("export", export))),
            check=self.check,
        )
        reconciler = Reconciler(
            self.api,
            self.caches,
            self.registry,
            self.queue,
            self.announcer,
            provisioner=self.config.provisioner,
            adopt_from=frozenset(self.config.adopt_from),
            check=self.check,
        )
        self.events.start()
        workers = Workers(self.queue, reconciler.process, on_lost=lambda: self.stop("lost"), fallback=DECIDE)
        with self._exports_lock:
            if self._end.is_set():
                return
            objects = self.exports.items()
            for obj in objects:
                workers.serve(obj.name, self.config.workers)
            self._lookout.reconciler, self._workers = reconciler, workers
            self.registry.start(objects)
        workers.serve(DECIDE, 2)
        self._lookout.look_at_everything()

    def _cluster_id(self) -> str | None:
        """uid of namespace kube-system, which is what tells clusters apart; tried until it is told."""
        while not self._end.is_set():
            try:
                return str(self.api.get(NAMESPACE, "kube-system")["metadata"]["uid"])
            except ApiError as error:
                log.warning("which cluster this is cannot be told yet: %s", error)
                self._end.wait(2.0)
        return None

    def _partner(
        self,
        export: str,
        catalog: Catalog,
        active: Attachment,
        standby: Attachment,
        records: list[VolumeRecord],
        settings: Callable[[], ReplicationSpec],
    ) -> Driver:
        around = Around(
            lease=self._lease_end,
            term=lambda: f"{self._term:08d}",
            metrics=self.metrics,
            settings=settings,
            unlimited=self._lookout.may_lose_everything,
            busy=self._busy,
            on_event=self._export_event,
            on_status=lambda name: self.registry.publish(name) if self.registry else None,
            on_usage=partial(self._measured, export),
        )
        return Driver(export, catalog, active, standby, records, around)

    # -- what wakes the workers -------------------------------------------------------------------------------------

    def _export_changed(self, key: str, _old: ExportObject | None, new: ExportObject | None) -> None:
        registry, workers = self.registry, self._workers
        if registry is None or workers is None:
            return
        with self._exports_lock:
            if self._end.is_set():
                return
            if new is not None:
                workers.serve(key, self.config.workers)
            changed = registry.changed(key, new)
            if new is None:
                workers.leave(key)
        if changed:
            self._lookout.look_at_waiting()
        if new is None:
            self.metrics.forget_export(key)

    def _export_ready(self, name: str) -> None:
        self._lookout.export_ready(self.registry.get(name) if self.registry is not None else None)

    def _export_event(self, export: str, reason: str, message: str, warning: bool) -> None:
        obj = self.exports.get(export)
        self.announcer.about_export(export, reason, message, warning=warning, uid=obj.uid if obj else "")

    def _quota_exceeded(self, record: VolumeRecord, usage: Usage) -> None:
        for claim in self.caches.claims.by_index(record.pv):
            if claim.uid == record.claim.uid:
                self.announcer.quota_exceeded(claim, record, usage)

    def _measured(self, export: str, pv: str, usage: Usage) -> None:
        found = self.registry.get(export) if self.registry is not None else None
        if found is not None:
            found.measuring.note(pv, usage)

    def _busy(self) -> bool:
        """Whether claims are waiting, or were a moment ago: then Events and the standby wait."""
        return self._idle_for() < QUIET_AFTER or any(self.queue.depth().values())

    def _idle_for(self) -> float:
        """Seconds since a worker was done with something."""
        return time.monotonic() - self._workers.last_turn if self._workers is not None else math.inf

    # -- what others see ----------------------------------------------------------------------------------------------

    def unhealthy(self) -> str:
        """Why the process should be restarted; empty while it need not. A dead NFS server is no reason."""
        if self._end.is_set():
            return "ending"
        for reflector in self._reflectors():
            if not reflector.is_alive():
                return f"the watch of {reflector.name} ended"
        if self.config.leader_election.enabled and self.unready() == "" and not self.elector.is_alive():
            return "leader election ended"
        waiting = self.queue.depth().get(DECIDE, 0) if self._workers is not None else 0
        if waiting and self._idle_for() > STUCK:
            return f"{waiting} volumes wait, and nothing was decided for {STUCK:g} s"
        return ""

    def unready(self) -> str:
        """What is not there yet; empty when the caches are filled."""
        missing = [reflector.name for reflector in self._reflectors() if not reflector.synced.is_set()]
        return f"waiting for {', '.join(missing)}" if missing else ""

    def status(self) -> tuple[int, JsonObject]:
        """What /api/status answers: everything from the leader, its name from the others."""
        if not self.leading:
            return 503, {"error": "this controller does not lead", "leader": self.elector.holder or ""}
        exports, others = self._exports()
        leader, provisioner = self.identity, self.config.provisioner
        return 200, overview(exports, self.caches.volumes.get, leader=leader, provisioner=provisioner, others=others)

    def _snapshot(self) -> Snapshot:
        exports, others = self._exports()
        return snapshot(exports, leading=self.leading, depth=sum(self.queue.depth().values()), others=others)

    def _exports(self) -> tuple[list[Export], dict[str, ExportStatus]]:
        return ([], {}) if self.registry is None else (self.registry.all(), self.registry.not_understood())

    def _observe_api(self, verb: str, resource: str, code: str, seconds: float) -> None:
        self.metrics.api_requests_total.labels(verb, resource, code).inc()
        if verb != "watch":
            self.metrics.api_request_duration_seconds.labels(verb, resource).observe(seconds)

    # -- configuration ----------------------------------------------------------------------------------------------

    def _follow_config(self, path: Path) -> None:
        """A changed file takes effect by a restart in place (log settings: at once); a bad one is refused."""
        good = self.metrics.config_last_reload_successful
        follow_config(path, self._end, on_read=lambda right: good.set(int(right)), on_change=self._config_changed)

    def _config_changed(self, fresh: ControllerConfig) -> None:
        if replace(fresh, log=self.config.log) != self.config:
            log.info("the configuration changed: restarting in place")
            self.stop("reload")
        elif fresh.log != self.config.log:
            self.config = fresh
            configure_logging(fresh)
