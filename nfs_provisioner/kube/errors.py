"""What an API server's refusal means, as exceptions.

Responsible for turning a status code, a Status body or a broken connection into one class per thing that a caller
does differently. Must not send anything. Invariant: every message names the verb, the resource and the object, and
whoever catches `RetryLater` catches exactly what may go away by itself.
"""

from __future__ import annotations

import json
from typing import Any

from nfs_provisioner.errors import NfsProvisionerError, RetryLater


class ApiError(NfsProvisionerError):
    """The API server said no. `status` is the HTTP code (0: it said nothing), `api_reason` the Status's reason,
    `body` the Status's own message."""

    def __init__(self, message: str, *, status: int = 0, api_reason: str = "", body: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.api_reason = api_reason
        self.body = body


class NotFound(ApiError):
    """404: the object, its namespace or its kind does not exist."""


class AlreadyExists(ApiError):
    """409 of a create: an object of this name is there."""


class Conflict(ApiError):
    """409 of a write: the object changed since it was read, or a precondition does not hold."""


class Gone(ApiError):
    """410: this resourceVersion or continue token is no longer in the history; list again."""


class Unauthorized(ApiError):
    """401, also after the credentials were loaded again."""


class Forbidden(ApiError):
    """403: the role lacks a permission, admission refused, or the namespace is terminating."""


class Invalid(ApiError):
    """422: the object breaks a validation rule."""


class Unavailable(ApiError, RetryLater):
    """Refused, reset, timed out or 5xx. A write may have been done or not; `status` is 0 if no answer came."""


class Throttled(Unavailable):
    """429: the server asks to wait; `after` (seconds) is its own figure where it gave one."""

    @property
    def retry_after(self) -> float | None:
        return self.after


_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: Throttled,
}


def from_status(what: str, status: int, detail: dict[str, Any], retry_after: str | None = None) -> ApiError:
    """The exception for a Status object (or an ERROR event's object) answered to `what` with code `status`."""
    api_reason = str(detail.get("reason") or "")
    text = str(detail.get("message") or "")
    kind = _BY_STATUS.get(status, Unavailable if status >= 500 or status == 408 else ApiError)
    if kind is Conflict and api_reason == "AlreadyExists":
        kind = AlreadyExists
    message = f"{what}: {status}{' ' + api_reason if api_reason else ''}{': ' + text if text else ''}"
    error = kind(message, status=status, api_reason=api_reason, body=text)
    if isinstance(error, Unavailable):
        error.after = _seconds(retry_after, detail)
    return error


def from_response(what: str, status: int, data: bytes, retry_after: str | None) -> ApiError:
    """The exception for an answer whose body may be a Status, or a proxy's page, or nothing."""
    try:
        detail = json.loads(data)
    except ValueError:
        detail = None
    if not isinstance(detail, dict):
        detail = {"message": data[:200].decode("utf-8", "replace").strip()}
    return from_status(what, status, detail, retry_after)


def _seconds(retry_after: str | None, detail: dict[str, Any]) -> float | None:
    # Retry-After may also be a date; the API server only ever sends seconds.
    details = detail.get("details")
    value = retry_after or (details.get("retryAfterSeconds") if isinstance(details, dict) else None)
    try:
        return float(value) if value else None
    except ValueError:
        return None
