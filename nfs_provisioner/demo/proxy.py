"""The service proxy: /api/v1/namespaces/NS/services/[SCHEME:]NAME[:PORT]/proxy/PATH. Reads the store, changes nothing.

A real control plane reaches the Service's endpoints over the cluster network. Here the annotation
demo.nfs-provisioner.io/target (host:port) comes first, because an EndpointSlice must not name a loopback address.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

from nfs_provisioner.demo import faults
from nfs_provisioner.demo.faults import Json, StatusError
from nfs_provisioner.demo.http import Answer, Request, Response, fetch
from nfs_provisioner.demo.resources import SERVICES, SLICES
from nfs_provisioner.demo.store import Store, dump

_SERVICE_NAME = "kubernetes.io/service-name"
_PATIENCE = 30.0  # seconds for one forwarded request
TARGET = "demo.nfs-provisioner.io/target"


class ServiceProxy:
    """Finds a Service's address and forwards one request there."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def forward(self, namespace: str, reference: str, path: str, request: Request) -> Answer:
        name, port = _split(reference)
        entry = self._store.get(SERVICES, (namespace, name))
        if entry is None:
            raise faults.not_found("", "services", name)
        return _forwarded(*self._address(namespace, entry.load(), port), path, request)

    def _address(self, namespace: str, service: Json, port: str) -> tuple[str, int]:
        target = (service["metadata"].get("annotations") or {}).get(TARGET)
        if target:
            host, _, number = target.rpartition(":")
            if not host or not number.isdigit():
                raise StatusError(503, "ServiceUnavailable", f"annotation {TARGET}: not host:port: {target}")
            return host, int(number)
        name = service["metadata"]["name"]
        slices = [entry.load() for _, entry in self._store.scan(SLICES, namespace)]
        slices = [obj for obj in slices if (obj["metadata"].get("labels") or {}).get(_SERVICE_NAME) == name]
        if not slices:
            raise faults.not_found("", "services", name)
        for obj in slices:
            for endpoint in obj.get("endpoints") or []:
                for candidate in obj.get("ports") or []:
                    if port in ("", candidate.get("name") or "", str(candidate["port"])):
                        return endpoint["addresses"][0], candidate["port"]
        raise StatusError(503, "ServiceUnavailable", f'no endpoints available for service "{name}"')


def _split(reference: str) -> tuple[str, str]:
    """[scheme:]name[:port] to name and port; with one colon the second part is the port."""
    parts = reference.split(":")
    if len(parts) == 3:
        return parts[1], parts[2]
    return parts[0], parts[1] if len(parts) == 2 else ""


async def _forwarded(host: str, port: int, path: str, request: Request) -> Response:
    query = f"?{urlencode(request.query)}" if request.query else ""
    lines = [f"{request.method} {path}{query} HTTP/1.1", f"Host: {host}:{port}", "Connection: close"]
    lines += [f"{name}: {request.headers[name]}" for name in ("accept", "content-type") if name in request.headers]
    if request.body:
        lines.append(f"Content-Length: {len(request.body)}")
    try:
        async with asyncio.timeout(_PATIENCE):
            return await fetch(host, port, ("\r\n".join(lines) + "\r\n\r\n").encode(), request.body)
    except (OSError, ValueError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as problem:
        fault = StatusError(503, "ServiceUnavailable", f"error trying to reach service: {problem}")
        return Response(fault.code, dump(fault.status()))
