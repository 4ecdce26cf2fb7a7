"""Errors of the embedded API server: one exception, carrying the Status object that a client receives.

Holds no rule about when an error is due. Every answer with a code of 400 or more is built here, so that codes, reasons
and wording stay those of k8s.io/apimachinery/pkg/api/errors.
"""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]


class StatusError(Exception):
    """An answer that is not a success. `code` is the HTTP status, `reason` the CamelCase word clients switch on."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> Json:
        """The metav1.Status body."""
        body: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.code
        return body


def _details(group: str, kind: str, name: str) -> Json:
    details: Json = {"name": name} if name else {}
    if group:
        details["group"] = group
    details["kind"] = kind
    return details


def _qualified(group: str, plural: str) -> str:
    return f"{plural}.{group}" if group else plural


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


def forbidden(group: str, plural: str, name: str, why: str) -> StatusError:
    message = f'{_qualified(group, plural)} "{name}" is forbidden: {why}'
    return StatusError(403, "Forbidden", message, _details(group, plural, name))


def not_found(group: str, plural: str, name: str) -> StatusError:
    return StatusError(
        404, "NotFound", f'{_qualified(group, plural)} "{name}" not found', _details(group, plural, name)
    )


def no_such_path() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


def method_not_allowed() -> StatusError:
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def already_exists(group: str, plural: str, name: str) -> StatusError:
    message = f'{_qualified(group, plural)} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, _details(group, plural, name))


def conflict(group: str, plural: str, name: str, why: str) -> StatusError:
    message = f'Operation cannot be fulfilled on {_qualified(group, plural)} "{name}": {why}'
    return StatusError(409, "Conflict", message, _details(group, plural, name))


STALE = "the object has been modified; please apply your changes to the latest version and try again"


def expired(message: str) -> StatusError:
    return StatusError(410, "Expired", message)


def too_large(limit: int) -> StatusError:
    return StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


def unsupported_media_type(accepted: list[str]) -> StatusError:
    message = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(accepted)
    return StatusError(415, "UnsupportedMediaType", message, {})


def invalid(group: str, kind: str, name: str, causes: list[Json]) -> StatusError:
    """422: `causes` are {reason, message, field} as field.ErrorList would give them."""
    parts = [f"{cause['field']}: {cause['message']}" for cause in causes]
    text = parts[0] if len(parts) == 1 else "[" + ", ".join(parts) + "]"
    qualified = f"{kind}.{group}" if group else kind
    details = _details(group, kind, name) | {"causes": causes}
    return StatusError(422, "Invalid", f'{qualified} "{name}" is invalid: {text}', details)


def cause(field: str, reason: str, message: str) -> Json:
    return {"reason": reason, "message": message, "field": field}


def required(field: str, hint: str = "") -> Json:
    return cause(field, "FieldValueRequired", f"Required value: {hint}" if hint else "Required value")


def wrong(field: str, value: object, why: str) -> Json:
    shown = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return cause(field, "FieldValueInvalid", f"Invalid value: {shown}: {why}")


def not_allowed(field: str, why: str) -> Json:
    return cause(field, "FieldValueForbidden", f"Forbidden: {why}")


def unsupported_object(field: str, value: object, choices: list[str]) -> Json:
    supported = ", ".join(f'"{choice}"' for choice in choices)
    shown = json.dumps(value, separators=(",", ":"))
    return cause(field, "FieldValueNotSupported", f"Unsupported value: {shown}: supported values: {supported}")


def unsupported(field: str, value: object, choices: list[str]) -> Json:
    supported = ", ".join(f'"{choice}"' for choice in choices)
    return cause(field, "FieldValueNotSupported", f'Unsupported value: "{value}": supported values: {supported}')


def immutable(field: str, value: object = "") -> Json:
    return wrong(field, value, "field is immutable")
