"""Whose turn it is, when deletions wait, and how far the standby is: as tables and as long random histories."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfs_provisioner.replication.breaker import ALWAYS_DELETED, PART, WINDOW, may_delete
from nfs_provisioner.replication.pair import Ended, Kept, Pair, Turn

INTERVAL = 30.0
CLEAN = Ended(clean=True)
FAILED = Ended(clean=False, failed=True, message="no answer")

LIMITS = [
    (0, 0, 0.2, 0, True),
    (ALWAYS_DELETED, 1000, 0.2, 0, True),  # a small volume may be emptied
    (ALWAYS_DELETED + 1, 1001, 0.2, 0, False),
    (20_000, 100_000, 0.2, 0, True),
    (20_001, 100_000, 0.2, 0, False),
    (20_001, 100_000, 0.2, 20_001, True),  # a person has seen these
    (20_002, 100_000, 0.2, 20_001, False),  # but not more
    (100_000, 100_000, 1.0, 0, True),
    (ALWAYS_DELETED + 1, 10**9, 0.0, 0, False),
]


@pytest.mark.parametrize(("deletions", "entries", "share", "allowed", "may"), LIMITS)
def test_the_breaker(deletions: int, entries: int, share: float, allowed: int, may: bool) -> None:
    assert may_delete(deletions, entries, share, allowed) is may


@pytest.mark.parametrize(("before", "may"), [(19_000, True), (19_001, False)])
def test_the_breaker_counts_what_went_before(before: int, may: bool) -> None:
    assert may_delete(1000, 100_000, 0.2, before=before) is may
    assert may_delete(1000, 100_000, 0.2, 1000, before), "a person has seen these"


def pair(*pvs: str, now: float = 0.0, **kept: Kept) -> Pair:
    made = Pair(INTERVAL)
    made.keep({pv: Kept(1) for pv in pvs} | kept, now)
    return made


def done(made: Pair, turn: Turn | None, ended: Ended, now: float) -> None:
    assert turn is not None
    made.ended(turn, ended, now, 1000.0 + now)


def test_a_new_volume_is_passed_at_once_and_then_once_an_interval() -> None:
    made = pair("one")
    passes = []
    now = 0.0
    while now < 10 * INTERVAL:
        turn = made.next(now)
        if turn is not None:
            passes.append(now)
            done(made, turn, CLEAN, now + 0.1)
        now += max(0.5, min(made.wait(now), INTERVAL))
    assert passes[0] == 0.0
    assert 9 <= len(passes) <= 12
    assert all(INTERVAL / 2 <= b - a <= 1.6 * INTERVAL for a, b in itertools.pairwise(passes))


def test_volumes_that_began_together_are_spread_over_the_interval() -> None:
    names = [f"pvc-{number}" for number in range(300)]
    made = pair(*names)
    for _ in names:
        done(made, made.next(0.0), CLEAN, 0.0)
    begun: Counter[int] = Counter()
    for tick in range(int(2 * INTERVAL)):
        while (turn := made.next(float(tick))) is not None:
            begun[tick] += 1
            done(made, turn, CLEAN, float(tick))
    assert max(begun.values()) <= 30, "they come in bursts"
    assert sum(begun.values()) >= len(names)


def test_one_volume_is_never_passed_twice_at_a_time() -> None:
    made = pair("one")
    turn = made.next(0.0)
    made.dirty("one", ["a"], 1.0)
    assert made.next(1000.0) is None
    done(made, turn, CLEAN, 1000.0)
    again = made.next(1030.0)
    assert again is not None and again.only is None  # its own time has come, too


def test_dirty_directories_are_passed_soon_and_alone() -> None:
    made = pair("one")
    done(made, made.next(0.0), CLEAN, 0.1)
    made.dirty("one", ["a/b"], 5.0)
    assert made.next(5.0) == Turn("one", 1, frozenset({"a/b"}))


@pytest.mark.parametrize("unknown", [None, [str(number) for number in range(2000)]])
def test_what_nobody_knows_is_compared_whole(unknown: list[str] | None) -> None:
    made = pair("one")
    done(made, made.next(0.0), CLEAN, 0.1)
    made.dirty("one", unknown, 5.0)
    assert made.next(5.0) == Turn("one", 1, None)


def test_a_look_at_some_directories_does_not_make_a_copy_clean() -> None:
    made = pair("one")
    done(made, made.next(0.0), CLEAN, 0.1)
    made.dirty("one", ["a"], 5.0)
    done(made, made.next(5.0), CLEAN, 5.1)
    assert made.standing(7.0).lag == 7.0


def test_what_a_cut_off_pass_did_not_reach_is_not_forgotten() -> None:
    """H22."""
    made = pair("one")
    done(made, made.next(0.0), CLEAN, 0.1)
    made.dirty("one", ["a"], 5.0)
    done(made, made.next(5.0), FAILED, 5.1)
    assert made.next(5.2) is None
    assert made.next(7.0) == Turn("one", 1, None)


def test_a_volume_that_fails_is_tried_less_and_less() -> None:
    made = pair("one")
    moments = []
    now = 0.0
    for _ in range(15):
        now += made.wait(now)
        moments.append(now)
        done(made, made.next(now), FAILED, now)
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert gaps[:4] == [1, 2, 4, 8]
    assert gaps[-1] == 300
    assert made.volume("one", now).message == "no answer"  # type: ignore[union-attr]


def test_a_busy_volume_leaves_half_a_lane_to_others() -> None:
    made = pair("busy")
    turn, now, working = made.next(0.0), 0.0, 0.0
    while now < 200:
        made.dirty("busy", ["a"], now)
        now, working = now + 3.0, working + 3.0
        done(made, turn, CLEAN, now)
        now += made.wait(now)
        turn = made.next(now)
    assert working <= now * 0.45  # a third, and its own time once an interval


def test_lag_is_the_oldest_volumes_and_unknown_until_each_was_clean() -> None:
    """H43: from the beginning of a pass, never from its end."""
    made = pair("one", "two")
    first = made.next(0.0)
    assert made.standing(5.0).lag is None
    assert made.standing(5.0).behind == 5.0
    done(made, first, CLEAN, 10.0)
    second = made.next(10.0)
    assert made.standing(20.0).lag is None
    done(made, second, CLEAN, 12.0)
    found = made.standing(20.0)
    assert found.lag == 20.0
    assert found.last_clean == 1000.0
    assert made.volume(second.pv, 20.0).lag == 10.0  # type: ignore[union-attr]


def test_an_archive_is_passed_until_it_was_clean_once_and_does_not_lag() -> None:
    made = pair("one")
    done(made, made.next(0.0), CLEAN, 0.0)
    made.keep({"one": Kept(2, archived=True)}, 10.0)
    assert made.standing(50.0).lag == 50.0
    turn = made.next(60.0)
    assert turn == Turn("one", 2, None)
    done(made, turn, CLEAN, 61.0)
    assert made.wait(61.0) == math.inf
    assert made.standing(500.0).lag == 0.0


def test_a_volume_whose_record_the_standby_does_not_have_waits() -> None:
    made = pair(one=Kept(1, ready=False))
    assert made.next(100.0) is None
    made.keep({"one": Kept(1)}, 101.0)
    assert made.next(101.0) == Turn("one", 1)


def test_what_the_standby_says_after_a_restart_counts() -> None:
    made = pair("one", "two", now=100.0)
    made.learned("one", 10.0, 1, 100.0, 5000.0)
    made.learned("two", 400.0, 1, 100.0, 5000.0)
    found = made.standing(101.0)
    assert (found.lag, found.last_clean) == (401.0, 4600.0)
    first = made.next(100.0)
    assert first is not None and first.pv == "two", "the one that was away for longer comes first"


def test_deletions_that_wait_are_confirmed_once_and_for_what_was_seen() -> None:
    made = pair("one")
    assert made.confirm("one", 0.0) == 0
    done(made, made.next(0.0), Ended(clean=False, waiting=5000), 1.0)
    assert made.standing(1.0).waiting == (("one", 5000),)
    assert made.confirm("one", 1.5) == 5000
    turn = made.next(1.5)
    assert turn == Turn("one", 1, None, allowed=5000)
    done(made, turn, CLEAN, 2.0)
    assert made.standing(2.0).waiting == ()
    later = made.next(100.0)
    assert later is not None and later.allowed == 0


def went(made: Pair, now: float, deleted: int) -> Turn:
    """A pass over one directory deletes so many."""
    made.dirty("one", ["a"], now)
    turn = made.next(now)
    assert turn is not None and turn.only is not None
    done(made, turn, Ended(clean=True, deleted=deleted), now)
    return turn


def test_what_went_in_portions_is_judged_together() -> None:
    """Promise 9: a mirror is not emptied by accident, and not slowly either."""
    made = Pair(10 * WINDOW)
    made.keep({"one": Kept(1)}, 0.0)
    done(made, made.next(0.0), Ended(clean=True, entries=10_000), 0.0)
    turns = [went(made, 10.0 + 2 * number, 900) for number in range(3)]
    assert [(turn.deleted, turn.entries) for turn in turns] == [(0, 10_000), (900, 10_000), (1800, 10_000)]
    assert went(made, WINDOW, 0).deleted == 2700
    later = went(made, 30.0 + PART + WINDOW, 0)
    assert (later.deleted, later.entries) == (0, 7300), "a new window begins with what is left"


def test_what_went_before_anybody_knew_the_size_counts_with_the_size_it_had() -> None:
    made = pair("one")
    made.learned("one", 1.0, 1, 0.0, 5000.0)
    went(made, 1.0, 900)
    made.dirty("one", None, 5.0)
    done(made, made.next(5.0), Ended(clean=True, entries=4000, deleted=100), 5.0)
    assert (turn := went(made, 10.0, 0)).deleted == 1000 and turn.entries == 5000


def test_what_a_person_confirmed_begins_a_new_window() -> None:
    made = pair("one")
    done(made, made.next(0.0), Ended(clean=False, waiting=5000, entries=5000, deleted=900), 1.0)
    made.confirm("one", 1.5)
    done(made, made.next(1.5), Ended(clean=True, entries=5000, deleted=5000), 2.0)
    assert went(made, 5.0, 0).deleted == 0


def test_many_deletions_in_a_few_directories_are_looked_at_in_the_whole_volume_before_anybody_is_asked() -> None:
    made = pair("one")
    done(made, made.next(0.0), CLEAN, 0.1)
    made.dirty("one", ["a"], 5.0)
    done(made, made.next(5.0), Ended(clean=False, waiting=1500, message="1500 deletions wait"), 5.1)
    assert made.standing(5.1).waiting == ()
    found = made.volume("one", 5.1)
    assert found is not None and (found.waiting, found.message) == (0, "")
    assert (again := made.next(7.0)) is not None and again.only is None


def test_a_copy_between_two_states_is_compared_whole_at_once_after_a_restart() -> None:
    """H27: a pass over some directories would not find what the one that was cut off left."""
    made = Pair(3600.0)
    made.keep({"one": Kept(1)}, 0.0)
    made.learned("one", 1.0, 1, 0.0, 5000.0, doubtful=True)
    made.dirty("one", ["a"], 0.0)
    assert made.next(0.0) == Turn("one", 1, None)


def test_h38_what_somebody_else_wrote_can_be_confirmed_after_a_restart() -> None:
    made = Pair(3600.0)
    made.keep({"one": Kept(1)}, 0.0)
    made.learned("one", 1.0, 1, 0.0, 5000.0, foreign=2)
    assert made.confirm("one", 0.0) == 2
    assert made.next(0.0) == Turn("one", 1, None, allowed=2)


def test_a_confirmation_outlives_a_pass_that_was_cut_off() -> None:
    made = pair("one")
    done(made, made.next(0.0), Ended(clean=False, waiting=5000), 1.0)
    made.confirm("one", 1.0)
    done(made, made.next(1.0), FAILED, 2.0)
    again = made.next(4.0)
    assert again is not None and again.allowed == 5000


def test_a_volume_that_went_is_forgotten() -> None:
    made = pair("one")
    turn = made.next(0.0)
    made.keep({}, 1.0)
    done(made, turn, CLEAN, 2.0)
    assert made.volume("one", 2.0) is None
    assert made.next(1000.0) is None
    assert made.standing(1000.0).lag == 0.0


ENDINGS = st.sampled_from([CLEAN, FAILED, Ended(False), Ended(False, waiting=2000), Ended(False, unstable=1)])


@settings(max_examples=200, deadline=None)
@given(data=st.data(), lanes=st.integers(1, 4), count=st.integers(1, 8))
def test_every_volume_has_its_turn(data: st.DataObject, lanes: int, count: int) -> None:
    """Whatever ends how, and whatever is dirty: none waits for longer than its back-off and a round of all others."""
    names = [f"pv{number}" for number in range(count)]
    made = pair(*names)
    now, running = 0.0, list[tuple[float, float, Turn]]()
    last = dict.fromkeys(names, 0.0)
    longest = 0.0
    for _ in range(60):
        for name in data.draw(st.lists(st.sampled_from(names), max_size=2)):
            made.dirty(name, data.draw(st.sampled_from([None, ["a"], ["a", "b"]])), now)
        while len(running) < lanes and (turn := made.next(now)) is not None:
            assert turn.pv not in {other.pv for _, _, other in running}
            took = data.draw(st.sampled_from([0.0, 0.1, 5.0]))
            longest = max(longest, now - last[turn.pv])
            running.append((now + took, now, turn))
        running.sort(key=lambda entry: entry[0])
        if running and running[0][0] <= now + made.wait(now):
            now, began, turn = running.pop(0)
            made.ended(turn, data.draw(ENDINGS), now, now)
            last[turn.pv] = now
            assert made.volume(turn.pv, now) is not None
            del began
        else:
            now += min(made.wait(now), INTERVAL)
        lag = made.standing(now).lag
        assert lag is None or lag >= 0
    for name in names:
        assert name in {other.pv for _, _, other in running} or now - last[name] <= 300 + (5.0 + 1.0) * count, name
