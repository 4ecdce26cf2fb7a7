"""The error tree.

Every error this program raises on purpose is one of these; each knows the reason that an Event about it carries and
the exit code of a command that ends with it. The class says what may help:

========================  =======================================================================
RetryLater                the same operation can succeed later without anybody changing anything
Infeasible                it cannot succeed until a person changes the object named in the message
RefusedForSafety          identity, direction or ownership is in doubt; the message says what makes it safe
InvalidInput              a file, an argument or a field is wrong (a kind of Infeasible)
LostLeadership            this process may not act any more
========================  =======================================================================

Messages name the object, the field, the value, and what would be right: they are read by tired people at night.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3


class NfsProvisionerError(Exception):
    """Base of everything raised on purpose. `reason` is the CamelCase reason of the Event that reports it."""

    exit_code = EXIT_FAILED
    reason = "ProvisioningFailed"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason

    def __reduce__(self) -> tuple[type[NfsProvisionerError], tuple[str], dict[str, object]]:
        """Between processes: message first, the rest as attributes."""
        return type(self), (self.message,), dict(self.__dict__)


class RetryLater(NfsProvisionerError):
    """It may work later: an unreachable server, a full disk, a name that is free in 90 s.

    `after` is the number of seconds to wait if that is known; None means the queue's own backoff.
    """

    def __init__(self, message: str, *, after: float | None = None, reason: str | None = None) -> None:
        super().__init__(message, reason=reason)
        self.after = after


class Infeasible(NfsProvisionerError):
    """Retrying cannot help; somebody has to change an object first."""


class InvalidInput(Infeasible):
    """A configuration file, an argument or a field of an object is wrong."""

    exit_code = EXIT_USAGE


class RefusedForSafety(NfsProvisionerError):
    """Going on could lose data. The message says why, and what would make it safe."""

    exit_code = EXIT_REFUSED


class LostLeadership(NfsProvisionerError):
    """The lease may have passed to another process: nothing may be changed any more."""
