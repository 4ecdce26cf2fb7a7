"""A process that leads or wants to: says `led TERM`, `act TERM TIME` for everything it does, and `lost`.

Usage: python -m tests.unit.kube.elector_process KUBECONFIG IDENTITY. Ends when its standard input does.
"""

from __future__ import annotations

import sys
import threading
import time

from nfs_provisioner.errors import LostLeadership
from nfs_provisioner.kube import api as kube
from nfs_provisioner.kube.lease import LeaseElector


def say(line: str) -> None:
    # In one piece: print() writes the newline separately, and two threads talk.
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(kubeconfig: str, identity: str) -> None:
    work = threading.Event()

    def act(term: int) -> None:
        """Works without looking at the elector's thread: only `check` stands between it and the damage."""
        while not work.wait(0.005):
            moment = time.monotonic()  # before the check: between it and the damage it may be stopped for long
            try:
                elector.check(term)
            except LostLeadership:
                say(f"refused {term}")
                return
            say(f"act {term} {moment}")

    def started(term: int) -> None:
        say(f"led {term}")
        threading.Thread(target=act, args=(term,), daemon=True).start()

    elector = LeaseElector(
        kube.load(kubeconfig),
        "default",
        "test",
        identity,
        lease_duration=8,
        renew_deadline=5,
        retry_period=0.1,
        on_started=started,
        on_stopped=lambda: say("lost"),
    )
    elector.start()
    sys.stdin.read()
    work.set()
    elector.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
