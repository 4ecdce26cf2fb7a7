"""The controller's own configuration file.

Responsible for the settings of the process: which provisioner it is, how many workers, leader election, HTTP, log,
where replicas are mounted, which commands fence. Must not read anything but the file it is given. Invariant: a
ControllerConfig that exists is consistent (a lease can be renewed before it expires, paths are clean).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nfs_provisioner.config.documents import read_documents, read_text
from nfs_provisioner.config.fields import (
    Fields,
    Place,
    Problems,
    check_kind,
    choice,
    dns_label,
    flag,
    ip_address,
    number,
    object_name,
    path_below_root,
    provisioner_name,
    text,
)
from nfs_provisioner.config.text import shown
from nfs_provisioner.config.units import parse_duration
from nfs_provisioner.errors import InvalidInput

CONFIG_KIND = "ProvisionerConfig"
DEFAULT_PROVISIONER = "nfs-provisioner.io/nfs"
DEFAULT_MOUNT_ROOT = "/exports"

# client-go's jitter factor: the wait between two tries is up to this many retry periods.
_JITTER = 1.2


@dataclass(frozen=True, slots=True)
class LeaderElectionConfig:
    """Times in seconds. The defaults are client-go's; `namespace` None means the namespace the process runs in."""

    enabled: bool = True
    namespace: str | None = None
    lease_duration: float = 15.0
    renew_deadline: float = 10.0
    retry_period: float = 2.0


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Where metrics, health and status are served. Port 0 takes any free port."""

    bind: str = "0.0.0.0"
    port: int = 8080


@dataclass(frozen=True, slots=True)
class LogConfig:
    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """The whole file; the contract explains each key under "Controller configuration"."""

    provisioner: str = DEFAULT_PROVISIONER
    adopt_from: tuple[str, ...] = ()
    workers: int = 8
    leader_election: LeaderElectionConfig = field(default_factory=LeaderElectionConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    log: LogConfig = field(default_factory=LogConfig)
    mount_root: str = DEFAULT_MOUNT_ROOT
    fence_commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def load_controller_config(path: str | Path) -> ControllerConfig:
    """The settings in the file at `path`. Raises InvalidInput with file, line and key of everything wrong in it."""
    return parse_controller_config(read_text(path), str(path))


def parse_controller_config(content: str, source: str) -> ControllerConfig:
    """As load_controller_config, from text; `source` is what messages call the file."""
    documents = list(read_documents(content, source))
    if len(documents) != 1:
        place = source if not documents else f"{source}:{documents[1].line}"
        raise InvalidInput(f"{place}: holds {len(documents)} YAML documents; a configuration file holds exactly one")
    value, lines = documents[0].build()
    return read_controller_config(value, Place(source, lines))


def read_controller_config(value: object, place: Place) -> ControllerConfig:
    """The settings in a document that was read already."""
    problems = Problems()
    fields = Fields(value, place, problems)
    check_kind(fields, CONFIG_KIND, demanded=True)
    provisioner = fields.optional("provisioner", provisioner_name, DEFAULT_PROVISIONER)
    config = ControllerConfig(
        provisioner=provisioner,
        adopt_from=_adopt_from(fields, provisioner),
        workers=fields.optional("workers", number(1, 64), 8),
        leader_election=_leader_election(fields.section("leaderElection")),
        http=_http(fields.section("http")),
        log=_log(fields.section("log")),
        mount_root=fields.optional("mountRoot", path_below_root, DEFAULT_MOUNT_ROOT),
        fence_commands=_fence_commands(fields.section("fenceCommands")),
    )
    fields.finish()
    problems.settle()
    return config


def _adopt_from(fields: Fields, provisioner: str) -> tuple[str, ...]:
    names = fields.each("adoptFrom", provisioner_name)
    if provisioner in names:
        message = f"{shown(provisioner)} is this provisioner itself; name others only"
        fields.problems.add(fields.place.at("adoptFrom"), message)
    return tuple(names)


def _leader_election(fields: Fields) -> LeaderElectionConfig:
    problems_before = len(fields.problems)
    config = LeaderElectionConfig(
        enabled=fields.optional("enabled", flag, True),
        namespace=fields.optional("namespace", dns_label, None),
        lease_duration=fields.optional("leaseDuration", _whole_seconds, 15.0),
        renew_deadline=fields.optional("renewDeadline", parse_duration, 10.0),
        retry_period=fields.optional("retryPeriod", parse_duration, 2.0),
    )
    fields.finish()
    if len(fields.problems) > problems_before:
        return config
    if config.retry_period <= 0:
        fields.problems.add(
            fields.place.at("retryPeriod"), "0s would try without pause; write a longer one, such as 2s"
        )
    if not config.lease_duration > config.renew_deadline:
        fields.problems.add(
            fields.place.at("renewDeadline"),
            f"{config.renew_deadline:g}s is not below leaseDuration ({config.lease_duration:g}s): the lease could pass "
            "to another controller while this one still acts; write a shorter one",
        )
    if not config.renew_deadline > config.retry_period * _JITTER:
        fields.problems.add(
            fields.place.at("retryPeriod"),
            f"{config.retry_period:g}s leaves no second try before renewDeadline ({config.renew_deadline:g}s); write "
            f"less than {config.renew_deadline / _JITTER:.3g}s",
        )
    return config


def _whole_seconds(value: object) -> float:
    seconds = parse_duration(value)
    if seconds < 1 or seconds != int(seconds):
        raise InvalidInput(f"{shown(value)} does not fit in a Lease, which holds whole seconds; write 15s, for example")
    return seconds


def _http(fields: Fields) -> HttpConfig:
    config = HttpConfig(
        bind=fields.optional("bind", ip_address, "0.0.0.0"),
        port=fields.optional("port", number(0, 65535), 8080),
    )
    fields.finish()
    return config


def _log(fields: Fields) -> LogConfig:
    config = LogConfig(
        format=fields.optional("format", choice("text", "json"), "text"),
        level=fields.optional("level", choice("debug", "info", "warning", "error"), "info"),
    )
    fields.finish()
    return config


def _fence_commands(fields: Fields) -> dict[str, tuple[str, ...]]:
    commands: dict[str, tuple[str, ...]] = {}
    for name, argv, place in fields.entries():
        try:
            commands[object_name(63)(name)] = _argv(argv)
        except InvalidInput as error:
            fields.problems.add(place, error.message)
    return commands


def _argv(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{shown(value)} is not a command; write a list: the program, then each argument")
    return tuple(text(word) for word in value)
