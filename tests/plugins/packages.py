"""What a test needs from the machine: commands, files, root.

A developer's machine may lack them, and the test is skipped with the reason; where the environment variable CI is
set nothing may be skipped, so there the same lack is a failure. This module only looks; `tests/install-packages`
installs. Invariant: every Debian package that a test names stands in `tests/packages.txt`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

import pytest

LIST = Path(__file__).resolve().parent.parent / "packages.txt"
# Daemons and mount tools live in sbin, which is not in an ordinary user's PATH.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def unavailable(reason: str) -> NoReturn:
    """The test cannot run on this machine: skipped, but failed where the environment variable CI is set."""
    __tracebackhide__ = True
    if os.environ.get("CI"):
        pytest.fail(f"CI must run every test, but this machine {reason}", pytrace=False)
    pytest.skip(f"this machine {reason}", allow_module_level=True)


def listed() -> frozenset[str]:
    """The Debian packages of tests/packages.txt."""
    lines = (line.partition("#")[0].strip() for line in LIST.read_text().splitlines())
    return frozenset(line for line in lines if line)


def find(command: str) -> str:
    """The absolute path of a command that `require` was asked for; skips or fails like `require`."""
    path = shutil.which(command, path=SEARCH_PATH)
    if path is None:
        unavailable(f"lacks {command}; `tests/install-packages` installs it")
    return path


def require(*commands_or_paths: str, debian: Collection[str] = ()) -> None:
    """Skip (in CI: fail) unless every command is in the PATH or an sbin, and every absolute path exists.

    `debian` names the packages that bring them. Raises ValueError when one of those is not in tests/packages.txt,
    on every machine, because the machine that would notice is the one that lacks it.
    """
    __tracebackhide__ = True
    if unlisted := sorted(set(debian) - listed()):
        raise ValueError(f"tests/packages.txt does not list {', '.join(unlisted)}")
    missing = [name for name in commands_or_paths if not _present(name)]
    if missing:
        packages = f" (Debian: {' '.join(debian)}; `tests/install-packages` installs them)" if debian else ""
        unavailable(f"lacks {', '.join(missing)}{packages}")


def require_root(purpose: str) -> None:
    """Skip (in CI: fail) unless the tests run as root; `purpose` says what root is needed for."""
    __tracebackhide__ = True
    if os.geteuid() != 0:
        unavailable(f"runs the tests without root, which is needed for {purpose}")


def _present(name: str) -> bool:
    if name.startswith("/"):
        return Path(name).exists()
    return shutil.which(name, path=SEARCH_PATH) is not None
