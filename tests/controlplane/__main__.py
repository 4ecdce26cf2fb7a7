"""`python -m tests.controlplane up --dir DIR`: a control plane to work against, until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.controlplane.controlplane import ControlPlane
from tests.controlplane.processes import StartupError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.controlplane", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start a control plane and stay until SIGINT or SIGTERM")
    up.add_argument("--dir", type=Path, required=True, help="a new or empty directory for data, logs and kubeconfigs")
    up.add_argument("--no-fsync", action="store_true", help="etcd does not sync its disk: not for measuring")
    up.add_argument("--no-controller-manager", action="store_true", help="only etcd and kube-apiserver")
    arguments = parser.parse_args()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # both end the stay below; SIGINT may come in ignored
    try:
        with ControlPlane.start(
            arguments.dir, no_fsync=arguments.no_fsync, controller_manager=not arguments.no_controller_manager
        ) as control_plane:
            print(control_plane.admin_kubeconfig, flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except StartupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
