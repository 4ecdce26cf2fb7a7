"""What is asked of a pool without asking for everything at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from nfs_provisioner import memory


class Pool(ThreadPoolExecutor):
    """Counts the futures whose results nobody has taken yet."""

    def __init__(self) -> None:
        super().__init__(4)
        self.made: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future = super().submit(fn, *arguments, **named)
        self.made.append(future)
        return future


def test_the_futures_of_ten_thousand_records_are_not_made_all_at_once() -> None:
    with Pool() as pool:
        results = memory.few_at_once(pool, str, range(1000))
        first = next(results)
        at_first = len(pool.made)
        assert [first, *results] == [str(number) for number in range(1000)]
    assert 4 <= at_first < 1000 == len(pool.made)


def test_nothing_is_asked_of_a_pool_for_nothing() -> None:
    with Pool() as pool:
        assert list(memory.few_at_once(pool, str, [])) == []
    assert not pool.made
