"""What a directory tree takes, as `du` counts it. A type only, for those who measure and those who tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes on disk (blocks of 512; each inode once, the root included), inodes, and when it was measured (Unix)."""

    bytes: int
    inodes: int
    at: float
