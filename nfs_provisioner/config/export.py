"""NFSExport objects.

Responsible for turning an NFSExport, from the API or from a file, into an ExportSpec. Must not look at servers, mounts
or status. Invariant: an ExportSpec that exists satisfies the rules of the CRD's schema (and its paths lie below the
controller's mount root): whoever holds one need not check again.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from nfs_provisioner.config.fields import (
    Fields,
    Place,
    Problems,
    absolute_path,
    check_kind,
    dns_label,
    flag,
    host,
    ip_address,
    is_at_or_below,
    object_name,
    path_below_root,
    same_host,
    string_map,
)
from nfs_provisioner.config.text import shown
from nfs_provisioner.config.units import parse_duration, parse_percent, parse_quantity, parse_share
from nfs_provisioner.errors import InvalidInput

EXPORT_KIND = "NFSExport"

# A label's value holds no more, and every PV carries the export's name as one.
_LONGEST_EXPORT_NAME = 63
OVERCOMMIT_PATTERN = r"^[0-9]{1,4}(\.[0-9]{1,4})?$"
_overcommit_text = re.compile(OVERCOMMIT_PATTERN.strip("^$"))


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One server's exported directory: `server:path` to clients, `mount_path` to this process."""

    name: str
    server: str
    path: str
    mount_path: str


@dataclass(frozen=True, slots=True)
class ServiceRef:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """What must stay really free: a share of the capacity, or a number of bytes."""

    share: Fraction = Fraction(0)
    size: int = 0

    def bytes_of(self, capacity: int) -> int:
        """Bytes to keep free on a file system of `capacity` bytes."""
        return self.size + -(-capacity * self.share.numerator // self.share.denominator)


@dataclass(frozen=True, slots=True)
class ReplicationSpec:
    """Times in seconds; `delete_limit` is a share of a volume's entries (0.2 is 20 %)."""

    interval: float = 30.0
    max_lag: float = 300.0
    delete_limit: float = 0.2
    trash_retention: float = 86400.0


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """An NFSExport. `capacity` None: the size of the active replica's file system."""

    name: str
    replicas: tuple[ReplicaSpec, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    generation: int = 0
    uid: str = ""
    service: ServiceRef | None = None
    address: str | None = None
    capacity: int | None = None
    overcommit: Fraction = Fraction(1)
    reserve: Reserve = Reserve(share=Fraction(5, 100))
    replication: ReplicationSpec = field(default_factory=ReplicationSpec)
    failover_recycle_pods: bool = False

    @property
    def is_mirror(self) -> bool:
        """Two replicas and no address that could move: clients name one server for ever, so nothing can switch."""
        return len(self.replicas) == 2 and self.service is None and self.address is None

    def replica(self, name: str) -> ReplicaSpec | None:
        """The replica of that name, if there is one."""
        return next((replica for replica in self.replicas if replica.name == name), None)

    def other(self, name: str) -> ReplicaSpec | None:
        """The partner of the replica of that name, if there are two."""
        return next((replica for replica in self.replicas if replica.name != name), None)


def parse_export(obj: Mapping[str, object], *, mount_root: str, source: str = "") -> ExportSpec:
    """The export that an NFSExport object describes. Raises InvalidInput with everything wrong in it."""
    metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return read_export(obj, Place(source or f"{EXPORT_KIND} {name}"), mount_root=mount_root)


def read_export(obj: object, place: Place, *, mount_root: str) -> ExportSpec:
    """As parse_export; `place` says where the object stands, with lines when it came from a file."""
    problems = Problems()
    fields = Fields(obj, place, problems)
    check_kind(fields, EXPORT_KIND, demanded=bool(place.lines))
    metadata = fields.section("metadata")
    fields.ignore("status")
    spec = fields.section("spec")
    replicas = _replicas(spec)
    replication = spec.section("replication")
    failover = spec.section("failover")
    export = ExportSpec(
        name=metadata.required("name", object_name(_LONGEST_EXPORT_NAME), "the export's name"),
        labels=metadata.optional("labels", string_map, {}),
        generation=metadata.optional("generation", _generation, 0),
        uid=metadata.optional("uid", str, ""),
        replicas=replicas,
        service=_service(spec),
        address=spec.optional("address", host, None),
        capacity=spec.optional("capacity", _positive_quantity, None),
        overcommit=spec.optional("overcommit", _overcommit, Fraction(1)),
        reserve=spec.optional("reserve", _reserve, Reserve(share=Fraction(5, 100))),
        replication=_replication(replication),
        failover_recycle_pods=failover.optional("recyclePods", flag, False),
    )
    for section in (failover, spec, fields):
        section.finish()
    _check_addresses(export, spec)
    _check_pair(export, spec)
    _check_mount_root(export, spec, mount_root)
    problems.settle()
    return export


def _replicas(spec: Fields) -> tuple[ReplicaSpec, ...]:
    items = spec.items("replicas")
    if not 1 <= len(items) <= 2:
        spec.problems.abort(spec.place.at("replicas"), f"there are {len(items)} replicas; write one or two")
    replicas = []
    for item, place in items:
        fields = Fields(item, place, spec.problems)
        replicas.append(
            ReplicaSpec(
                name=fields.required("name", dns_label, "a name for the replica, such as a"),
                server=fields.required("server", host, "the NFS server that clients mount"),
                path=fields.required("path", absolute_path, "the directory that the server exports"),
                mount_path=fields.required("mountPath", path_below_root, "where the controller reaches the directory"),
            )
        )
        fields.finish()
    return tuple(replicas)


def _service(spec: Fields) -> ServiceRef | None:
    if spec.raw("service") is None:
        return None
    fields = spec.section("service")
    service = ServiceRef(
        namespace=fields.required("namespace", dns_label, "the namespace of the Service"),
        name=fields.required("name", dns_label, "the name of the Service"),
    )
    fields.finish()
    return service


def _replication(fields: Fields) -> ReplicationSpec:
    spec = ReplicationSpec(
        interval=fields.optional("interval", _positive_duration, 30.0),
        max_lag=fields.optional("maxLag", _positive_duration, 300.0),
        delete_limit=fields.optional("deleteLimit", parse_percent, 0.2),
        trash_retention=fields.optional("trashRetention", parse_duration, 86400.0),
    )
    fields.finish()
    if spec.max_lag < spec.interval:
        fields.problems.add(
            fields.place.at("maxLag"),
            f"{spec.max_lag:g}s is shorter than interval ({spec.interval:g}s): the standby would always be too old; "
            "write a longer one",
        )
    return spec


def _check_addresses(export: ExportSpec, spec: Fields) -> None:
    if export.service and export.address:
        message = f"{shown(export.address)} stands beside service; write one of them: PVs can name only one server"
        spec.problems.add(spec.place.at("address"), message)
    if export.service is None:
        return
    families = set()
    for index, replica in enumerate(export.replicas):
        place = spec.place.at("replicas").at(index).at("server")
        try:
            address = ipaddress.ip_address(ip_address(replica.server))
        except InvalidInput as error:
            spec.problems.add(place, f"{error.message} (with service, the address goes into an EndpointSlice)")
            continue
        families.add(address.version)
        if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
            message = (
                f"{shown(replica.server)} cannot be reached from other machines; an EndpointSlice must not name it"
            )
            spec.problems.add(place, message)
    if len(families) > 1:
        message = "one server is IPv4 and the other IPv6; an EndpointSlice holds one kind: write addresses of the same"
        spec.problems.add(spec.place.at("replicas").at(1).at("server"), message)


def _check_pair(export: ExportSpec, spec: Fields) -> None:
    if len(export.replicas) != 2:
        return
    one, two = export.replicas
    place = spec.place.at("replicas").at(1)
    if one.name == two.name:
        spec.problems.add(place.at("name"), f"{shown(two.name)} is the first replica's name too; write another")
    if (export.service or export.address) and one.path != two.path:
        spec.problems.add(
            place.at("path"),
            f"{shown(two.path)} differs from the first replica's {shown(one.path)}: with service or address, clients "
            "keep the path when the server changes; export both under the same path",
        )
    if same_host(one.server, two.server) and _overlap(one.path, two.path):
        spec.problems.add(
            place.at("path"),
            f"{shown(two.path)} on {two.server} is, contains or lies in the first replica's directory; "
            "a pair needs two separate directories",
        )
    if _overlap(one.mount_path, two.mount_path):
        spec.problems.add(
            place.at("mountPath"),
            f"{shown(two.mount_path)} is, contains or lies in the first replica's {shown(one.mount_path)}; "
            "write separate ones",
        )


def _overlap(one: str, two: str) -> bool:
    return is_at_or_below(one, two) or is_at_or_below(two, one)


def _check_mount_root(export: ExportSpec, spec: Fields, mount_root: str) -> None:
    for index, replica in enumerate(export.replicas):
        if replica.mount_path == mount_root or not is_at_or_below(replica.mount_path, mount_root):
            place = spec.place.at("replicas").at(index).at("mountPath")
            example = f"{mount_root.rstrip('/')}/{export.name}/{replica.name}"
            message = f"{shown(replica.mount_path)} is not below mountRoot ({mount_root}); write {example}, for example"
            spec.problems.add(place, message)


def _generation(value: object) -> int:
    return value if isinstance(value, int) else 0


def _positive_duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise InvalidInput(f"{shown(value)} is no time at all; write a longer one, such as 30s")
    return seconds


def _quantity(value: object) -> int:
    if isinstance(value, int):  # the schema of the API has texts here, and nothing else
        raise InvalidInput(f'{shown(value)} is a number; write it in quotes, such as "500Gi"')
    return parse_quantity(value)


def _positive_quantity(value: object) -> int:
    size = _quantity(value)
    if size <= 0:
        raise InvalidInput(
            f"{shown(value)} leaves no room; write a size, or leave the key out to use the file system's"
        )
    return size


def _overcommit(value: object) -> Fraction:
    if not isinstance(value, str) or not _overcommit_text.fullmatch(value) or not Fraction(value):
        raise InvalidInput(f'{shown(value)} is not a factor; write a number above zero in quotes, such as "1.5"')
    return Fraction(value)


def _reserve(value: object) -> Reserve:
    if isinstance(value, str) and value.endswith("%"):
        return Reserve(share=parse_share(value))
    return Reserve(size=_quantity(value))
