"""The writer of PVs: what it did counts before the watch has brought it."""

from __future__ import annotations

from typing import Any, cast

from nfs_provisioner.kube.api import Api, NotFound
from nfs_provisioner.kube.reflector import Reflector
from nfs_provisioner.volumes.objects import Volume
from nfs_provisioner.volumes.pvs import VolumeWriter


class Server:
    def __init__(self) -> None:
        self.patches: list[Any] = []
        self.gone = False

    def patch(self, _resource: object, name: str, body: Any, *, kind: str) -> dict[str, Any]:
        if self.gone:
            raise NotFound(f"{kind} {name}")
        self.patches.append(body["metadata"])
        return {"metadata": {"name": name, "uid": body["metadata"]["uid"]}}


class Cache:
    def put(self, obj: object) -> None:
        pass


def volume(*, owned: bool) -> Volume:
    return Volume(
        name="pv", uid="uid", version="1", phase="Released", deleting=False, policy="Delete", provisioned_by="p",
        export="e", storage_class="c", capacity=1, server="s", path="/p", claim=None, owned=owned,
    )  # fmt: skip


def test_an_echo_of_the_deletion_does_not_take_the_finalizer_off_again() -> None:
    server = Server()
    writer = VolumeWriter(cast(Api, server), cast("Reflector[Volume]", Cache()), lambda: None)
    stale = volume(owned=True)
    writer.release(writer.as_left(stale))
    writer.release(writer.as_left(stale))
    assert len(server.patches) == 1
    assert writer.as_left(volume(owned=False)) == volume(owned=False)  # the watch has brought it
    writer.release(writer.as_left(stale))  # somebody put it on again since
    assert len(server.patches) == 2


def test_a_finalizer_that_was_put_on_again_counts() -> None:
    server = Server()
    writer = VolumeWriter(cast(Api, server), cast("Reflector[Volume]", Cache()), lambda: None)
    writer.release(volume(owned=True))
    writer.hold(volume(owned=False))
    assert writer.as_left(volume(owned=True)).owned


def test_what_was_refused_is_not_taken_for_done() -> None:
    server = Server()
    server.gone = True
    writer = VolumeWriter(cast(Api, server), cast("Reflector[Volume]", Cache()), lambda: None)
    writer.release(volume(owned=True))
    assert writer.as_left(volume(owned=True)).owned
