"""Who may act, and since when not any more: with two candidates, a clock that jumps, and a process that is stopped."""

from __future__ import annotations

import itertools
import math
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfs_provisioner.demo.apiserver import EmbeddedApiServer
from nfs_provisioner.errors import LostLeadership
from nfs_provisioner.kube import api as kube
from nfs_provisioner.kube.api import LEASE
from nfs_provisioner.kube.lease import LeaseElector
from tests.unit.kube.conftest import DEADLINE, Requests, eventually
from tests.unit.kube.network import FaultyNetwork

#: Nothing but a stop ends such a leadership, however busy the machine is.
PATIENT: dict[str, Any] = {"lease_duration": 200, "renew_deadline": 150, "retry_period": 0.1}
#: Lost in five seconds without the server, and free for others after eight.
QUICK: dict[str, Any] = {"lease_duration": 8, "renew_deadline": 5, "retry_period": 0.1}


class Candidate:
    """An elector and what it said. With `now` set, it lives by that clock, and takes its turns when told."""

    def __init__(self, api: kube.Api, identity: str, *, namespace: str = "default", **options: Any) -> None:
        self.said: list[str] = []
        self.now = 1000.0
        options = {"clock": lambda: self.now, "rand": lambda: 0.0, **options}
        self.elector = LeaseElector(
            api,
            namespace,
            "test",
            identity,
            on_started=lambda term: self.said.append(f"led {term}"),
            on_stopped=lambda: self.said.append("lost"),
            **options,
        )

    def turn(self) -> float:
        return self.elector._turn()


Make = Callable[..., Candidate]


@pytest.fixture
def running() -> Iterator[Make]:
    """Candidates with threads and the real clock."""
    made: list[Candidate] = []

    def make(api: kube.Api, identity: str, **options: Any) -> Candidate:
        made.append(Candidate(api, identity, clock=time.monotonic, **(QUICK | options)))
        made[-1].elector.start()
        return made[-1]

    yield make
    for candidate in made:
        candidate.elector.stop(DEADLINE)
        assert not candidate.elector.is_alive()


def lease(api: kube.Api) -> dict[str, Any]:
    spec: dict[str, Any] = api.get(LEASE, "test", "default")["spec"]
    return spec


def test_the_first_candidate_leads_and_writes_what_kubernetes_expects(api: kube.Api, requests: Requests) -> None:
    a = Candidate(api, "a", wall=lambda: 1_700_000_000.0)
    assert not a.elector.may_act()
    assert a.turn() == 2
    assert a.said == ["led 1"]
    assert (a.elector.term, a.elector.may_act(), a.elector.may_act(1), a.elector.may_act(2)) == (1, True, True, False)
    written = lease(api)
    assert re.fullmatch(r"2023-11-14T22:13:20\.000000Z", written.pop("renewTime"))
    assert written.pop("acquireTime") == "2023-11-14T22:13:20.000000Z"
    assert written == {"holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 1}
    a.now += 2
    a.turn()
    assert lease(api)["leaseTransitions"] == 1
    # The role that is shipped allows no other verbs.
    assert {(verb, resource) for verb, resource, _ in requests.all} == {
        (verb, "leases") for verb in ("get", "create", "update")
    }


def test_h16_a_leadership_that_lapsed_is_noticed_without_any_thread_having_run(api: kube.Api) -> None:
    a = Candidate(api, "a")
    a.turn()
    a.now += 9.9
    a.elector.check()
    a.now += 0.1
    with pytest.raises(LostLeadership, match="default/test is not held by a"):
        a.elector.check()
    assert a.elector.term is None
    a.now -= 5
    assert not a.elector.may_act(), "lost is lost"


def test_h16_a_lapsed_leadership_comes_back_only_with_a_greater_term(api: kube.Api) -> None:
    a = Candidate(api, "a")
    a.turn()
    a.now += 10
    a.turn()
    assert a.said == ["led 1", "lost"]
    a.turn()
    assert a.said == ["led 1", "lost", "led 2"], "nobody else has it: no need to wait"
    assert lease(api)["leaseTransitions"] == 2
    with pytest.raises(LostLeadership, match="in term 1"):
        a.elector.check(1)
    a.elector.check(2)


def test_h16_a_renewal_answered_too_late_does_not_revive_the_term(api: kube.Api) -> None:
    a = Candidate(api, "a")
    a.turn()
    a.now += 8
    api._observe = lambda *_: setattr(a, "now", a.now + 3)
    a.turn()
    assert not a.elector.may_act(), "between the tenth and the eleventh second it had lapsed"
    api._observe = lambda *_: None
    a.turn()
    a.turn()
    assert a.said == ["led 1", "lost", "led 2"]


def test_h16_a_renewal_counts_from_when_it_was_asked_for(api: kube.Api) -> None:
    a = Candidate(api, "a")
    a.turn()
    a.now += 4
    api._observe = lambda *_: setattr(a, "now", a.now + 5)
    a.turn()
    a.now += 4.9
    assert a.elector.may_act()
    a.now += 0.1
    assert not a.elector.may_act()


def test_h16_other_processes_are_told_until_when_they_may_act(api: kube.Api) -> None:
    told_until: list[float] = []
    a = Candidate(api, "a", on_until=told_until.append)
    a.turn()
    a.now += 3
    api._observe = lambda *_: setattr(a, "now", a.now + 2)
    a.turn()
    assert told_until == [1000.0 + 10, 1003.0 + 10]
    a.now += 10
    a.turn()
    assert told_until == [1010.0, 1013.0, -math.inf]


def test_h16_an_acquisition_answered_too_late_is_none(api: kube.Api) -> None:
    a = Candidate(api, "a")
    api._observe = lambda *_: setattr(a, "now", a.now + 10)
    a.turn()
    assert a.said == []
    assert not a.elector.may_act()
    api._observe = lambda *_: None
    a.turn()
    assert a.said == ["led 2"]


def test_h16_another_leader_is_waited_for_by_our_own_clock_since_its_last_sign_of_life(api: kube.Api) -> None:
    a = Candidate(api, "a", wall=itertools.count().__next__)
    b = Candidate(api, "b", wall=itertools.count(4_000_000_000).__next__)
    a.turn()
    b.turn()
    for _ in range(20):
        a.now += 2
        a.turn()
        b.now += 7
        b.turn()
    assert b.said == [], "its clock runs faster, its wall clock is elsewhere, but it saw every renewal"
    assert b.elector.holder == "a"
    b.now += 14.9
    b.turn()
    assert b.said == []
    b.now += 0.1
    b.turn()
    assert b.said == ["led 2"]
    a.now += 2
    a.turn()
    assert a.said == ["led 1", "lost"]
    assert not a.elector.may_act()


def test_h16_the_holders_own_duration_counts_when_it_is_longer(api: kube.Api) -> None:
    a, b = Candidate(api, "a", lease_duration=60, renew_deadline=40), Candidate(api, "b")
    a.turn()
    b.turn()
    b.now += 59
    b.turn()
    assert b.said == []
    b.now += 1
    b.turn()
    assert b.said == ["led 2"]


def test_h16_another_process_of_the_same_name_is_another(api: kube.Api) -> None:
    a, twin = Candidate(api, "a"), Candidate(api, "a")
    a.turn()
    twin.turn()
    assert twin.said == []


def test_h16_a_deleted_lease_is_waited_for_by_everybody_who_knew_it(api: kube.Api) -> None:
    a, b = Candidate(api, "a"), Candidate(api, "b")
    a.turn()
    b.turn()
    api.delete(LEASE, "test", namespace="default")
    b.now += 1
    b.turn()
    b.now += 14.9
    b.turn()
    assert b.said == [], "its holder may act until its own deadline"
    b.now += 0.1
    b.turn()
    assert b.said == ["led 1"]


def test_h16_a_leader_whose_lease_was_deleted_does_not_make_it_again(api: kube.Api) -> None:
    """Others count from when they saw it go; a Lease that came back as it was would be one that never went."""
    a = Candidate(api, "a")
    a.turn()
    api.delete(LEASE, "test", namespace="default")
    a.now += 2
    a.turn()
    a.now += 2
    a.turn()
    assert a.said == ["led 1", "lost"] and a.elector.last_error is None
    a.now += 15
    a.turn()
    assert a.said == ["led 1", "lost", "led 2"]


def test_somebodys_edit_of_the_lease_does_not_end_the_leadership(api: kube.Api) -> None:
    a, b = Candidate(api, "a"), Candidate(api, "b")
    a.turn()
    b.turn()
    api.patch(LEASE, "test", {"metadata": {"labels": {"k": "v"}}}, namespace="default")
    for _ in range(3):
        a.now += 2
        a.turn()
    assert a.said == ["led 1"]
    assert a.elector.may_act()
    b.now += 7
    b.turn()
    assert api.get(LEASE, "test", "default")["metadata"]["labels"] == {"k": "v"}


def test_a_clean_stop_gives_the_lease_back(api: kube.Api, running: Make) -> None:
    a = running(api, "a", **PATIENT)
    eventually(lambda: a.said == ["led 1"])
    b = running(api, "b", **PATIENT)
    a.elector.stop(DEADLINE)
    assert a.said == ["led 1", "lost"]
    assert not a.elector.may_act()
    eventually(lambda: b.said == ["led 2"], "it waits for the lease to run out")
    b.elector.stop(DEADLINE)
    assert {k: v for k, v in lease(api).items() if not k.endswith("Time")} == {
        "holderIdentity": "",
        "leaseDurationSeconds": 1,
        "leaseTransitions": 2,
    }


def test_h16_of_two_at_most_one_may_act_at_any_time(
    api: kube.Api, faulty_api: kube.Api, network: FaultyNetwork, running: Make
) -> None:
    a = running(faulty_api, "a")
    eventually(lambda: a.elector.may_act())
    b = running(api, "b")
    both = threading.Event()
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.001):
            # In this order: whoever acquires in between was not there when the first was asked.
            if a.elector.may_act() and b.elector.may_act() and a.elector.may_act():
                both.set()

    watcher = threading.Thread(target=look)
    watcher.start()
    network.silence()
    eventually(lambda: b.elector.may_act())
    network.restore()
    eventually(lambda: a.said == ["led 1", "lost"])
    eventually(lambda: a.elector.holder == "b")
    stop.set()
    watcher.join()
    assert not both.is_set()
    assert b.said == ["led 2"]


def test_h17_an_outage_shorter_than_the_deadline_costs_nothing_a_longer_one_the_leadership(
    faulty_api: kube.Api, network: FaultyNetwork, running: Make
) -> None:
    a = running(faulty_api, "a", lease_duration=60)
    eventually(lambda: a.said)
    network.refuse()
    eventually(lambda: a.elector.last_error)
    network.restore()
    eventually(lambda: a.elector.last_error is None)
    assert a.said == ["led 1"]
    network.refuse()
    began = time.monotonic()
    eventually(lambda: a.said == ["led 1", "lost"])
    assert time.monotonic() - began < 60, "others could lead already"
    assert "refused" in (a.elector.last_error or "")
    network.restore()
    eventually(lambda: a.said == ["led 1", "lost", "led 2"])


def test_a_candidate_that_may_not_create_the_lease_tries_on_and_does_not_wait_once_it_may(
    faulty_api: kube.Api, network: FaultyNetwork
) -> None:
    a = Candidate(faulty_api, "a")
    network.refuse()
    for _ in range(3):
        assert a.turn() == 2
    assert "refused" in (a.elector.last_error or "")
    network.restore()
    a.turn()
    assert a.said == ["led 1"]
    assert a.elector.last_error is None


@pytest.mark.parametrize(("duration", "deadline", "period"), [(15, 15, 2), (15, 10, 9), (0.5, 0.4, 0.1), (15, 10, 0)])
def test_durations_that_could_not_work_are_refused(
    api: kube.Api, duration: float, deadline: float, period: float
) -> None:
    with pytest.raises(ValueError, match="leaseDuration > renewDeadline"):
        Candidate(api, "a", lease_duration=duration, renew_deadline=deadline, retry_period=period)


class Process:
    """A candidate that can be stopped and continued as a whole."""

    def __init__(self, kubeconfig: Path, identity: str) -> None:
        command = [sys.executable, "-m", "tests.unit.kube.elector_process", str(kubeconfig), identity]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.put(line.strip())

    def until(self, start: str) -> list[str]:
        """The lines up to the first that starts so."""
        said: list[str] = []
        while not said or not said[-1].startswith(start):
            said.append(self.lines.get(timeout=DEADLINE))
        return said

    def rest(self) -> list[str]:
        said = []
        while not self.lines.empty():
            said.append(self.lines.get())
        return said

    def end(self) -> None:
        self.child.send_signal(signal.SIGCONT)
        self.child.communicate(timeout=DEADLINE)


def test_h16_a_process_stopped_past_its_lease_does_nothing_when_it_goes_on(
    server: EmbeddedApiServer, tmp_path: Path
) -> None:
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
    a = Process(kubeconfig, "a")
    b = None
    try:
        a.until("act 1")
        b = Process(kubeconfig, "b")
        a.child.send_signal(signal.SIGSTOP)
        stopped = a.rest()
        b.until("act 2")
        stopped += a.rest()
        assert all(line.startswith("act 1") for line in stopped)
        continued = time.monotonic()
        a.child.send_signal(signal.SIGCONT)
        after = a.until("lost")
        acts = [float(line.split()[2]) for line in after if line.startswith("act")]
        assert [t for t in acts if t > continued] == []
        if "refused 1" not in after:
            a.until("refused 1")
        assert "lost" not in b.rest()
        assert a.rest() == []
    finally:
        a.end()
        if b is not None:
            b.end()


def test_h16_a_process_stopped_past_its_deadline_but_not_its_lease_goes_on_in_a_new_term(
    server: EmbeddedApiServer, tmp_path: Path
) -> None:
    a = Process(server.write_kubeconfig(tmp_path / "kubeconfig"), "a")
    try:
        a.until("act 1")
        a.child.send_signal(signal.SIGSTOP)
        continued: list[float] = []

        def go_on() -> None:
            continued.append(time.monotonic())
            a.child.send_signal(signal.SIGCONT)

        resume = threading.Timer(5.5, go_on)
        resume.start()
        resume.join()
        said = a.until("act 2")
        if "refused 1" not in said:  # the work of the first term has a thread of its own
            said += a.until("refused 1")
        acts = [float(line.split()[2]) for line in said if line.startswith("act 1")]
        assert all(t < continued[0] for t in acts)
        assert {line for line in said if not line.startswith("act")} >= {"lost", "led 2", "refused 1"}
    finally:
        a.end()
