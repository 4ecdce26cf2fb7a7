"""Writes Events at the lowest priority: never in the way of a claim.

A thread of its own posts them, only while nobody says `busy` (or after an Event has waited for long). Warnings come
first: somebody may be looking for what is wrong, while good news shows in the objects themselves. What repeats
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
PATIENCE = 10.0  # seconds a warning waits for a busy controller
GOOD_NEWS_PATIENCE = 300.0  # seconds, for every other Event: a burst would pay for them with a tenth of its speed
SAME_FOR = 600.0  # seconds during which an equal Event is counted, not repeated
_PAUSE = 0.05  # seconds between looks at a busy controller


class _Waiting:
    """Events of one urgency, with the moments they came; the oldest are dropped when there are too many."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.events: collections.deque[tuple[float, JsonObject]] = collections.deque(maxlen=MOST_WAITING)


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
        self._warnings, self._good_news = _Waiting(PATIENCE), _Waiting(GOOD_NEWS_PATIENCE)
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
            waiting = self._warnings if event["type"] == "Warning" else self._good_news
            waiting.events.append((self._clock(), event))
            self._arrived.notify()

    def _run(self) -> None:
        while True:
            with self._arrived:
                event = self._next()
                if event is None:
                    if self._stopped:
                        return
                    self._arrived.wait(_PAUSE if self._warnings.events or self._good_news.events else None)
                    continue
            if self._may():
                self._post(event)

    def _next(self) -> JsonObject | None:
        """The Event whose turn has come; None: none waits, or the controller is busy with better things."""
        queues = [waiting for waiting in (self._warnings, self._good_news) if waiting.events]
        if not queues:
            return None
        calm = self._stopped or not self._busy()
        now = self._clock()
        due = [waiting for waiting in queues if calm or now - waiting.events[0][0] >= waiting.patience]
        return due[0].events.popleft()[1] if due else None

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
