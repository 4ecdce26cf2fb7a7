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
        return {"metadata": {"name": name, "uid": body["metadata"]["uid"], "resourceVersion": "2"}}


class Cache:
    def put(self, obj: object) -> None:
        pass


def volume(*, owned: bool, version: str = "1") -> Volume:
    return Volume(
        name="pv", uid="uid", version=version, phase="Released", deleting=False, policy="Delete", provisioned_by="p",
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


def test_a_finalizer_that_somebody_put_back_counts_though_the_watch_never_showed_it_gone() -> None:
    writer = VolumeWriter(cast(Api, Server()), cast("Reflector[Volume]", Cache()), lambda: None)
    writer.release(volume(owned=True))
    assert not writer.as_left(volume(owned=True, version="2")).owned
    assert writer.as_left(volume(owned=True, version="3")).owned


def test_a_watch_that_is_faster_than_the_answer_is_believed() -> None:
    server = Server()
    writer = VolumeWriter(cast(Api, server), cast("Reflector[Volume]", Cache()), lambda: None)

    class Faster(Server):
        def patch(self, _resource: object, name: str, body: Any, *, kind: str) -> dict[str, Any]:
            writer.went(volume(owned=False))
            return super().patch(_resource, name, body, kind=kind)

    writer._api = cast(Api, Faster())
    writer.release(volume(owned=True))
    assert writer._let_go == {}


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
