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
from dataclasses import replace
from pathlib import Path
from typing import Literal
from uuid import uuid4

from prometheus_client import CollectorRegistry

from nfs_provisioner.config import ControllerConfig, load_controller_config
from nfs_provisioner.errors import InvalidInput, LostLeadership
from nfs_provisioner.export.attachment import Attachment
from nfs_provisioner.export.records import VolumeRecord
from nfs_provisioner.export.replica import WORKER_COMMAND
from nfs_provisioner.export.worker import LeaseEnd
from nfs_provisioner.kube.api import NAMESPACE, NFS_EXPORT, PV, PVC, STORAGE_CLASS, Api, ApiError, JsonObject, load
from nfs_provisioner.kube.events import EventWriter
from nfs_provisioner.kube.lease import LeaseElector
from nfs_provisioner.kube.reflector import Reflector
from nfs_provisioner.kube.workqueue import WorkQueue
from nfs_provisioner.metrics import Metrics
from nfs_provisioner.overview import overview, snapshot
from nfs_provisioner.process import configure_logging, own_namespace
from nfs_provisioner.replication.mirror import Mirror
from nfs_provisioner.volumes.announcer import Announcer
from nfs_provisioner.volumes.exports import Export, Services
from nfs_provisioner.volumes.objects import Claim, Volume, claim_from, volume_from
from nfs_provisioner.volumes.reconciler import DECIDE, Caches, Reconciler
from nfs_provisioner.volumes.registry import ExportObject, Registry, export_from
from nfs_provisioner.web import WebServer

log = logging.getLogger(__name__)

LEASE_NAME = "nfs-provisioner"
CONFIG_POLL = 5.0  # seconds between looks at the configuration file
QUIET_AFTER = 0.25  # seconds without work after which a burst counts as over
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
        worker_command: tuple[str, ...] = WORKER_COMMAND,
        poll: float = 10.0,
    ) -> None:
        self.config = config
        self.metrics = Metrics(CollectorRegistry(auto_describe=True))
        self.identity = identity or f"{socket.gethostname()}_{uuid4()}"
        self.registry: Registry | None = None
        self._config_file = config_file
        self._worker_command = worker_command
        self._poll = poll
        self._ending: Ending = "stopped"
        self._end = threading.Event()
        self._term = 0
        self._lapsed = False
        self._lanes: set[str] = set()
        self._exports_lock = threading.Lock()  # what the start read must not overtake what the watch brings
        self._threads: list[threading.Thread] = []
        self._last_turn = time.monotonic()
        self._lease_end = LeaseEnd()
        self.api: Api = load(kubeconfig, observe=self._observe_api)
        self.queue: WorkQueue[str] = WorkQueue(on_retry=lambda _lane: self.metrics.workqueue_retries_total.inc())
        self.events = EventWriter(self.api, busy=self._busy, may=lambda: self.leading)
        self.announcer = Announcer(self.events, self.metrics, config.provisioner)
        provisioners = frozenset({config.provisioner, *config.adopt_from})
        self.caches = Caches(
            claims=Reflector(
                self.api,
                PVC,
                slim=lambda raw: claim_from(raw, provisioners),
                on_change=self._claim_changed,
                index=lambda claim: (claim.key, ("class", claim.storage_class) if not claim.volume else None),
            ),
            volumes=Reflector(
                self.api,
                PV,
                slim=lambda raw: volume_from(raw, provisioners),
                on_change=self._volume_changed,
                index=lambda volume: (("export", volume.export),),
            ),
            classes=Reflector(self.api, STORAGE_CLASS, slim=_class_from, on_change=self._class_changed),
        )
        self.exports: Reflector[ExportObject] = Reflector(
            self.api, NFS_EXPORT, slim=export_from, on_change=self._export_changed
        )
        self.reconciler: Reconciler | None = None
        self.elector = self._elector()
        self.web = WebServer(
            config.http.bind,
            config.http.port,
            metrics=self.metrics.render,
            healthy=self.unhealthy,
            ready=self.unready,
            status=self.status,
        )
        self.metrics.provide(
            lambda: snapshot(self._exports(), leading=self.leading, depth=sum(self.queue.depth().values()))
        )

    # -- life -------------------------------------------------------------------------------------------------------

    def run(self) -> Ending:
        """Work until `stop`, a lost lease or a changed configuration."""
        self.start()
        try:
            self._end.wait()
        finally:
            self.shut_down()
        return self._ending

    def start(self) -> None:
        """Caches, HTTP and election; returns when the caches are filled or `stop` was called."""
        self.web.start()
        for reflector in self._reflectors():
            reflector.start()
        if self._config_file is not None:
            threading.Thread(target=self._watch_config, name="config", daemon=True).start()
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
        self.queue.shutdown(timeout=5.0)
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
            partner=self._mirror,
            on_ready=self._export_ready,
            on_status=lambda name: self.registry.publish(name) if self.registry else None,
            on_event=self._export_event,
            observe=lambda export, replica, seconds: self.metrics.replica_operation_duration_seconds.labels(
                export, replica
            ).observe(seconds),
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
        self.reconciler = Reconciler(
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
        with self._exports_lock:
            objects = self.exports.items()
            for obj in objects:
                self._serve_lane(obj.name, self.config.workers)
            self.registry.start(objects)
        self._serve_lane(DECIDE, 2)
        self._look_at_everything()

    def _cluster_id(self) -> str | None:
        """uid of namespace kube-system, which is what tells clusters apart; tried until it is told."""
        while not self._end.is_set():
            try:
                return str(self.api.get(NAMESPACE, "kube-system")["metadata"]["uid"])
            except ApiError as error:
                log.warning("which cluster this is cannot be told yet: %s", error)
                self._end.wait(2.0)
        return None

    def _mirror(self, export: Export, active: Attachment, standby: Attachment, records: list[VolumeRecord]) -> Mirror:
        return Mirror(export.name, export.catalog, active, standby, records, busy=self._busy)

    # -- what wakes the workers -------------------------------------------------------------------------------------

    def _claim_changed(self, _key: str, old: Claim | None, new: Claim | None) -> None:
        for claim in (old, new):
            if claim is not None:
                self._look_at(claim.key)

    def _volume_changed(self, key: str, old: Volume | None, new: Volume | None) -> None:
        if new is None and old is not None and self.reconciler is not None:
            self.reconciler.volume_went(old)
        self._look_at(key)

    def _look_at(self, key: str) -> None:
        if self.reconciler is not None:
            self.reconciler.look_at(key)

    def _class_changed(self, key: str, _old: JsonObject | None, new: JsonObject | None) -> None:
        if new is not None:
            for claim in self.caches.claims.by_index(("class", key)):
                self._look_at(claim.key)

    def _export_changed(self, key: str, _old: ExportObject | None, new: ExportObject | None) -> None:
        if self.registry is None or self.reconciler is None:
            return
        with self._exports_lock:
            self._serve_lane(key, self.config.workers)
            changed = self.registry.changed(key, new)
        if changed:
            self._look_at_waiting_claims()
            for volume in self.caches.volumes.by_index(("export", "")):  # to be adopted
                self._look_at(volume.name)
        if new is None:
            self.metrics.forget_export(key)

    def _export_ready(self, name: str) -> None:
        registry = self.registry
        export = registry.get(name) if registry else None
        if export is not None:
            for record in export.catalog.all():
                self._look_at(record.pv)
        self._look_at_everything()
        if self.reconciler is not None:
            self.reconciler.look_for_leftovers()

    def _look_at_waiting_claims(self) -> None:
        for claim in self.caches.claims.items():
            if not claim.volume:
                self._look_at(claim.key)

    def _look_at_everything(self) -> None:
        for volume in self.caches.volumes.items():
            self._look_at(volume.name)
        for claim in self.caches.claims.items():
            self._look_at(claim.key)

    def _export_event(self, export: str, reason: str, message: str, warning: bool) -> None:
        obj = self.exports.get(export)
        self.announcer.about_export(export, reason, message, warning=warning, uid=obj.uid if obj else "")

    # -- workers ----------------------------------------------------------------------------------------------------

    def _serve_lane(self, lane: str, threads: int) -> None:
        if lane in self._lanes:
            return
        self._lanes.add(lane)
        for number in range(threads):
            name = f"worker-{lane or 'decide'}-{number}"
            thread = threading.Thread(target=self._work, args=(lane,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self, lane: str) -> None:
        reconciler = self.reconciler
        assert reconciler is not None
        while (key := self.queue.get(lane)) is not None:
            try:
                reconciler.process(key, lane)
            except LostLeadership as error:
                log.warning("%s", error.message)
                self.queue.done(key)
                self.stop("lost")
                return
            except Exception:  # the last resort: a defect in one volume's case must not stop the others
                log.exception("%s: unexpected error; tried again later", key)
                self.queue.retry(key, DECIDE)
            self._last_turn = time.monotonic()
            self.queue.done(key)

    def _busy(self) -> bool:
        """Whether claims are waiting, or were a moment ago: then Events and the standby wait."""
        return time.monotonic() - self._last_turn < QUIET_AFTER or any(self.queue.depth().values())

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
        waiting = self.queue.depth().get(DECIDE, 0) if self.reconciler is not None else 0
        if waiting and time.monotonic() - self._last_turn > STUCK:
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
        leader, provisioner = self.identity, self.config.provisioner
        return 200, overview(self._exports(), self.caches.volumes.get, leader=leader, provisioner=provisioner)

    def _exports(self) -> list[Export]:
        return self.registry.all() if self.registry is not None else []

    def _observe_api(self, verb: str, resource: str, code: str, seconds: float) -> None:
        self.metrics.api_requests_total.labels(verb, resource, code).inc()
        if verb != "watch":
            self.metrics.api_request_duration_seconds.labels(verb, resource).observe(seconds)

    # -- configuration ----------------------------------------------------------------------------------------------

    def _watch_config(self) -> None:
        """A changed file takes effect by a restart in place (log settings: at once); a bad one is refused."""
        assert self._config_file is not None
        seen = _stamp(self._config_file)
        while not self._end.wait(CONFIG_POLL):
            now = _stamp(self._config_file)
            if now == seen:
                continue
            seen = now
            try:
                fresh = load_controller_config(self._config_file)
            except InvalidInput as error:
                log.error("the changed configuration is not used: %s", error.message)  # noqa: TRY400
                self.metrics.config_last_reload_successful.set(0)
                continue
            self.metrics.config_last_reload_successful.set(1)
            if replace(fresh, log=self.config.log) != self.config:
                log.info("the configuration changed: restarting in place")
                self.stop("reload")
            elif fresh.log != self.config.log:
                self.config = fresh
                configure_logging(fresh)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _class_from(raw: JsonObject) -> JsonObject:
    keys = ("provisioner", "parameters", "reclaimPolicy", "mountOptions", "allowVolumeExpansion", "volumeBindingMode")
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": raw["metadata"]["name"]},
        **{key: raw[key] for key in keys if key in raw},
    }
