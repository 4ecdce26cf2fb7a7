"""The only module that talks to the API server: raw JSON dicts in and out.

Responsible for paths, verbs, timeouts, paging, the watch protocol and turning answers into errors. Must not cache,
retry (but once after 401, with credentials loaded again) or interpret objects. Invariant: every call ends, with a
result or one `ApiError`, within its timeout. Typed objects of the client library are not used: they cost several
times the time and memory of dicts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal
from urllib.parse import urlencode

import urllib3

from nfs_provisioner import __version__
from nfs_provisioner.errors import InvalidInput
from nfs_provisioner.kube.connection import Connection
from nfs_provisioner.kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    Throttled,
    Unauthorized,
    Unavailable,
    from_response,
    from_status,
)
from nfs_provisioner.kube.resources import (
    ENDPOINT_SLICE,
    EVENT,
    LEASE,
    NAMESPACE,
    NFS_EXPORT,
    POD,
    PV,
    PVC,
    SERVICE,
    STORAGE_CLASS,
    Resource,
)

__all__ = [
    "ENDPOINT_SLICE",
    "EVENT",
    "LEASE",
    "NAMESPACE",
    "NFS_EXPORT",
    "POD",
    "PV",
    "PVC",
    "SERVICE",
    "STORAGE_CLASS",
    "AlreadyExists",
    "Api",
    "ApiError",
    "Conflict",
    "Forbidden",
    "Gone",
    "Invalid",
    "JsonObject",
    "NotFound",
    "Resource",
    "Throttled",
    "Unauthorized",
    "Unavailable",
    "Watch",
    "load",
]

JsonObject = dict[str, Any]
Observe = Callable[[str, str, str, float], None]
PatchKind = Literal["merge", "strategic", "json"]

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
# A watch that is only quiet must end by the server's timeoutSeconds, not by ours.
WATCH_READ_SLACK = 10.0

_PATCH_TYPES: dict[str, str] = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def _not_observed(_verb: str, _resource: str, _code: str, _seconds: float) -> None:
    pass


def load(
    kubeconfig: str | None = None,
    *,
    pool_size: int = 32,
    user_agent: str = f"nfs-provisioner/{__version__}",
    observe: Observe = _not_observed,
) -> Api:
    """Looks at `kubeconfig`, $KUBECONFIG, the pod's service account and ~/.kube/config, in this order.

    `observe(verb, resource, code, seconds)` is called after every request; code is the HTTP status or "none".
    Raises InvalidInput naming the file. Sends nothing.
    """
    return Api(Connection(kubeconfig, pool_size), user_agent, observe)


class Api:
    """Requests to one API server; every method may be called from any thread and raises ApiError's kinds."""

    def __init__(self, connection: Connection, user_agent: str, observe: Observe) -> None:
        self._connection = connection
        self._observe = observe
        self._headers = {"Accept": "application/json", "User-Agent": user_agent}
        self._headers_by_type = {
            kind: {**self._headers, "Content-Type": kind} for kind in ("application/json", *_PATCH_TYPES.values())
        }
        self._timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)

    @property
    def host(self) -> str:
        return self._connection.host

    def close(self) -> None:
        """Closes idle connections."""
        self._connection.close()

    def get(
        self, res: Resource, name: str, namespace: str | None = None, *, timeout: float | None = None
    ) -> JsonObject:
        """`timeout` (seconds) shortens the read timeout, here and in create and replace."""
        return self._json("get", res, "GET", res.path(namespace, name), _label(namespace, name), timeout=timeout)

    def list(
        self,
        res: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int = 500,
    ) -> tuple[Iterator[JsonObject], str]:
        """All objects, page by page as they are consumed, and the resourceVersion that they are a picture of.

        Raises Gone, also while iterating, when the server has forgotten the version the first page was read at.
        """
        query = {"limit": str(limit), "labelSelector": label_selector, "fieldSelector": field_selector}
        page = self._page(res, namespace, query)
        return self._pages(res, namespace, query, page), str(page["metadata"].get("resourceVersion", ""))

    def create(
        self, res: Resource, obj: JsonObject, namespace: str | None = None, *, timeout: float | None = None
    ) -> JsonObject:
        metadata = obj["metadata"]
        namespace = namespace or metadata.get("namespace")
        label = _label(namespace, metadata.get("name") or metadata.get("generateName"))
        return self._json("create", res, "POST", res.path(namespace), label, obj, timeout=timeout)

    def replace(self, res: Resource, obj: JsonObject, *, timeout: float | None = None) -> JsonObject:
        """PUT; with metadata.resourceVersion it is a compare-and-swap (Conflict)."""
        namespace, name = obj["metadata"].get("namespace"), obj["metadata"]["name"]
        path = res.path(namespace, name)
        return self._json("update", res, "PUT", path, _label(namespace, name), obj, timeout=timeout)

    def patch(
        self,
        res: Resource,
        name: str,
        body: object,
        *,
        namespace: str | None = None,
        kind: PatchKind = "merge",
        subresource: str | None = None,
    ) -> JsonObject:
        """A resourceVersion (or uid) in the body's metadata is a precondition (Conflict)."""
        path = res.path(namespace, name, subresource)
        return self._json("patch", res, "PATCH", path, _label(namespace, name), body, _PATCH_TYPES[kind])

    def delete(
        self,
        res: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> JsonObject:
        """`uid` and `resource_version` are preconditions (Conflict). Answers the object or a Status."""
        preconditions = {k: v for k, v in (("uid", uid), ("resourceVersion", resource_version)) if v is not None}
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}
        return self._json("delete", res, "DELETE", res.path(namespace, name), _label(namespace, name), options)

    def watch(
        self,
        res: Resource,
        *,
        resource_version: str,
        timeout_seconds: int,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        on_open: Callable[[Watch], None] | None = None,
    ) -> Watch:
        """Opens the stream (errors of opening are raised here) and returns an iterator of (type, object).

        The server ends it after `timeout_seconds`; iteration then stops. `on_open` gets the Watch before it is
        returned.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        what = f"watch {res.plural}"
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=timeout_seconds + WATCH_READ_SLACK)
        target = res.path(namespace) + _query(query)
        opened = Watch(what, self._request("watch", res.plural, "GET", target, what, timeout=timeout, stream=True))
        if on_open is not None:
            on_open(opened)
        return opened

    def get_raw(self, path: str) -> bytes:
        """The body of any GET below the server, such as a service proxy's path (with its query)."""
        return self._request("get", "raw", "GET", path, f"get {path}").data

    def _page(self, res: Resource, namespace: str | None, query: dict[str, str | None]) -> JsonObject:
        page = self._json("list", res, "GET", res.path(namespace) + _query(query), namespace or "")
        page.setdefault("metadata", {})
        return page

    def _pages(
        self, res: Resource, namespace: str | None, query: dict[str, str | None], page: JsonObject
    ) -> Iterator[JsonObject]:
        while True:
            items = page.get("items") or []
            token = page["metadata"].get("continue")
            del page
            # Each object is let go as soon as the consumer is done with it.
            items.reverse()
            while items:
                yield items.pop()
            if not token:
                return
            page = self._page(res, namespace, {**query, "continue": token})

    def _json(
        self,
        verb: str,
        res: Resource,
        method: str,
        target: str,
        label: str,
        body: object = None,
        content_type: str = "application/json",
        timeout: float | None = None,
    ) -> JsonObject:
        what = f"{verb} {res.plural} {label}".rstrip()
        data = None if body is None else _encode(body).encode("ascii")
        limits = None if timeout is None else urllib3.Timeout(connect=min(timeout, CONNECT_TIMEOUT), read=timeout)
        response = self._request(verb, res.plural, method, target, what, data, content_type, timeout=limits)
        return _parse(what, response.data)

    def _request(
        self,
        verb: str,
        resource: str,
        method: str,
        target: str,
        what: str,
        body: bytes | None = None,
        content_type: str | None = None,
        *,
        timeout: urllib3.Timeout | None = None,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        connection = self._connection
        headers = self._headers if body is None or content_type is None else self._headers_by_type[content_type]
        for attempt in (1, 2):
            generation = connection.generation
            began = time.perf_counter()
            code = "none"
            try:
                response = connection.send(
                    method, target, headers=headers, body=body, timeout=timeout or self._timeout, stream=stream
                )
                code = str(response.status)
                if response.status < 300:
                    return response
                # Read here, so that the connection of a refused watch goes back to the pool as well.
                answer = response.data
            except urllib3.exceptions.HTTPError as error:
                raise Unavailable(f"{what}: {self.host}: {_cause(error)}") from error
            except InvalidInput as error:
                raise Unauthorized(f"{what}: {error}") from error
            finally:
                self._observe(verb, resource, code, time.perf_counter() - began)
            if response.status != 401 or attempt == 2:
                break
            try:
                connection.reload(generation)
            except InvalidInput as error:
                raise Unauthorized(f"{what}: {error}", status=401) from error
        raise from_response(what, response.status, answer, response.headers.get("Retry-After"))


class Watch:
    """An open watch: an iterator of (type, object).

    Stops when the server ends the stream or `close` was called; raises Gone for a 410 event, Unavailable when the
    stream breaks or says nothing for longer than the server promised, and another ApiError for other ERROR events.
    """

    def __init__(self, what: str, response: urllib3.BaseHTTPResponse) -> None:
        self._what = what
        self._response = response
        self._closed = False
        self._events = self._read()

    def __iter__(self) -> Iterator[tuple[str, JsonObject]]:
        return self

    def __next__(self) -> tuple[str, JsonObject]:
        return next(self._events)

    def close(self) -> None:
        """Ends the iteration promptly, also while another thread is blocked in it."""
        self._closed = True
        try:
            # Only the socket is shut down: the reading thread, woken by it, closes what it uses.
            self._response.shutdown()
        except (RuntimeError, ValueError, OSError):
            return  # It had ended already, and the connection is not ours any more.

    def _read(self) -> Iterator[tuple[str, JsonObject]]:
        try:
            for line in self._lines():
                event = _parse(self._what, line)
                kind, obj = event.get("type", ""), event.get("object") or {}
                if kind == "ERROR":
                    raise from_status(self._what, int(obj.get("code") or 0), obj)
                yield kind, obj
        except urllib3.exceptions.HTTPError as error:
            if not self._closed:
                raise Unavailable(f"{self._what}: {_cause(error)}") from error
        finally:
            # Unread rest, or a stream cut in the middle: never back to the pool.
            self._response.close()

    def _lines(self) -> Iterator[bytes]:
        pending: list[bytes] = []
        while True:
            data = self._response.read1()
            if not data or self._closed:
                return
            *lines, rest = data.split(b"\n")
            for line in lines:
                pending.append(line)
                whole = b"".join(pending)
                pending.clear()
                if whole:
                    yield whole
            if rest:
                pending.append(rest)


def _query(parameters: dict[str, str | None]) -> str:
    return "?" + urlencode({key: value for key, value in parameters.items() if value is not None})


def _label(namespace: str | None, name: str | None) -> str:
    return f"{namespace}/{name or ''}" if namespace else name or ""


def _parse(what: str, data: bytes) -> JsonObject:
    try:
        parsed = json.loads(str(data, "utf-8"))
    except ValueError as error:
        raise Unavailable(f"{what}: the answer is not JSON: {data[:80]!r}") from error
    if not isinstance(parsed, dict):
        raise Unavailable(f"{what}: the answer is not a JSON object: {data[:80]!r}")
    return parsed


def _cause(error: Exception) -> str:
    """The innermost reason: urllib3 wraps 'connection refused' in names of its pools."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return str(cause) or type(cause).__name__
