"""Namespaces that end: nothing new gets in, and what is inside goes first."""

from __future__ import annotations

from tests.contract.world import NAMESPACES, World, phase


def test_a_namespace_is_labelled_with_its_name(world: World) -> None:
    namespace = world.api.get(f"{NAMESPACES}/{world.namespace}").ok()
    assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": world.namespace}
    assert namespace["status"]["phase"] == "Active"


def test_namespace_names_have_no_dots(world: World) -> None:
    world.api.post(NAMESPACES, {"metadata": {"name": "a.b"}}).refused(422, "Invalid", "must not contain dots")


def test_the_first_namespaces_stay(world: World) -> None:
    for name in ("default", "kube-system", "kube-public"):
        world.api.delete(f"{NAMESPACES}/{name}").refused(403, "Forbidden", "this namespace may not be deleted")


def test_a_terminating_namespace_waits_for_what_is_held_inside(world: World) -> None:
    world.claim("held", "none", metadata={"finalizers": ["example.com/x"]})
    world.bound("free", world.storage_class())
    path = f"{NAMESPACES}/{world.namespace}"
    deleted = world.api.delete(path).ok()
    assert deleted["status"]["phase"] == "Terminating"
    status = world.api.post(world.claims, world.claim_body("late", "none")).refused(
        403, "Forbidden", "because it is being terminated"
    )
    assert status["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    involved = {"kind": "PersistentVolumeClaim", "namespace": world.namespace, "name": "held"}
    events = f"{path}/events"
    body = {"metadata": {"name": "e"}, "involvedObject": involved}
    world.api.post(events, body).refused(403, "Forbidden")
    world.api.eventually_gone(world.claim_path("free"))
    world.api.eventually(world.claim_path("held"), lambda claim: "deletionTimestamp" in claim["metadata"])
    assert world.api.get(path).ok()["metadata"]["deletionTimestamp"]
    world.api.patch(world.claim_path("held"), {"metadata": {"finalizers": None}}).ok()
    world.api.eventually_gone(path)
    # The volume is not the namespace's. (Another controller releases it, and may do so later.)
    world.api.eventually(world.volume_path("free"), phase("Released"))
