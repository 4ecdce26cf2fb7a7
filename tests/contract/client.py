"""A raw Kubernetes client for the contract suite: http.client and JSON, nothing else.

Deliberately independent of the product's own client, so that a mistake there cannot hide a difference here. One
instance belongs to one thread.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

Json = dict[str, Any]
Query = dict[str, object]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"

#: Seconds a condition may take before a test fails. A busy machine is slow, not wrong, and so is one whose disk stalls.
DEADLINE = 90.0
#: Of a watch that is read until something comes: it ends no earlier than the patience of whoever reads.
LASTING: Query = {"timeoutSeconds": int(DEADLINE)}
#: Seconds after which a connection is made anew: a real API server closes one that was idle for 90.
_IDLE = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: HTTP code and decoded body (the text itself when it is not JSON)."""

    code: int
    body: Json
    headers: dict[str, str]
    text: str = ""

    def ok(self) -> Json:
        assert self.code in (200, 201), f"HTTP {self.code}: {self.body.get('message') or self.text}"
        return self.body

    def refused(self, code: int, reason: str, *words: str) -> Json:
        """Asserts a refusal with this code and reason, whose message contains the words."""
        assert (self.code, self.body.get("reason")) == (code, reason), f"HTTP {self.code}: {self.body}"
        assert self.body["kind"] == "Status"
        assert self.body["status"] == "Failure"
        assert self.body["code"] == code
        for word in words:
            assert word in self.body["message"], self.body["message"]
        return self.body


@dataclass(frozen=True, slots=True)
class Credentials:
    host: str
    port: int
    token: str
    authority: str | None  # PEM; None for plain HTTP

    @classmethod
    def read(cls, kubeconfig: Path) -> Credentials:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        server = urlsplit(cluster["server"])
        data = cluster.get("certificate-authority-data")
        authority = base64.b64decode(data).decode() if data else None
        assert server.hostname is not None
        return cls(server.hostname, server.port or 443, user["token"], authority)

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        if self.authority is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        context = ssl.create_default_context(cadata=self.authority)
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=context)


@dataclass(slots=True)
class Client:
    """Requests on one keep-alive connection; watches on connections of their own."""

    credentials: Credentials
    timeout: float = DEADLINE
    _connection: http.client.HTTPConnection | None = None
    _used: float = 0.0

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        token: str | None = None,
        query: Query | None = None,
    ) -> Answer:
        """As every client of Kubernetes, it comes back later when the server says that it is not ready to answer."""
        end = time.monotonic() + self.timeout
        while True:
            answer = self._ask(method, _target(path, query or {}), _encode(body), self._headers(content_type, token))
            if answer.code != 429 or "retry-after" not in answer.headers or time.monotonic() > end:
                return answer
            time.sleep(float(answer.headers["retry-after"]))

    def _ask(self, method: str, target: str, body: str | None, headers: dict[str, str]) -> Answer:
        if self._connection is not None and time.monotonic() - self._used > _IDLE:
            self.close()
        if self._connection is None:
            self._connection = self.credentials.connect(self.timeout)
        self._connection.request(method, target, body, headers)
        response = self._connection.getresponse()
        text = response.read().decode()
        self._used = time.monotonic()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return Answer(response.status, json.loads(text) if is_json else {}, found, text)

    def _headers(self, content_type: str, token: str | None) -> dict[str, str]:
        token = self.credentials.token if token is None else token
        return {"Content-Type": content_type, "Accept": "application/json", "Authorization": f"Bearer {token}"}

    def get(self, path: str, **query: object) -> Answer:
        return self.request("GET", path, query=query)

    def post(self, path: str, body: object, **query: object) -> Answer:
        return self.request("POST", path, body, query=query)

    def put(self, path: str, body: object, **query: object) -> Answer:
        return self.request("PUT", path, body, query=query)

    def patch(self, path: str, body: object, content_type: str = MERGE, **query: object) -> Answer:
        return self.request("PATCH", path, body, content_type=content_type, query=query)

    def delete(self, path: str, options: Json | None = None, **query: object) -> Answer:
        return self.request("DELETE", path, options, query=query)

    def watch(self, path: str, **query: object) -> Watch:
        connection = self.credentials.connect(self.timeout)
        connection.request("GET", _target(path, {"watch": "1"} | query), None, self._headers("", None))
        return Watch(connection, connection.getresponse())

    def eventually(self, path: str, satisfied: Callable[[Json], object], deadline: float = DEADLINE) -> Json:
        """Reads the object until it satisfies; the failure shows its last state."""
        end = time.monotonic() + deadline
        pause = 0.005
        while True:
            answer = self.get(path)
            if answer.code == 200 and satisfied(answer.body):
                return answer.body
            assert time.monotonic() < end, f"{path} is still HTTP {answer.code}: {json.dumps(answer.body)}"
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)

    def eventually_gone(self, path: str, deadline: float = DEADLINE) -> None:
        end = time.monotonic() + deadline
        while (answer := self.get(path)).code != 404:
            assert time.monotonic() < end, f"{path} is still there: {json.dumps(answer.body)}"
            time.sleep(0.01)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


@dataclass(slots=True)
class Watch:
    """A running watch. `next` waits for one event; iterating reads to the end of the stream."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    seen: list[Json] = field(default_factory=list)

    def next(self) -> Json:
        line = self.response.readline()
        assert line, f"the watch ended after {self.seen}"
        event: Json = json.loads(line)
        self.seen.append(event)
        return event

    def until(self, satisfied: Callable[[Json], bool]) -> Json:
        while not satisfied(event := self.next()):
            pass
        return event

    def __iter__(self) -> Iterator[Json]:
        while line := self.response.readline():
            yield json.loads(line)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def _target(path: str, query: Query) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _encode(body: object) -> str | None:
    return body if body is None or isinstance(body, str) else json.dumps(body)
