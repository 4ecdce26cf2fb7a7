"""Changes in step: each goes on only after its own sync, and fails alone."""

from __future__ import annotations

from nfs_provisioner.export.batch import Change, run_together


def test_no_change_goes_on_before_its_sync_and_equal_syncs_are_made_once() -> None:
    said: list[str] = []

    def shared() -> None:
        said.append("shared")

    def change(name: str, own: bool) -> Change[str]:
        said.append(f"{name} begins")
        if own:
            yield lambda: said.append(f"{name} synced")
        yield shared
        said.append(f"{name} ends")
        return name

    assert run_together([change("a", False), change("b", False), change("c", True)]) == ["a", "b", "c"]
    assert said == [
        "a begins", "b begins", "c begins", "shared", "c synced", "a ends", "b ends", "shared", "c ends",
    ]  # fmt: skip


def test_a_failed_sync_fails_those_that_waited_for_it_and_no_other() -> None:
    ended: list[str] = []

    def fails() -> None:
        raise OSError(5, "Input/output error")

    def change(name: str, good: bool) -> Change[str]:
        try:
            yield (lambda: None) if good else fails
        except OSError:
            ended.append(name)
            raise
        return name

    results = run_together([change("a", True), change("b", False), change("c", True), change("d", False)])
    assert [isinstance(result, OSError) for result in results] == [False, True, False, True]
    assert (results[0], results[2], ended) == ("a", "c", ["b", "d"])


def test_a_change_that_raises_at_once_does_not_stop_the_others() -> None:
    def bad() -> Change[str]:
        raise ValueError("bad")
        yield

    def good() -> Change[str]:
        yield lambda: None
        return "good"

    results = run_together([bad(), good()])
    assert isinstance(results[0], ValueError) and results[1] == "good"
