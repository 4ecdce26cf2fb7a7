"""Two candidates, one Lease, one true time; requests that are slow, lost, or whose answers are lost."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.kube import api as kube
from nfs_provisioner.kube.api import JsonObject, Resource, Unavailable
from nfs_provisioner.kube.lease import LeaseElector

DELAYS = st.sampled_from([0.0, 0.0, 0.1, 1.0, 4.0, 9.5, 12.0, 16.0])
LOST = st.sampled_from(["", "", "", "request", "answer"])
NAMES = itertools.count()


class World:
    """The one true time, and the server."""

    def __init__(self, api: kube.Api) -> None:
        self.api = api
        self.now = 5000.0


class BadConnection:
    """The real requests, with the time they take, and their losses, from the test."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.before = self.after = 0.0
        self.lost = ""

    def get(self, *args: Any, **options: Any) -> JsonObject:
        return self._faulty(lambda: self._world.api.get(*args, **options))

    def create(self, res: Resource, obj: JsonObject, **options: Any) -> JsonObject:
        return self._faulty(lambda: self._world.api.create(res, obj, **options))

    def replace(self, res: Resource, obj: JsonObject, **options: Any) -> JsonObject:
        return self._faulty(lambda: self._world.api.replace(res, obj, **options))

    def _faulty(self, send: Callable[[], JsonObject]) -> JsonObject:
        self._world.now += self.before
        if self.lost == "request":
            raise Unavailable("lost")
        answer = send()
        self._world.now += self.after
        if self.lost == "answer":
            raise Unavailable("lost")
        return answer


class LeaseMachine(RuleBasedStateMachine):
    api: kube.Api

    @initialize()
    def two_candidates(self) -> None:
        self.world = World(self.api)
        name = f"lease-{next(NAMES)}"
        self.terms: list[int] = []
        self.leading: dict[str, int | None] = {"a": None, "b": None}
        self.connections = {who: BadConnection(self.world) for who in self.leading}
        self.electors = {who: self.elector(name, who) for who in self.leading}

    def elector(self, name: str, who: str) -> LeaseElector:
        def started(term: int) -> None:
            assert self.leading[who] is None
            assert term not in self.terms, "a term of two leaderships"
            assert all(term > earlier for earlier in self.terms)
            self.terms.append(term)
            self.leading[who] = term

        def stopped() -> None:
            assert self.leading[who] is not None
            self.leading[who] = None

        connection: Any = self.connections[who]
        return LeaseElector(
            connection, "default", name, who, clock=lambda: self.world.now, on_started=started, on_stopped=stopped
        )

    @rule(who=st.sampled_from("ab"), before=DELAYS, after=DELAYS, lost=LOST)
    def turn(self, who: str, before: float, after: float, lost: str) -> None:
        connection = self.connections[who]
        connection.before, connection.after, connection.lost = before, after, lost
        self.electors[who]._turn()

    @rule(who=st.sampled_from("ab"), turns=st.integers(1, 8))
    def good_times(self, who: str, turns: int) -> None:
        connection = self.connections[who]
        connection.before = connection.after = 0.0
        connection.lost = ""
        for _ in range(turns):
            self.world.now += 2
            self.electors[who]._turn()

    @rule(seconds=DELAYS)
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds

    @invariant()
    def at_most_one_may_act(self) -> None:
        acting = [who for who, elector in self.electors.items() if elector.may_act()]
        assert len(acting) <= 1
        for who in acting:
            assert self.electors[who].may_act(self.leading[who]), "acting in a term that it was not told of"


def test_h16_whatever_happens_to_requests_at_most_one_may_act_and_terms_only_rise() -> None:
    with tempfile.TemporaryDirectory() as directory, EmbeddedApiServer() as server:
        LeaseMachine.api = kube.load(str(server.write_kubeconfig(Path(directory) / "kubeconfig")))
        case = LeaseMachine.TestCase
        case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
        case("runTest").debug()
        LeaseMachine.api.close()
