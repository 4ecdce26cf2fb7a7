"""Writes Events at the lowest priority: never in the way of a claim.

A thread of its own posts them, only while nobody says `busy` (or after an Event has waited ten seconds). What repeats
within ten minutes is counted on the Event that is there already. When the API server does not take them, they are
dropped and counted: an Event is a hint, the log has everything.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable

from nfs_provisioner.kube.api import EVENT, Api, ApiError, JsonObject

log = logging.getLogger(__name__)

MOST_WAITING = 10_000
PATIENCE = 10.0  # seconds an Event waits for a busy controller
SAME_FOR = 600.0  # seconds during which an equal Event is counted, not repeated
_PAUSE = 0.05  # seconds between looks at a busy controller


class EventWriter:
    """Queue of Events. `record` never blocks and never fails."""

    def __init__(
        self,
        api: Api,
        *,
        busy: Callable[[], bool],
        may: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`may` says whether this process still speaks for the controller: what waits is dropped when it does not."""
        self._api = api
        self._may = may
        self._busy = busy
        self._clock = clock
        self._waiting: collections.deque[tuple[float, JsonObject]] = collections.deque(maxlen=MOST_WAITING)
        self._arrived = threading.Condition()
        self._stopped = False
        self._known: dict[tuple[str, ...], tuple[float, JsonObject]] = {}
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begin to post."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Post what waits, for at most `timeout` seconds."""
        with self._arrived:
            self._stopped = True
            self._arrived.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def record(self, event: JsonObject) -> None:
        """Queue an Event (a complete core/v1 object)."""
        with self._arrived:
            self._waiting.append((self._clock(), event))
            self._arrived.notify()

    def _run(self) -> None:
        while True:
            with self._arrived:
                while not self._waiting and not self._stopped:
                    self._arrived.wait()
                if not self._waiting:
                    return
                since, event = self._waiting[0]
                if not self._stopped and self._busy() and self._clock() - since < PATIENCE:
                    self._arrived.wait(_PAUSE)
                    continue
                self._waiting.popleft()
            if self._may():
                self._post(event)

    def _post(self, event: JsonObject) -> None:
        regarding = event["involvedObject"]
        # A warning whose figures change with each try is the same warning: its newest wording replaces the last.
        same = "" if event["type"] == "Warning" else event["message"]
        key = (regarding.get("uid", ""), regarding["name"], event["reason"], same)
        now = self._clock()
        when, posted = self._known.get(key, (0.0, None))
        namespace = event["metadata"]["namespace"]
        try:
            if posted is not None and now - when < SAME_FOR:
                posted = {**posted, "count": posted["count"] + 1}
                change = {key: event[key] for key in ("lastTimestamp", "message")} | {"count": posted["count"]}
                self._api.patch(EVENT, posted["metadata"]["name"], change, namespace=namespace)
            else:
                posted = event
                self._api.create(EVENT, event, namespace)
        except ApiError as error:
            log.info("an Event was not written (%s %s): %s", event["reason"], regarding["name"], error)
            self._known.pop(key, None)
            return
        self._known[key] = (now, posted)
        if len(self._known) > MOST_WAITING:
            self._known = {k: v for k, v in self._known.items() if now - v[0] < SAME_FOR}
