"""What a directory tree takes, as `du` counts it. A type only, for those who measure and those who tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes on disk (blocks of 512; each inode once, the root included), inodes, and when it was measured (Unix).

    `unreadable`: directories that could not be looked into, so that there is more than is counted.
    """

    bytes: int
    inodes: int
    at: float
    unreadable: int = 0
