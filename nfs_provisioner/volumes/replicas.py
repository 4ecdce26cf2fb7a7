"""The replicas of one export: kept attached one by one, let go of together, and what was heard of them so far.

Decides nothing about identity and holds no catalog: `exports.py` does. Invariant: after `close` no child of theirs is
started any more. Not thread-safe but for `all`, `get` and `close`: its owner's lock is around the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nfs_provisioner.config import ExportSpec
from nfs_provisioner.export.attachment import NOT_LOOKED_AT, Attachment, Loaded
from nfs_provisioner.export.replica import Replica
from nfs_provisioner.volumes.services import Services
from nfs_provisioner.volumes.status import ReplicaStatus


class Replicas:
    """By name. `on_change` and `on_space` are called from an attachment's thread."""

    def __init__(
        self,
        export: str,
        services: Services,
        on_change: Callable[[Attachment, Loaded | None], None],
        on_space: Callable[[Attachment], None],
    ) -> None:
        self._export = export
        self._services = services
        self._on_change = on_change
        self._on_space = on_space
        self._attachments: dict[str, Attachment] = {}
        self._looked_at: set[str] = set()  # of which it is known what they are good for
        self._reachable: dict[str, bool] = {}

    def begin(self, spec: ExportSpec) -> None:
        """Look at those of `spec`."""
        for replica in spec.replicas:
            handle = Replica(
                replica.name,
                replica.mount_path,
                self._services.lease,
                observe=lambda _operation, seconds, name=replica.name: self._services.observe(  # type: ignore[misc]
                    self._export, name, seconds
                ),
                command=self._services.worker_command,
            )
            made = Attachment(
                handle, self._services.term, self._on_change, poll=self._services.poll, on_space=self._on_space
            )
            self._attachments[replica.name] = made
            made.start()

    def let_go(self) -> None:
        """End all; `begin` may follow."""
        before = self.all()
        self._attachments.clear()
        _close(before)
        _stop(before)

    def close(self) -> None:
        """End every child, and wait for none."""
        _close(self.all())

    def stop(self) -> None:
        """End every child and thread; a child that hangs is waited for a second, counted from `close`."""
        self.close()
        _stop(self.all())

    def all(self) -> list[Attachment]:
        """A snapshot."""
        return list(self._attachments.values())

    def get(self, name: str) -> Attachment | None:
        """The replica of that name, if it is looked at."""
        return self._attachments.get(name)

    def note(self, changed: Attachment, loaded: Loaded | None, attach: Mapping[str, object]) -> None:
        """Something was heard of `changed`; `attach` are those that may be used.

        Of one that is to be attached, nothing is known before that was tried; and none is left out for good, nor one
        that failed, before all were seen.
        """
        if loaded is not None:
            self._looked_at.add(changed.name)
        views = [attachment.view() for attachment in self.all()]
        if not any(view.facts is None and view.message == NOT_LOOKED_AT for view in views):
            self._looked_at.update(view.name for view in views if view.name not in attach)

    def looked_at(self, spec: ExportSpec) -> bool:
        """Whether each of `spec` was attached, failed or was left out, once at least."""
        return all(replica.name in self._looked_at for replica in spec.replicas)

    def status(self, spec: ExportSpec, active: str, problems: Mapping[str, str]) -> list[ReplicaStatus]:
        """Each of `spec`, as people see it."""
        return [self._status(replica.name, active, problems.get(replica.name, "")) for replica in spec.replicas]

    def _status(self, name: str, active: str, problem: str) -> ReplicaStatus:
        role = "active" if name == active else "standby"
        attachment = self._attachments.get(name)
        if attachment is None:
            return ReplicaStatus(name, role, False, "it is not looked at")
        message, abilities = problem or attachment.message, attachment.abilities
        if not message and abilities is not None and abilities.root and not abilities.chown:
            message = "root is squashed: owners cannot be set here; export it with no_root_squash"
        return ReplicaStatus(name, role, attachment.view().facts is not None, message)

    def tell_reachable(self, attachment: Attachment) -> None:
        """An Event when a replica went away or came back."""
        up = attachment.view().facts is not None
        before = self._reachable.get(attachment.name)
        if up and before is False and attachment.attached is None:
            return  # it answers; whether it can be used shows in a moment
        self._reachable[attachment.name] = up
        if before is not False and not up:
            message = f"replica {attachment.name}: {attachment.message}"
            self._services.on_event(self._export, "ReplicaUnreachable", message, True)
        elif before is False and up:
            message = f"replica {attachment.name} answers again"
            self._services.on_event(self._export, "ReplicaReachable", message, False)


def _close(attachments: list[Attachment]) -> None:
    for attachment in attachments:
        attachment.replica.close()


def _stop(attachments: list[Attachment]) -> None:
    for attachment in attachments:
        attachment.stop()
