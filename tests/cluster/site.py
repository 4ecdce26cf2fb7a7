"""One module's share of the real control plane: a namespace, NFSExports on local directories, classes and claims.

Everything carries the site's suffix and is removed at the end. The controller runs under the shipped ServiceAccount;
only this file and the tests are the cluster's administrator.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contract.client import STRATEGIC, Client, Credentials, Json
from tests.controlplane.controlplane import ControlPlane
from tests.plugins.controller import Controller

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
EXPORTS = "/apis/nfs-provisioner.io/v1alpha1/nfsexports"
NAMESPACES = "/api/v1/namespaces"
VOLUMES = "/api/v1/persistentvolumes"
CONTROL = ".nfs-provisioner"
FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
DEADLINE = 60.0


def eventually[T](look: Callable[[], T], what: str, seconds: float = DEADLINE) -> T:
    """Polls until `look` gives something true, and returns that; an AssertionError counts as not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            found, why = look(), ""
        except AssertionError as error:
            if time.monotonic() > end:
                raise
            found, why = None, str(error)  # type: ignore[assignment]
        if found:
            return found
        assert time.monotonic() < end, f"{what}: not in {seconds:g} s. {why}"
        time.sleep(0.05)
