"""The child process of one replica as it is, whose clones stand still half-way while there is a file that says so.

`COMMAND` and the path of that file are the command of the child. Of a clone the first few files are put in their
places, and the others wait, as behind a slow disk: it goes on when the file is gone, and ends when it is told to.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from nfs_provisioner.export.worker import main
from nfs_provisioner.replication.copier import Copier, Done, Staged
from nfs_provisioner.replication.measuring import MeasuringWorker

COMMAND = (sys.executable, "-P", str(Path(__file__).resolve()))
FIRST = 10  # files


def hold(flag: str) -> None:
    """Have copies that are staged wait for their places while `flag` exists."""
    publish, counted = Copier.publish, itertools.count()

    def held(copier: Copier, files: Iterable[Staged]) -> Iterator[Staged]:
        for file in files:
            if next(counted) >= FIRST:
                while os.path.exists(flag):
                    copier._guard()
                    time.sleep(0.01)
            yield file

    def slowly(self: Copier, directory: str, files: Iterable[Staged]) -> Done:
        return publish(self, directory, held(self, files))

    Copier.publish = slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    hold(sys.argv.pop(1))
    main(MeasuringWorker)
