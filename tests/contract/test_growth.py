"""Growing a claim: what the API server allows, and that nobody grows the volume but the provisioner."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.contract.client import DEADLINE, STRATEGIC, Answer
from tests.contract.world import CLASSES, World


def request(world: World, size: str, name: str = "a", **query: str) -> Answer:
    return world.api.patch(world.claim_path(name), {"spec": {"resources": {"requests": {"storage": size}}}}, **query)


@pytest.fixture
def growable(world: World) -> str:
    """A bound claim of 1Gi called "a" whose class allows growth; returns the class."""
    storage_class = world.storage_class(allowVolumeExpansion=True)
    world.bound("a", storage_class)
    # Admission reads a cache of its own, which may learn of the class after the binder did.
    world.api.eventually(world.claim_path("a"), lambda _: request(world, "2Gi", dryRun="All").code == 200)
    return storage_class


@pytest.mark.usefixtures("growable")
def test_a_bound_claim_may_ask_for_more(world: World) -> None:
    grown = request(world, "3Gi").ok()
    assert grown["spec"]["resources"]["requests"] == {"storage": "3Gi"}
    assert grown["status"]["capacity"] == {"storage": "1Gi"}
    world.settle()
    # Everything else is the provisioner's work.
    claim, volume = world.api.get(world.claim_path("a")).ok(), world.api.get(world.volume_path("a")).ok()
    assert set(claim["status"]) == {"phase", "accessModes", "capacity"}
    assert volume["spec"]["capacity"] == {"storage": "1Gi"}


@pytest.mark.usefixtures("growable")
def test_the_steps_of_a_growth(world: World) -> None:
    request(world, "3Gi").ok()
    status = f"{world.claim_path('a')}/status"
    begun = {
        "allocatedResources": {"storage": "3Gi"},
        "allocatedResourceStatuses": {"storage": "ControllerResizeInProgress"},
    }
    claim = world.api.patch(status, {"status": begun}, STRATEGIC).ok()
    assert {key: claim["status"][key] for key in begun} == begun
    world.api.patch(world.volume_path("a"), {"spec": {"capacity": {"storage": "3Gi"}}}).ok()
    world.settle()
    # The binder leaves the claim's capacity alone once it is Bound.
    assert world.api.get(world.claim_path("a")).ok()["status"]["capacity"] == {"storage": "1Gi"}
    done = {"capacity": {"storage": "3Gi"}, "allocatedResourceStatuses": None, "conditions": None}
    claim = world.api.patch(status, {"status": done}, STRATEGIC).ok()
    assert claim["status"]["capacity"] == {"storage": "3Gi"}
    assert "allocatedResourceStatuses" not in claim["status"]


@pytest.mark.usefixtures("growable")
def test_a_growth_that_failed_may_shrink_to_above_what_is_there(world: World) -> None:
    request(world, "5Gi").ok()
    assert request(world, "2Gi").ok()["spec"]["resources"]["requests"] == {"storage": "2Gi"}
    for size in ("1Gi", "512Mi"):
        request(world, size).refused(422, "Invalid", "field can not be less than status.capacity")


@pytest.mark.usefixtures("growable")
def test_a_claim_may_not_ask_for_less(world: World) -> None:
    request(world, "512Mi").refused(422, "Invalid", "field can not be less than status.capacity")


def test_a_class_without_growth_forbids_it(world: World) -> None:
    world.bound("a", world.storage_class())
    request(world, "2Gi").refused(403, "Forbidden", "the storageclass that provisions the pvc must support resize")


def test_the_live_class_decides(world: World, growable: str) -> None:
    sizes = (f"{size}Gi" for size in range(2, 1000))
    world.api.patch(f"{CLASSES}/{growable}", {"allowVolumeExpansion": False}).ok()
    soon(world, sizes, 403).refused(403, "Forbidden")
    world.api.patch(f"{CLASSES}/{growable}", {"allowVolumeExpansion": True}).ok()
    soon(world, sizes, 200).ok()
    world.api.delete(f"{CLASSES}/{growable}").ok()
    soon(world, sizes, 403).refused(403, "Forbidden")


def soon(world: World, sizes: Iterator[str], code: int) -> Answer:
    """Ask for more and more until the answer is `code`: the real server's admission learns of classes by a watch."""
    end = time.monotonic() + DEADLINE
    while True:
        answer = request(world, next(sizes))
        if answer.code == code or time.monotonic() > end:
            return answer
        threading.Event().wait(0.05)


def test_an_unbound_claim_cannot_grow(world: World) -> None:
    world.claim("a", world.storage_class(allowVolumeExpansion=True))
    request(world, "2Gi").refused(422, "Invalid", "spec is immutable")


@pytest.mark.usefixtures("growable")
def test_a_volume_may_be_made_smaller_or_larger_by_hand(world: World) -> None:
    """The server does not mind; our controller has to."""
    for size in ("3Gi", "512Mi"):
        changed = world.api.patch(world.volume_path("a"), {"spec": {"capacity": {"storage": size}}}).ok()
        assert changed["spec"]["capacity"] == {"storage": size}
