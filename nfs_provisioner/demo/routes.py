"""From a request's path to an operation: the REST paths of the Kubernetes API. Holds no rule about objects."""

from __future__ import annotations

import base64
import binascii
import json
import random
from dataclasses import dataclass
from typing import Any

from nfs_provisioner.demo import faults
from nfs_provisioner.demo.faults import Json, StatusError
from nfs_provisioner.demo.http import Answer, Request, Response, Stream
from nfs_provisioner.demo.proxy import ServiceProxy
from nfs_provisioner.demo.registry import Registry
from nfs_provisioner.demo.resources import PODS, Catalogue, Resource
from nfs_provisioner.demo.selectors import Predicate, predicate
from nfs_provisioner.demo.store import Entry, Key, Store, dump
from nfs_provisioner.demo.watch import WatchRequest, WatchSession

_VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.0+embedded", "platform": "linux/amd64"}
_NO_SUCH_GROUP = Response(404, b"404 page not found\n", "text/plain; charset=utf-8")
_TRUE = ("1", "true", "True")


@dataclass(frozen=True, slots=True)
class _Target:
    resource: Resource
    namespace: str
    name: str
    subresource: str

    @property
    def key(self) -> Key:
        return self.namespace, self.name


class Router:
    """Answers every request of the embedded API server."""

    def __init__(self, store: Store, catalogue: Catalogue, registry: Registry, bookmark_interval: float) -> None:
        self._store = store
        self._catalogue = catalogue
        self._registry = registry
        self._interval = bookmark_interval
        self._proxy = ServiceProxy(store)
        self.token: str | None = None
        self.gone_as_status = False  # answer a watch from forgotten history with HTTP 410 instead of an ERROR event

    def __call__(self, request: Request) -> Answer:
        try:
            if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
                raise faults.unauthorized()
            return self._dispatch(request)
        except StatusError as fault:
            return Response(fault.code, dump(fault.status()))

    def _dispatch(self, request: Request) -> Answer:
        path = request.path.rstrip("/") or "/"
        if path in ("/healthz", "/readyz", "/livez"):
            return Response(200, b"ok", "text/plain; charset=utf-8")
        if path == "/version":
            return _json(200, _VERSION)
        parts = path.strip("/").split("/")
        if (
            path in ("/api", "/apis")
            or (parts[0] == "api" and len(parts) == 2)
            or (parts[0] == "apis" and len(parts) <= 3)
        ):
            body = self._catalogue.discovery(path)
            return _json(200, body) if body is not None else _NO_SUCH_GROUP
        if parts[0] == "api":
            return self._resource_request(request, "", parts[1], parts[2:])
        if parts[0] == "apis":
            return self._resource_request(request, parts[1], parts[2], parts[3:])
        raise faults.no_such_path()

    def _resource_request(self, request: Request, group: str, version: str, rest: list[str]) -> Answer:
        if not any((served.group, served.version) == (group, version) for served in self._catalogue.all()):
            return _NO_SUCH_GROUP
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        if rest[0] == "services" and rest[2:3] == ["proxy"]:
            return self._proxy.forward(namespace, rest[1], "/" + "/".join(rest[3:]), request)
        resource = self._catalogue.find(group, version, rest[0])
        if resource is None or len(rest) > 3 or (namespace and not resource.namespaced):
            raise faults.no_such_path()
        target = _Target(resource, namespace, rest[1] if len(rest) > 1 else "", rest[2] if len(rest) > 2 else "")
        if resource.namespaced and not namespace and (target.name or request.method == "POST"):
            raise faults.no_such_path() if target.name else faults.method_not_allowed()
        if target.subresource:
            return self._subresource(request, target)
        return self._object(request, target) if target.name else self._collection(request, target)

    # -- one object

    def _object(self, request: Request, target: _Target) -> Answer:
        resource, key = target.resource, target.key
        dry = "dryRun" in request.query
        match request.method:
            case "GET":
                return _entry(200, resource, self._registry.read(resource, key))
            case "PUT":
                existed = self._store.get(resource, key) is not None
                entry = self._registry.update(resource, key, _object_body(request), dry_run=dry)
                return _entry(200 if existed else 201, resource, entry)
            case "PATCH":
                media_type = _media_type(request)
                return _entry(
                    200, resource, self._registry.patch(resource, key, media_type, _body(request), dry_run=dry)
                )
            case "DELETE":
                entry, gone = self._registry.delete(resource, key, _delete_options(request), dry)
                return _deleted(resource, key[1], entry, gone)
        raise faults.method_not_allowed()

    def _subresource(self, request: Request, target: _Target) -> Answer:
        resource, key = target.resource, target.key
        dry = "dryRun" in request.query
        if target.subresource == "eviction" and resource is PODS and request.method == "POST":
            self._registry.delete(resource, key, {}, dry)
            return _json(201, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
        if target.subresource != "status" or not resource.status:
            raise faults.no_such_path()
        match request.method:
            case "GET":
                entry = self._registry.read(resource, key)
            case "PUT":
                entry = self._registry.update(resource, key, _object_body(request), status=True, dry_run=dry)
            case "PATCH":
                change, media_type = _body(request), _media_type(request)
                entry = self._registry.patch(resource, key, media_type, change, status=True, dry_run=dry)
            case _:
                raise faults.method_not_allowed()
        return _entry(200, resource, entry)

    # -- collections

    def _collection(self, request: Request, target: _Target) -> Answer:
        resource, query = target.resource, request.query
        if request.method == "POST":
            dry = "dryRun" in query
            return _entry(201, resource, self._registry.create(resource, target.namespace, _object_body(request), dry))
        matches = predicate(resource, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        if request.method == "GET" and query.get("watch") in _TRUE:
            return self._watch(request, target, matches)
        if request.method == "GET":
            return self._list(request, target, matches)
        if request.method == "DELETE":
            options = _delete_options(request)
            found = [(key, entry) for key, entry in self._store.scan(resource, target.namespace)]
            chosen = [(key, entry) for key, entry in found if matches is None or matches(entry.load())]
            for key, _ in chosen:
                self._registry.delete(resource, key, options)
            return Response(200, _list_body(resource, self._store.revision, "", 0, [entry for _, entry in chosen]))
        raise faults.method_not_allowed()

    def _watch(self, request: Request, target: _Target, matches: Predicate | None) -> Answer:
        query = request.query
        if "sendInitialEvents" in query:  # clients list first, as with a server that has no WatchList
            why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            raise faults.invalid("meta.k8s.io", "ListOptions", "", [faults.not_allowed("sendInitialEvents", why)])
        version = query.get("resourceVersion", "")
        revision = _revision(version) if version not in ("", "0") else None
        timeout = _number(query, "timeoutSeconds") or random.uniform(1800, 3600)
        if self.gone_as_status and revision and self._store.changes_since(target.resource, revision) is None:
            raise faults.expired(f"too old resource version: {revision} ({self._store.revision})")
        bookmarks = query.get("allowWatchBookmarks") in _TRUE
        asked = WatchRequest(target.resource, target.namespace, matches, revision, timeout, bookmarks)
        return Stream(WatchSession(self._store, asked, self._interval).start)

    def _list(self, request: Request, target: _Target, matches: Predicate | None) -> Response:
        resource, query = target.resource, request.query
        limit = _number(query, "limit")
        if token := query.get("continue"):
            revision, after = _open_token(token)
            entries = self._store.snapshot(resource, revision, target.namespace, after)
            if entries is None:
                raise faults.expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a"
                    " new list without the continue parameter."
                )
        else:
            revision = self._store.revision
            self._refuse_future(query.get("resourceVersion", ""))
            entries = list(self._store.scan(resource, target.namespace))
        if matches is not None:
            entries = [(key, entry) for key, entry in entries if matches(entry.load())]
        more = ""
        left = 0
        if limit and len(entries) > limit:
            left = len(entries) - limit
            entries = entries[:limit]
            more = _token(revision, entries[-1][0])
        remaining = 0 if matches is not None else left
        return Response(200, _list_body(resource, revision, more, remaining, [entry for _, entry in entries]))

    def _refuse_future(self, version: str) -> None:
        """A cache that was ahead of this server (restored from a backup) has to notice."""
        if version and _revision(version) > self._store.revision:
            causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
            message = f"Timeout: Too large resource version: {version}, current: {self._store.revision}"
            raise StatusError(504, "Timeout", message, {"causes": causes, "retryAfterSeconds": 1})


def _json(code: int, body: Json) -> Response:
    return Response(code, dump(body))


def _entry(code: int, resource: Resource, entry: Entry) -> Response:
    return Response(code, resource.prefix + entry.body[1:])


def _deleted(resource: Resource, name: str, entry: Entry, gone: bool) -> Response:
    if not gone or resource.returns_deleted:
        return _entry(200, resource, entry)
    uid = entry.load()["metadata"]["uid"]
    details = (
        {"name": name} | ({"group": resource.group} if resource.group else {}) | {"kind": resource.plural, "uid": uid}
    )
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
    return _json(200, body)


def _list_body(resource: Resource, revision: int, more: str, remaining: int, entries: list[Entry]) -> bytes:
    metadata: Json = {"resourceVersion": str(revision)}
    if more or resource.custom:
        metadata["continue"] = more
    if remaining:
        metadata["remainingItemCount"] = remaining
    head = dump({"kind": resource.kind + "List", "apiVersion": resource.api_version, "metadata": metadata})
    if resource.custom:
        prefix = resource.prefix
        items = b",".join([prefix + entry.body[1:] for entry in entries])
    else:  # items of built-in lists carry neither kind nor apiVersion
        items = b",".join([entry.body for entry in entries])
    return b'%b,"items":[%b]}' % (head[:-1], items)


def _token(revision: int, key: Key) -> str:
    return base64.urlsafe_b64encode(dump({"rv": revision, "ns": key[0], "name": key[1]})).decode().rstrip("=")


def _open_token(token: str) -> tuple[int, Key]:
    try:
        content = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return content["rv"], (content["ns"], content["name"])
    except (binascii.Error, ValueError, KeyError, TypeError) as problem:
        raise faults.bad_request(f"invalid continue token: continue key is not valid: {problem}") from problem


def _revision(text: str) -> int:
    if not text.isdigit():
        raise faults.bad_request(f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax')
    return int(text)


def _number(query: dict[str, str], name: str) -> int:
    text = query.get(name) or "0"
    if not text.isdigit():
        raise faults.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip()


def _object_body(request: Request) -> Any:
    """The body of a POST or PUT. (The real server also takes YAML and protobuf.)"""
    if _media_type(request) not in ("", "application/json"):
        raise faults.unsupported_media_type(["application/json"])
    return _body(request)


def _body(request: Request) -> Any:
    try:
        return json.loads(request.body)
    except ValueError as problem:
        raise faults.bad_request(f"the object provided is unrecognized (must be of type JSON): {problem}") from problem


def _delete_options(request: Request) -> Json:
    options = _body(request) if request.body.strip() else {}
    if not isinstance(options, dict):
        raise faults.bad_request("DeleteOptions must be an object")
    return options
