"""Leader election on one Lease.

Responsible for knowing whether this process may act. Must not end the process or start its work: callbacks tell.
Invariant: `may_act` is true only before *start of the last successful renewal request + renew_deadline*, by a clock
that no administrator sets, and others wait lease_duration > renew_deadline after the last change they saw; so two
processes are never told yes at once. It is worked out from the clock at every call: a process that was stopped past
its lease learns it before it acts, even if none of its threads has run. A leadership that lapsed once is over: the
next one has a greater term.

Differs from client-go's leaderelection in that: its IsLeader can be true after the lease has passed to another,
while the renewing goroutine is not scheduled.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from nfs_provisioner.errors import LostLeadership
from nfs_provisioner.kube.api import LEASE, AlreadyExists, Api, ApiError, Conflict, JsonObject, NotFound

logger = logging.getLogger(__name__)

_NEVER = -math.inf
_JITTER = 0.2


def monotonic_through_suspend() -> float:
    """Seconds; unlike time.monotonic it also counts the time a virtual machine or laptop was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class LeaseElector:
    """Runs in a thread of its own from `start` to `stop`.

    `on_started(term)` and `on_stopped()` are called alternately, on that thread, which also renews: they must return
    at once. The term is the Lease's leaseTransitions: greater than any that this process had before, but beginning
    anew for others when the Lease was deleted.

    `on_until(moment)` is told, under the elector's lock, until when on `clock` this process may act. `identity` must be
    unique to the process. Durations are in seconds; `wall` gives Unix time and is only written down, never compared.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        lease_duration: float = 15,
        renew_deadline: float = 10,
        retry_period: float = 2,
        clock: Callable[[], float] = monotonic_through_suspend,
        wall: Callable[[], float] = time.time,
        rand: Callable[[], float] = random.random,
        on_started: Callable[[int], None],
        on_stopped: Callable[[], None],
        on_until: Callable[[float], None] = lambda _until: None,
    ) -> None:
        if not lease_duration > renew_deadline > retry_period * (1 + _JITTER) > 0 or lease_duration < 1:
            raise ValueError("leader election needs leaseDuration > renewDeadline > 1.2 x retryPeriod, and 1 s or more")
        self.last_error: str | None = None
        self.holder: str | None = None
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        # The API keeps whole seconds; others must not wait less than we believe.
        self._lease_duration = math.ceil(lease_duration)
        self._renew_deadline = renew_deadline
        self._retry_period = retry_period
        self._clock = clock
        self._wall = wall
        self._rand = rand
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._on_until = on_until
        self._lock = threading.Lock()
        self._term: int | None = None
        self._until = _NEVER
        self._lease: JsonObject = {}
        self._claimed_term = 0
        self._seen: tuple[str, JsonObject] | None = None
        self._seen_at = _NEVER
        self._vanished_at: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Call it when nothing acts any more: it gives the lease back, so that another may act at once."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def term(self) -> int | None:
        """The term in which this process may act now, or None."""
        with self._lock:
            return self._term if self._valid() else None

    def may_act(self, term: int | None = None) -> bool:
        """Whether this process leads now (in `term`, if given: work begun in an earlier one is not ours any more)."""
        with self._lock:
            return self._valid() and (term is None or term == self._term)

    def check(self, term: int | None = None) -> None:
        """Raises LostLeadership unless `may_act(term)`."""
        if not self.may_act(term):
            raise LostLeadership(
                f"lease {self._namespace}/{self._name} is not held"
                f"{'' if term is None else f' in term {term}'} by {self._identity}: nothing may be changed"
            )

    def _valid(self) -> bool:
        if self._clock() < self._until:
            return True
        # Once seen to have lapsed, a late renewal cannot bring this term back.
        self._until = _NEVER
        return False

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._stopping.wait(self._turn())
        if self._term is not None:
            held = self.may_act()
            self._lose("stopping")
            if held:
                self._release()

    def _turn(self) -> float:
        """One look or one renewal; returns the seconds to pause, which a slow answer shortens for a leader."""
        began = self._clock()
        if self._term is None:
            self._try_to_lead()
        else:
            self._renew()
        if self._term is None:
            return self._retry_period * (1 + _JITTER * self._rand())
        now = self._clock()
        if now - began > self._retry_period:
            logger.warning("renewing the lease took %.1f s: the API server is slow", now - began)
        return max(0.0, min(began + self._retry_period, self._until) - now)

    def _renew(self) -> None:
        if not self.may_act():
            return self._lose(f"not renewed within {self._renew_deadline:g} s ({self.last_error or 'was not running'})")
        began = self._clock()
        try:
            lease = self._api.replace(LEASE, self._with_spec(renewTime=self._now()), timeout=self._request_timeout())
        except Conflict:
            return self._look_who_wrote()
        except NotFound:
            return self._lose("the Lease was deleted")
        except ApiError as error:
            return self._note(error)
        self._extend(began, lease)

    def _extend(self, began: float, lease: JsonObject) -> None:
        """The answer counts from when it was asked for, and only if the leadership has not lapsed meanwhile."""
        with self._lock:
            if not self._valid():
                return
            self._until = began + self._renew_deadline
            self._on_until(self._until)
        self._lease, self.last_error = lease, None

    def _look_who_wrote(self) -> None:
        """After a conflict: a renewal of ours whose answer was lost, an edit of a label, or another leader."""
        try:
            lease = self._api.get(LEASE, self._name, self._namespace, timeout=self._request_timeout())
        except NotFound:
            return self._lose("the Lease was deleted")
        except ApiError as error:
            return self._note(error)
        if not self._is_ours(lease["spec"]):
            return self._lose(f"{lease['spec'].get('holderIdentity') or 'nobody'} holds the Lease")
        self._lease = lease

    def _try_to_lead(self) -> None:
        try:
            try:
                self._lease = self._api.get(LEASE, self._name, self._namespace, timeout=self._request_timeout())
            except NotFound:
                self._lease = {}
            if self._held_by_another():
                return
            term = 1 + max(int(self._lease.get("spec", {}).get("leaseTransitions") or 0), self._claimed_term)
            now = self._now()
            self._claimed_term = term
            body = self._with_spec(
                holderIdentity=self._identity,
                leaseDurationSeconds=self._lease_duration,
                acquireTime=now,
                renewTime=now,
                leaseTransitions=term,
            )
            began = self._clock()
            write = self._api.replace if self._lease else self._api.create
            self._lease = write(LEASE, body, timeout=self._request_timeout())
            self._see(self._lease)
        except (Conflict, AlreadyExists):
            return  # Another was faster; the next look shows who.
        except ApiError as error:
            return self._note(error)
        with self._lock:
            self._until = began + self._renew_deadline
            self._on_until(self._until)
            if not self._valid():
                return  # The answer came too late to be of use: again, with another term.
            self._term = term
        self.last_error = None
        logger.info("leading: lease %s/%s, term %d", self._namespace, self._name, term)
        self._on_started(term)

    def _held_by_another(self) -> bool:
        """Judged by how long the record has not changed before our eyes; clocks of others are not consulted."""
        now = self._clock()
        if not self._lease:
            # A deleted Lease does not tell its holder, who may act until its own deadline.
            if self._seen is None:
                return False
            self._vanished_at = now if self._vanished_at is None else self._vanished_at
            return now < self._vanished_at + self._lease_duration
        self._see(self._lease)
        spec = self._lease["spec"]
        duration = spec.get("leaseDurationSeconds") or self._lease_duration
        return self.holder is not None and not self._is_ours(spec) and now < self._seen_at + duration

    def _see(self, lease: JsonObject) -> None:
        self._vanished_at = None
        self.holder = lease["spec"].get("holderIdentity") or None
        record = (str(lease["metadata"].get("uid")), dict(lease["spec"]))
        if record != self._seen:
            self._seen, self._seen_at = record, self._clock()

    def _is_ours(self, spec: JsonObject) -> bool:
        """Written by this very process; another with the same identity would have another term."""
        return spec.get("holderIdentity") == self._identity and spec.get("leaseTransitions") == self._claimed_term

    def _lose(self, why: str) -> None:
        with self._lock:
            self._until, self._term = _NEVER, None
            self._on_until(self._until)
        logger.warning("not leading any more: lease %s/%s: %s", self._namespace, self._name, why)
        self._on_stopped()

    def _release(self) -> None:
        now = self._now()
        body = self._with_spec(holderIdentity="", leaseDurationSeconds=1, renewTime=now, acquireTime=now)
        try:
            self._api.replace(LEASE, body, timeout=self._request_timeout())
        except ApiError as error:
            self._note(error)  # It runs out by itself.

    def _with_spec(self, **fields: object) -> JsonObject:
        metadata = {"name": self._name, "namespace": self._namespace, **self._lease.get("metadata", {})}
        spec = {**self._lease.get("spec", {}), **fields}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}

    def _now(self) -> str:
        """MicroTime: exactly six digits, or the API server refuses it."""
        return datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _request_timeout(self) -> float:
        # One that hangs must leave time for a second one, on another connection.
        return max(0.5, self._renew_deadline / 2)

    def _note(self, error: ApiError) -> None:
        if error.message != self.last_error:
            logger.warning("lease %s/%s: %s", self._namespace, self._name, error.message)
        self.last_error = error.message
