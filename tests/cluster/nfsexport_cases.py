"""NFSExports, good ones and nonsense, for whoever has to accept or refuse them.

Data alone: no cluster, no test. Each case is a good object and one change to it, so that a refusal has one cause.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Change = Callable[[Json], object]


def single(name: str = "good") -> Json:
    return {
        "apiVersion": "nfs-provisioner.io/v1alpha1",
        "kind": "NFSExport",
        "metadata": {"name": name},
        "spec": {
            "replicas": [{"name": "a", "server": "10.0.0.11", "path": "/srv/nfs", "mountPath": f"/exports/{name}/a"}]
        },
    }


def pair(name: str = "good") -> Json:
    export = single(name)
    export["spec"]["replicas"].append(
        {"name": "b", "server": "10.0.0.12", "path": "/srv/nfs", "mountPath": f"/exports/{name}/b"}
    )
    export["spec"]["service"] = {"namespace": "storage", "name": "web-nfs"}
    return export


def changed(base: Json, change: Change) -> Json:
    export = copy.deepcopy(base)
    change(export)
    return export


def put(*keys: str | int, to: object) -> Change:
    """Sets spec.KEYS to a value."""

    def change(export: Json) -> None:
        at: Any = export["spec"]
        for key in keys[:-1]:
            at = at.setdefault(key, {}) if isinstance(at, dict) else at[key]
        at[keys[-1]] = to

    return change


def both(*changes: Change) -> Change:
    def change(export: Json) -> None:
        for each in changes:
            each(export)

    return change


def drop(*keys: str | int) -> Change:
    def change(export: Json) -> None:
        at: Any = export["spec"]
        for key in keys[:-1]:
            at = at[key]
        del at[keys[-1]]

    return change


def add_third(export: Json) -> None:
    third = {"name": "c", "server": "10.0.0.13", "path": "/srv/nfs", "mountPath": "/exports/good/c"}
    export["spec"]["replicas"].append(third)


def rename(to: str) -> Change:
    return lambda export: export["metadata"].update(name=to)


PATH = "must be an absolute path"
DURATION = "must be a duration"
PERCENT = "must be a percentage from 0% to 100%"

# What is refused: a good object, one change, and what the API server must say about it.
NONSENSE: dict[str, tuple[Json, Change, str]] = {
    "no replica": (single(), put("replicas", to=[]), "should have at least 1 items"),
    "replicas missing": (single(), drop("replicas"), "spec.replicas: Required value"),
    "three replicas": (pair(), add_third, "Too many: 3: must have at most 2 items"),
    "two of one name": (pair(), put("replicas", 1, "name", to="a"), r'Duplicate value: .*"name":"a"'),
    "an uppercase replica name": (pair(), put("replicas", 0, "name", to="A"), "must be lower case letters, digits"),
    "an object name of 64 characters": (pair(), rename("x" * 64), "it may have 63 characters at most"),
    "a relative path": (single(), put("replicas", 0, "path", to="srv/nfs"), PATH),
    "a path with ..": (single(), put("replicas", 0, "path", to="/srv/../nfs"), PATH),
    "a path with .": (single(), put("replicas", 0, "path", to="/srv/./nfs"), PATH),
    "a path ending in ..": (single(), put("replicas", 0, "path", to="/srv/.."), PATH),
    "a path with a trailing slash": (single(), put("replicas", 0, "path", to="/srv/nfs/"), PATH),
    "a path with //": (single(), put("replicas", 0, "path", to="/srv//nfs"), PATH),
    "a path with a newline": (single(), put("replicas", 0, "path", to="/srv/n\nfs"), PATH),
    "an empty path": (single(), put("replicas", 0, "path", to=""), "should be at least 1 chars long"),
    "no path": (single(), drop("replicas", 0, "path"), r"spec.replicas\[0\].path: Required value"),
    "a relative mountPath": (single(), put("replicas", 0, "mountPath", to="exports"), PATH),
    "the root as mountPath": (single(), put("replicas", 0, "mountPath", to="/"), PATH),
    "a mountPath with ..": (single(), put("replicas", 0, "mountPath", to="/exports/../etc"), PATH),
    "one mountPath for two": (
        pair(),
        put("replicas", 1, "mountPath", to="/exports/good/a"),
        "neither inside the other",
    ),
    "a mountPath in the other": (
        pair(),
        put("replicas", 1, "mountPath", to="/exports/good/a/b"),
        "neither inside the other",
    ),
    "one directory twice": (pair(), put("replicas", 1, "server", to="10.0.0.11"), "same directory of one server"),
    "a directory inside the other": (
        changed(pair(), both(drop("service"), put("replicas", 1, "path", to="/srv/nfs/b"))),
        put("replicas", 1, "server", to="10.0.0.11"),
        "one is inside the other",
    ),
    "a server with a path": (
        single(),
        put("replicas", 0, "server", to="10.0.0.11:/srv"),
        "an IP address or a host name",
    ),
    "a server that is half an address": (
        single(),
        put("replicas", 0, "server", to="10.0.0"),
        "an IP address or a host",
    ),
    "no server": (single(), put("replicas", 0, "server", to=""), "should be at least 1 chars long"),
    "unequal paths with service": (pair(), put("replicas", 1, "path", to="/srv/b"), "replicas' paths must be equal"),
    "unequal paths with address": (
        changed(pair(), both(drop("service"), put("address", to="nfs.example.net"))),
        put("replicas", 1, "path", to="/srv/b"),
        "replicas' paths must be equal",
    ),
    "a host name with service": (
        pair(),
        put("replicas", 0, "server", to="nfs.example.net"),
        "with service, each server must be an IP address",
    ),
    "service and address": (pair(), put("address", to="nfs.example.net"), "either service or address, not both"),
    "a service without name": (pair(), drop("service", "name"), "spec.service.name: Required value"),
    "an uppercase service": (pair(), put("service", "name", to="Web"), "spec.service.name in body should match"),
    "a bad address": (single(), put("address", to="nfs.example.net/srv"), "an IP address or a host name"),
    "a negative duration": (pair(), put("replication", "maxLag", to="-5m"), DURATION),
    "a duration with a space": (pair(), put("replication", "maxLag", to="5 m"), DURATION),
    "a duration in words": (pair(), put("replication", "interval", to="5 minutes"), DURATION),
    "a duration without unit": (pair(), put("replication", "trashRetention", to="24"), DURATION),
    "no duration at all": (pair(), put("replication", "interval", to="0s"), "duration greater than 0"),
    "a duration of an overlong number": (pair(), put("replication", "interval", to="9" * 99 + "s"), "Too long"),
    "120%": (pair(), put("replication", "deleteLimit", to="120%"), PERCENT),
    "a negative percentage": (pair(), put("replication", "deleteLimit", to="-5%"), PERCENT),
    "a number for a percentage": (pair(), put("replication", "deleteLimit", to="0.2"), PERCENT),
    "a reserve of 101%": (single(), put("reserve", to="101%"), PERCENT),
    "a reserve in words": (single(), put("reserve", to="much"), PERCENT),
    "a negative reserve": (single(), put("reserve", to="-1Gi"), PERCENT),
    "an overcommit of zero": (single(), put("overcommit", to="0.0"), "must be a number greater than 0"),
    "a negative overcommit": (single(), put("overcommit", to="-1"), "must be a number greater than 0"),
    "an unquoted overcommit": (single(), put("overcommit", to=1.5), "must be of type string"),
    "a capacity in words": (single(), put("capacity", to="lots"), "must be a size such as 500Gi"),
    "no capacity": (single(), put("capacity", to="0"), "must be a size such as 500Gi"),
    "a misspelt field": (single(), put("overcomit", to="1.5"), 'unknown field "spec.overcomit"'),
    "a misspelt field in a replica": (
        single(),
        put("replicas", 0, "mountpath", to="/exports/x"),
        r'unknown field "spec.replicas\[0\].mountpath"',
    ),
    "yes for true": (single(), put("failover", "recyclePods", to="yes"), "must be of type boolean"),
}

# What only the API server refuses, because a file alone does not show it or it does no harm to the controller.
REFUSED_BY_THE_SERVER_ALONE: dict[str, tuple[Json, Change, str]] = {
    "an uppercase object name": (single(), rename("Web"), "a lowercase RFC 1123 subdomain"),
    "a loopback address with service": (
        pair(),
        put("replicas", 0, "server", to="127.0.0.1"),
        "other machines can reach",
    ),
    "a link-local one with service": (
        pair(),
        put("replicas", 0, "server", to="169.254.1.1"),
        "other machines can reach",
    ),
    "IPv4 and IPv6 with service": (pair(), put("replicas", 1, "server", to="fd00::1"), "both IPv6"),
    "a maxLag below the interval": (pair(), put("replication", "maxLag", to="10s"), "not be shorter than interval"),
}


GOOD: dict[str, Change] = {
    "as it is": both(),
    "a name of 63 characters": rename("x" * 63),
    "a name with dots": rename("web.example"),
    "the root of an NFSv4 server": both(put("replicas", 0, "path", to="/"), put("replicas", 1, "path", to="/")),
    "hidden directories and three dots": both(
        put("replicas", 0, "path", to="/.nfs/..a/...  b"), put("replicas", 1, "path", to="/.nfs/..a/...  b")
    ),
    "a mirror of unequal paths": both(drop("service"), put("replicas", 1, "path", to="/data")),
    "host names with address": both(
        drop("service"), put("address", to="nfs.example.net"), put("replicas", 0, "server", to="nfs-1.example.net")
    ),
    "two directories of one server": both(
        drop("service"), put("replicas", 1, "server", to="10.0.0.11"), put("replicas", 1, "path", to="/srv/nfs2")
    ),
    "one replica with service": drop("replicas", 1),
    "IPv6": both(put("replicas", 0, "server", to="fd00::1"), put("replicas", 1, "server", to="fd00::2")),
    "neighbouring mountPaths": put("replicas", 1, "mountPath", to="/exports/good/ab"),
    "other times and parts": both(
        put("replication", to={"interval": "1.5s", "maxLag": "1h30m", "deleteLimit": "0.5%", "trashRetention": "7d"}),
        put("reserve", to="50Gi"),
        put("overcommit", to="2.25"),
        put("capacity", to="1.5Ti"),
    ),
    "no trash": put("replication", "trashRetention", to="0s"),
}
