"""One pass in a process of its own, as a controller's child makes it: `python -m tests.bench.once SOURCE TARGET`.

Prints one line of JSON: seconds of the pass without the start of the process, the most memory that the process ever
had, and what was done. With --state the pass knows what the last one left there, and leaves its own.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nfs_provisioner.errors import NfsProvisionerError
from nfs_provisioner.replication import plain
from nfs_provisioner.replication.job import Job
from nfs_provisioner.replication.passes import Result, run_pass


@dataclass(frozen=True, slots=True)
class Pass:
    """`seconds` of the pass alone, `peak` bytes of RSS."""

    seconds: float
    peak: int
    copied_files: int
    copied_bytes: int
    renamed: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.once", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--state", type=Path)
    arguments = parser.parse_args()
    began = time.perf_counter()
    try:
        if arguments.state is None:
            result = plain.sync(str(arguments.source), str(arguments.target), threads=arguments.threads)
        else:
            result = _again(arguments.source, arguments.target, arguments.state)
    except NfsProvisionerError as error:
        print(error.message, file=sys.stderr)
        return 1
    seconds = time.perf_counter() - began
    if not result.clean:
        print(f"not clean: {result.errors[:3]} {result.unstable[:3]} {sorted(result.deferred)[:3]}", file=sys.stderr)
        return 1
    counts = result.counts
    print(json.dumps([seconds, _peak(), counts.copied_files, counts.copied_bytes, counts.renamed]))
    return 0


def _again(source: Path, target: Path, state: Path) -> Result:
    """What is deleted goes to a trash beside the target, as on a standby."""
    known: dict[str, object] = pickle.loads(state.read_bytes()) if state.exists() else {"base": None}
    fds = []
    try:
        for path in (
            source,
            target,
            *(Path(tempfile.mkdtemp(prefix=p, dir=target.parent)) for p in ("stage", "trash")),
        ):
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        ours, theirs, staging, trash = fds
        result = run_pass(Job(source=ours, target=theirs, staging=staging, trash=trash, **known))  # type: ignore[arg-type]
    finally:
        for fd in fds:
            os.close(fd)
    state.write_bytes(pickle.dumps({"base": result.began, "directories": result.directories}))
    return result


def _peak() -> int:
    """Of this program: rusage would tell the most of the process that started it, if that had more."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


if __name__ == "__main__":
    sys.exit(main())
