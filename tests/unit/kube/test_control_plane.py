"""Where the real API server behaves as only it does: TLS, its own 410s, restarts, and what it does with Leases."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nfs_provisioner.kube import api as kube
from nfs_provisioner.kube.api import LEASE, NAMESPACE, PVC
from nfs_provisioner.kube.reflector import Reflector
from tests.controlplane.controlplane import ControlPlane
from tests.unit.kube.conftest import DEADLINE, claim, eventually
from tests.unit.kube.test_lease import PATIENT, Candidate

pytestmark = pytest.mark.cluster


@pytest.fixture
def real(control_plane: ControlPlane) -> Iterator[kube.Api]:
    api = kube.load(str(control_plane.admin_kubeconfig))
    yield api
    api.close()


@pytest.fixture
def namespace(real: kube.Api) -> Iterator[str]:
    name = real.create(NAMESPACE, {"metadata": {"generateName": "kube-parts-"}})["metadata"]["name"]
    yield name
    real.delete(NAMESPACE, name)


def cache_of(api: kube.Api, namespace: str) -> Reflector[str]:
    def ignore(_key: str, _old: str | None, _new: str | None) -> None:
        pass

    return Reflector(api, PVC, slim=lambda obj: str(obj["metadata"]["name"]), on_change=ignore, namespace=namespace)


def test_h18_a_paused_and_a_restarted_api_server_lose_nothing(
    real: kube.Api, namespace: str, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = kube.load(str(control_plane.admin_kubeconfig))  # what the test itself asks for may take its time
    monkeypatch.setattr(impatient._timeout, "_read", 2.0)
    monkeypatch.setattr(kube, "WATCH_READ_SLACK", 1.0)
    cache = cache_of(impatient, namespace)
    cache._watch_seconds = 2
    real.create(PVC, claim("before", namespace))
    cache.start()
    try:
        assert cache.synced.wait(DEADLINE)
        eventually(lambda: cache.healthy_since)
        control_plane.pause_apiserver()
        eventually(lambda: cache.last_error)
        control_plane.resume_apiserver()
        eventually(lambda: cache.healthy_since)
        real.create(PVC, claim("between", namespace))
        eventually(lambda: sorted(cache.items()) == ["before", "between"])
        control_plane.stop_apiserver(grace=0)
        eventually(lambda: cache.last_error)
        control_plane.start_apiserver()
        real.delete(PVC, "before", namespace=namespace)
        real.create(PVC, claim("after", namespace))
        eventually(lambda: sorted(cache.items()) == ["after", "between"])
    finally:
        control_plane.resume_apiserver()
        cache.stop(DEADLINE)
        impatient.close()
    assert not cache.is_alive()


def test_stopping_a_watch_over_tls_is_prompt(real: kube.Api, namespace: str) -> None:
    cache = cache_of(real, namespace)
    cache.start()
    eventually(lambda: cache.healthy_since)
    cache.stop(DEADLINE)  # the watch would go on for 290 seconds
    assert not cache.is_alive()


def test_h16_a_lease_that_was_deleted_ends_the_leadership(real: kube.Api, namespace: str) -> None:
    a = Candidate(real, "a", namespace=namespace)
    a.turn()
    assert a.said == ["led 1"]
    a.now += 2
    a.turn()
    assert a.elector.may_act(1)
    real.delete(LEASE, "test", namespace=namespace)
    a.turn()
    assert a.said == ["led 1", "lost"]
    a.now += 1
    a.turn()
    assert a.said == ["led 1", "lost"], "others may not know yet that it is gone"
    a.now += 15
    a.turn()
    assert a.said == ["led 1", "lost", "led 2"], "work begun in term 1 must not take itself for ours"


def test_leadership_passes_on_under_the_real_rules(real: kube.Api, namespace: str) -> None:
    a, b = (Candidate(real, name, namespace=namespace, clock=time.monotonic, **PATIENT) for name in ("a", "b"))
    a.elector.start()
    eventually(lambda: a.said == ["led 1"])
    b.elector.start()
    a.elector.stop(DEADLINE)
    eventually(lambda: b.said == ["led 2"])
    b.elector.stop(DEADLINE)
    assert (a.said, b.said) == (["led 1", "lost"], ["led 2", "lost"])
