"""Requests that go together: nobody's answer is another's, and nobody waits for nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nfs_provisioner.export.gathering import ENOUGH, Gathering

DEADLINE = 120.0


def test_everybody_gets_the_answer_to_his_own_question() -> None:
    sent: list[list[int]] = []

    def send(items: list[int]) -> list[int | Exception]:
        sent.append(items)
        return [item * 2 for item in items]

    gathering = Gathering(send)
    with ThreadPoolExecutor(ENOUGH) as pool:
        assert list(pool.map(lambda item: gathering.ask(item, 1), range(500))) == [item * 2 for item in range(500)]
    assert sorted(item for items in sent for item in items) == list(range(500))


def test_one_failure_is_its_own_and_a_failed_request_is_everybodys() -> None:
    def send(items: list[str]) -> list[str | Exception]:
        if "hang" in items:
            raise TimeoutError("no answer")
        return [ValueError(item) if item == "bad" else item for item in items]

    gathering = Gathering(send)
    assert gathering.ask("good", 1) == "good"
    with pytest.raises(ValueError, match="bad"):
        gathering.ask("bad", 1)
    with pytest.raises(TimeoutError):
        gathering.ask("hang", 1)
    assert gathering.ask("good", 1) == "good"


def test_what_comes_while_a_request_is_under_way_goes_with_the_next() -> None:
    under_way, go_on = threading.Event(), threading.Event()
    sent: list[list[int]] = []

    def send(items: list[int]) -> list[int | Exception]:
        sent.append(items)
        under_way.set()
        go_on.wait(DEADLINE)
        return list(items)

    gathering = Gathering(send)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(gathering.ask, 0, 1)
        assert under_way.wait(DEADLINE)
        others = [pool.submit(gathering.ask, item, 1) for item in (1, 2, 3)]
        while len(gathering._waiting) < 3:
            threading.Event().wait(0.001)
        go_on.set()
        assert [first.result(DEADLINE), *(other.result(DEADLINE) for other in others)] == [0, 1, 2, 3]
    assert [sorted(items) for items in sent] == [[0], [1, 2, 3]]


def test_a_hung_request_holds_up_no_other_where_several_may_be_under_way() -> None:
    go_on, hung = threading.Event(), threading.Event()

    def send(items: list[int]) -> list[int | Exception]:
        if items == [0]:
            hung.set()
            go_on.wait(DEADLINE)
        return list(items)

    gathering = Gathering(send)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(gathering.ask, 0, 2)
        assert hung.wait(DEADLINE)
        assert gathering.ask(1, 2) == 1
        go_on.set()
        assert first.result(DEADLINE) == 0


def test_over_a_network_requests_go_side_by_side_and_not_in_one() -> None:
    sent: list[list[int]] = []
    together = threading.Barrier(8)

    def send(items: list[int]) -> list[int | Exception]:
        sent.append(items)
        together.wait(DEADLINE)
        return list(items)

    gathering = Gathering(send)
    with ThreadPoolExecutor(8) as pool:
        for start in (0, 8):  # the second eight come in a burst
            asked = [pool.submit(gathering.ask, number, 10) for number in range(start, start + 8)]
            assert [one.result(DEADLINE) for one in asked] == list(range(start, start + 8))
    assert sorted(sent) == [[number] for number in range(16)]


def test_one_thread_that_asks_again_and_again_waits_for_nobody() -> None:
    now = [0.0]
    gathering: Gathering[int, int] = Gathering(lambda items: list(items), clock=lambda: now[0])
    gathering._changed.wait = lambda timeout=None: pytest.fail("waited")  # type: ignore[method-assign]
    for number in range(50):
        assert gathering.ask(number, 1) == number


def test_a_request_carries_no_more_than_its_deadline_allows() -> None:
    go_on, under_way = threading.Event(), threading.Event()
    sent: list[list[int]] = []

    def send(items: list[int]) -> list[int | Exception]:
        sent.append(items)
        under_way.set()
        go_on.wait(DEADLINE)
        return list(items)

    gathering = Gathering(send)
    with ThreadPoolExecutor(4 * ENOUGH) as pool:
        asked = [pool.submit(gathering.ask, 0, 1)]
        assert under_way.wait(DEADLINE)
        asked += [pool.submit(gathering.ask, number, 1) for number in range(1, 3 * ENOUGH)]
        while len(gathering._waiting) < 3 * ENOUGH - 1:
            threading.Event().wait(0.001)
        go_on.set()
        assert [one.result(DEADLINE) for one in asked] == list(range(3 * ENOUGH))
    assert max(map(len, sent)) <= ENOUGH
